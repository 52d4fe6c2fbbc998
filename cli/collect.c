/* See collect.h. */
#define _GNU_SOURCE
#include "collect.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs.h"

enum { GOOD, FAILED, FILES };
static const char *const names[FILES] = {"results.jsonl", "errors.jsonl"};

struct collector {
  collector_options o;
  FILE *out[FILES]; /* [FAILED] NULL unless split */
  char *tmp[FILES];
  FILE *spool; /* with an order */
  uint64_t spooled;
  uint64_t *at;  /* [items]: where a record lies in the spool */
  uint32_t *len; /* [items]: 0: none yet; the top bit: failed */
  collected n;
};

#define FAILED_BIT (1u << 31)

/* ---- one record ---- */

/* Records are written with "v", "id" and "status" first (docs/formats.md); any other order is parsed whole. */
bool record_head(const char *line, size_t len, const char **id, size_t *id_len, char **owned, bool *failed) {
  static const char begin[] = "{\"v\":1,\"id\":\"", status[] = "\",\"status\":\"";
  const size_t n = sizeof begin - 1, ns = sizeof status - 1;
  *owned = NULL;
  if (len > n && memcmp(line, begin, n) == 0) {
    const char *end = memchr(line + n, '"', len - n);
    size_t left = end ? len - (size_t)(end - line) : 0;
    if (end && !memchr(line + n, '\\', (size_t)(end - line) - n) && left > ns && memcmp(end, status, ns) == 0) {
      *id = line + n;
      *id_len = (size_t)(end - *id);
      *failed = left - ns > 7 && memcmp(end + ns, "failed\"", 7) == 0;
      return true;
    }
  }
  json_t *o = json_loadb(line, len, 0, NULL);
  const char *text = json_string_value(json_object_get(o, "id")), *state = json_string_value(json_object_get(o, "status"));
  *owned = text && state ? btc_strdup(text) : NULL;
  *failed = state && strcmp(state, "failed") == 0;
  json_decref(o);
  *id = *owned;
  *id_len = *owned ? strlen(*owned) : 0;
  return *owned != NULL;
}

/* ---- opening ---- */

static int no_file(const char *path) {
  cli_error("cannot write '%s': %s", path, strerror(errno));
  return CLI_FAILED;
}

