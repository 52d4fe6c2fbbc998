/* Names of a folder and the set of ids: see manifest_pairs.h. */
#define _GNU_SOURCE
#include "manifest_pairs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- names ---- */

void btc_names_free(btc_names *l) {
  free(l->text);
  free(l->at);
  *l = (btc_names){0};
}

const char *btc_names_at(const btc_names *l, size_t i) {
  return l->text + l->at[i];
}

static bool grow(void **p, size_t *room, size_t need, size_t size) {
  if (need <= *room) return true;
  size_t wider = *room ? *room * 2 : 1024;
  while (wider < need) wider *= 2;
  void *q = btc_realloc(*p, wider, size);
  if (!q) return false;
  *p = q;
  *room = wider;
  return true;
}

static bool add_name(btc_names *l, const char *name) {
  size_t len = strlen(name) + 1;
  if (!grow((void **)&l->text, &l->text_room, l->text_used + len, 1)) return false;
  if (!grow((void **)&l->at, &l->at_room, l->n + 1, sizeof *l->at)) return false;
  memcpy(l->text + l->text_used, name, len);
  l->at[l->n++] = l->text_used;
  l->text_used += len;
  return true;
}

/* Asks the file system only when the folder's entry does not tell. */
static bool is_file(int dir, const struct dirent *e) {
  if (e->d_type != DT_UNKNOWN && e->d_type != DT_LNK) return e->d_type == DT_REG;
  struct stat sb;
  return fstatat(dir, e->d_name, &sb, 0) != 0 || S_ISREG(sb.st_mode); /* a dangling link is reported when it is read */
}

static int by_name(const void *a, const void *b, void *text) {
  return strcmp((char *)text + *(const size_t *)a, (char *)text + *(const size_t *)b);
}

btc_status btc_names_read(btc_names *l, const char *dir, size_t max, btc_error *err) {
  *l = (btc_names){0};
  DIR *d = opendir(dir);
  if (!d)
    return btc_fail(err, errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open the folder '%s': %s",
                    dir, strerror(errno));
  btc_status st = BTC_OK;
  const struct dirent *e;
  while (st == BTC_OK && (errno = 0, e = readdir(d)) != NULL) {
    if (e->d_name[0] == '.' || !is_file(dirfd(d), e)) continue;
    if (l->n == max)
      st = btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %zu files", dir, max);
    else if (!add_name(l, e->d_name))
      st = btc_fail(err, BTC_ERR_NOMEM, "'%s': not enough memory for the names of %zu files", dir, l->n);
  }
  if (st == BTC_OK && errno) st = btc_fail(err, BTC_ERR_IO, "cannot read the folder '%s': %s", dir, strerror(errno));
  closedir(d);
  if (st != BTC_OK)
    btc_names_free(l);
  else if (l->n)
    qsort_r(l->at, l->n, sizeof *l->at, by_name, l->text);
  return st;
}

/* ---- ids ---- */

void btc_id_set_free(btc_id_set *s) {
  free(s->slot);
  *s = (btc_id_set){0};
}

/* Where the key is, or the free slot where it belongs (linear probing). */
static size_t find_slot(const btc_id_set *s, const uint64_t key[2]) {
  size_t i = key[0] & (s->slots - 1);
  while ((s->slot[i][0] || s->slot[i][1]) && memcmp(s->slot[i], key, 16) != 0) i = (i + 1) & (s->slots - 1);
  return i;
}

static bool widen(btc_id_set *s) {
  btc_id_set wider = {.slots = s->slots ? s->slots * 2 : 1024, .used = s->used};
  wider.slot = btc_alloc_zero(wider.slots, sizeof *wider.slot);
  if (!wider.slot) return false;
  for (size_t i = 0; i < s->slots; i++)
    if (s->slot[i][0] || s->slot[i][1]) memcpy(wider.slot[find_slot(&wider, s->slot[i])], s->slot[i], 16);
  free(s->slot);
  *s = wider;
  return true;
}

btc_status btc_id_set_add(btc_id_set *s, const char *id, size_t max, bool *fresh, btc_error *err) {
  if (s->used >= s->slots / 8 * 7 && !widen(s))
    return btc_fail(err, BTC_ERR_NOMEM, "not enough memory to remember %zu ids", s->used);
  btc_sha256 hash;
  uint8_t digest[32];
  uint64_t key[2];
  btc_sha256_init(&hash);
  btc_sha256_update(&hash, id, strlen(id));
  btc_sha256_final(&hash, digest);
  memcpy(key, digest, sizeof key);
  if (!key[0] && !key[1]) key[0] = 1; /* {0,0} marks free slots */
  size_t i = find_slot(s, key);
  *fresh = !s->slot[i][0] && !s->slot[i][1];
  if (!*fresh) return BTC_OK;
  if (s->used == max) return btc_fail(err, BTC_ERR_LIMIT, "more than %zu items", max);
  memcpy(s->slot[i], key, sizeof key);
  s->used++;
  return BTC_OK;
}