static FILE *open_in(const char *dir, const char *name, char **path) {
  if (asprintf(path, "%s/.%s.tmp.%ld", dir, name, (long)getpid()) < 0) *path = NULL;
  if (!*path) return NULL;
  int fd = open(*path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  return fd < 0 ? NULL : fdopen(fd, "w+");
}

static int open_spool(collector *c) {
  size_t n = (size_t)c->o.order->items;
  c->at = btc_alloc_zero(n, sizeof *c->at);
  c->len = btc_alloc_zero(n, sizeof *c->len);
  c->spool = tmpfile();
  if (c->o.dir) { /* beside the results, where the room is */
    char *path = NULL;
    if (c->spool) fclose(c->spool);
    c->spool = open_in(c->o.dir, "spool", &path);
    if (path) unlink(path);
    free(path);
  }
  if (c->at && c->len && c->spool) return CLI_OK;
  if (!c->spool) return no_file(c->o.dir ? c->o.dir : "a temporary file");
  cli_error("not enough memory for the places of %zu items", n);
  return CLI_FAILED;
}

int collector_open(const collector_options *o, collector **out) {
  collector *c = *out = btc_alloc_zero(1, sizeof *c);
  int code = CLI_OK;
  if (!c) {
    cli_error("out of memory");
    return CLI_FAILED;
  }
  c->o = *o;
  if (o->dir && mkdir(o->dir, 0777) != 0 && errno != EEXIST) code = no_file(o->dir);
  for (int i = 0; o->dir && i < (o->split ? FILES : 1) && code == CLI_OK; i++)
    if (!(c->out[i] = open_in(o->dir, names[i], &c->tmp[i]))) code = no_file(o->dir);
  if (!o->dir) c->out[GOOD] = stdout;
  if (code == CLI_OK && o->order) code = open_spool(c);
  if (code != CLI_OK) collector_close(out);
  return code;
}

void collector_close(collector **collecting) {
  collector *c = *collecting;
  *collecting = NULL;
  if (!c) return;
  for (int i = 0; i < FILES; i++) {
    if (c->out[i] && c->out[i] != stdout) fclose(c->out[i]);
    if (c->tmp[i]) unlink(c->tmp[i]);
    free(c->tmp[i]);
  }
  if (c->spool) fclose(c->spool);
  free(c->at);
  free(c->len);
  free(c);
}

/* ---- adding ---- */

static int write_record(collector *c, const char *line, size_t len, bool failed) {
  FILE *f = failed && c->out[FAILED] ? c->out[FAILED] : c->out[GOOD];
  if (fwrite(line, 1, len, f) != len || putc('\n', f) == EOF) return no_file(c->o.dir ? c->o.dir : "stdout");
  if (failed)
    c->n.failed++;
  else
    c->n.good++;
  return CLI_OK;
}

static int spool_record(collector *c, uint64_t index, const char *line, size_t len, bool failed) {
  if (index >= c->o.order->items || len >= FAILED_BIT) {
    cli_error("the broker sent a record of item %llu; the manifest has %llu", (unsigned long long)index,
              (unsigned long long)c->o.order->items);
    return CLI_FAILED;
  }
  if (fwrite(line, 1, len, c->spool) != len) return no_file(c->o.dir ? c->o.dir : "a temporary file");
  c->at[index] = c->spooled;
  c->len[index] = (uint32_t)len | (failed ? FAILED_BIT : 0);
  c->spooled += len;
  return CLI_OK;
}

static int add_line(collector *c, const char *line, size_t len) {
  const char *id;
  size_t id_len;
  char *owned;
  bool failed;
  if (!c->o.order && !c->o.split && c->o.dir == NULL) return write_record(c, line, len, false);
  if (!record_head(line, len, &id, &id_len, &owned, &failed)) {
    cli_error("the broker sent a line that is no record: %.80s", line);
    return CLI_FAILED;
  }
  int code = CLI_OK;
  int64_t index = c->o.order && !failed ? order_find(c->o.order, id, id_len) : 0;
  if (!c->o.order)
    code = write_record(c, line, len, failed);
  else if (index < 0)
    cli_error("a record's id is not in the manifest: %.*s", (int)(id_len < 200 ? id_len : 200), id), code = CLI_FAILED;
  else if (!failed)
    code = spool_record(c, (uint64_t)index, line, len, false);
  free(owned);
  return code;
}

int collector_lines(collector *c, const char *text, size_t len) {
  int code = CLI_OK;
  for (const char *end; len && code == CLI_OK; len -= (size_t)(end - text) + 1, text = end + 1) {
    end = memchr(text, '\n', len);
    if (!end) {
      cli_error("the broker sent half a line");
      return CLI_FAILED;
    }
    if (end > text) code = add_line(c, text, (size_t)(end - text));
  }
  return code;
}

/* The queue keeps the record of an item that is dead; of one whose engine died there may be none. */
int collector_dead(collector *c, const Btc__DeadItem *d) {
  char *made = NULL;
  if (!*d->record) {
    json_t *o =
        json_pack("{s:i,s:s,s:s,s:s,s:s}", "v", 1, "id", d->id, "status", "failed", "reason", d->reason, "message", d->message);
    made = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    if (!made) {
      cli_error("out of memory");
      return CLI_FAILED;
    }
  }
  const char *record = made ? made : d->record;
  int code = c->o.order ? spool_record(c, d->idx, record, strlen(record), true) : write_record(c, record, strlen(record), true);
  free(made);
  return code;
}

/* ---- publishing ---- */

static int unspool(collector *c) {
  if (fflush(c->spool) != 0) return no_file(c->o.dir ? c->o.dir : "a temporary file");
  if (!c->spooled) return CLI_OK;
  char *all = mmap(NULL, (size_t)c->spooled, PROT_READ, MAP_PRIVATE, fileno(c->spool), 0);
  if (all == MAP_FAILED) return no_file("the spool");
  int code = CLI_OK;
  for (uint64_t i = 0; i < c->o.order->items && code == CLI_OK; i++)
    if (c->len[i]) code = write_record(c, all + c->at[i], c->len[i] & ~FAILED_BIT, c->len[i] & FAILED_BIT);
  munmap(all, (size_t)c->spooled);
  return code;
}

static int publish(collector *c, int i) {
  char *path = btc_path_join(c->o.dir, names[i]);
  FILE *f = c->out[i];
  c->out[i] = NULL;
  bool good = path && fflush(f) == 0 && fsync(fileno(f)) == 0;
  if (fclose(f) != 0) good = false;
  good = good && rename(c->tmp[i], path) == 0;
  int code = good ? CLI_OK : no_file(path ? path : c->o.dir);
  if (good) {
    free(c->tmp[i]);
    c->tmp[i] = NULL;
  }
  free(path);
  return code;
}

int collector_finish(collector *c, collected *counts) {
  int code = c->spool ? unspool(c) : CLI_OK;
  for (int i = FILES - 1; i >= 0 && c->o.dir && code == CLI_OK; i--) /* the results last: who sees them sees the errors */
    if (c->out[i]) code = publish(c, i);
  if (code == CLI_OK && c->o.dir) {
    int fd = open(c->o.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0) code = no_file(c->o.dir);
    if (fd >= 0) close(fd);
  }
  if (counts) *counts = c->n;
  return code;
}

/* ---- a whole job ---- */

static int collect_dead(btc_client *client, const char *jid, collector *c) {
  uint64_t after = 0;
  for (bool end = false; !end;) {
    Btc__Envelope *reply;
    btc_error err;
    btc_status st = btc_client_dead(client, jid, after, 500, &reply, &err);
    if (st != BTC_OK) return client_failed(client, jid, st, &err);
    const Btc__DeadReply *d = reply->dead_reply;
    int code = CLI_OK;
    for (size_t i = 0; i < d->n_items && code == CLI_OK; i++) code = collector_dead(c, d->items[i]);
    end = d->end || d->next <= after;
    after = d->next;
    btc_wire_free(&reply);
    if (code != CLI_OK) return code;
  }
  return CLI_OK;
}

/* Sealing a finished job takes moments; a sink that stands still must not hold us for ever. */
int collect_job(btc_client *client, const char *jid, collector *c) {
  enum { PATIENCE_S = 60, NAP_MS = 100 };
  char cursor[128] = "";
  int64_t moved = btc_now_ns();
  for (bool end = false; !end;) {
    Btc__Envelope *reply;
    btc_error err;
    btc_status st = btc_client_results(client, jid, cursor, &reply, &err);
    if (st != BTC_OK) return client_failed(client, jid, st, &err);
    const Btc__ResultsReply *r = reply->results_reply;
    size_t len = strlen(r->lines);
    int code = *r->message && !len ? (cli_error("%s: %s", jid, r->message), CLI_FAILED) : collector_lines(c, r->lines, len);
    end = r->end;
    if (len || end) moved = btc_now_ns();
    if (strlen(r->cursor) < sizeof cursor) memcpy(cursor, r->cursor, strlen(r->cursor) + 1);
    btc_wire_free(&reply);
    if (code != CLI_OK) return code;
    if (btc_now_ns() - moved > PATIENCE_S * INT64_C(1000000000)) {
      cli_error("%s: its records are not all in files after %d s: is the broker's results folder full?", jid, PATIENCE_S);
      return CLI_FAILED;
    }
    if (!end && !len) cli_sleep_ms(NAP_MS);
  }
  return c->o.order ? collect_dead(client, jid, c) : CLI_OK;
}
