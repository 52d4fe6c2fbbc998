/* See gallery.h. */
#define _GNU_SOURCE
#include "gallery.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "page_files.h"
#include "pictures.h"

enum { QUALITY = 88, PER_FOLDER = 1000, NAME_ROOM = 64 };

struct btc_gallery {
  char out[PATH_MAX], tmp[PATH_MAX + NAME_ROOM];
  char *title, *tiles;
  bool replace, plane, published;
  uint64_t n;
  unsigned chunks;
  json_t *chunk; /* array */
  double top_score;
  btc_sha256 ids;
};

static btc_status failed(btc_error *err, const char *verb, const char *path) {
  return btc_fail(err, BTC_ERR_IO, "cannot %s '%s': %s", verb, path, strerror(errno));
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *w) {
  (void)s;
  (void)type;
  (void)w;
  return remove(path);
}

static void remove_tree(const char *path) {
  nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static btc_status make_folder(const btc_gallery *g, const char *name, btc_error *err) {
  char path[PATH_MAX + 2 * NAME_ROOM];
  snprintf(path, sizeof path, "%s/%s", g->tmp, name);
  return mkdir(path, 0777) == 0 || errno == EEXIST ? BTC_OK : failed(err, "make the folder", path);
}

/* The folder as a whole is what is published: files in it are written as they are. */
static btc_status write_file(const btc_gallery *g, const char *name, const void *data, size_t len, btc_error *err) {
  char path[PATH_MAX + 2 * NAME_ROOM];
  snprintf(path, sizeof path, "%s/%s", g->tmp, name);
  FILE *f = fopen(path, "wxe");
  if (!f) return failed(err, "write", path);
  bool good = fwrite(data, 1, len, f) == len;
  return fclose(f) == 0 && good ? BTC_OK : failed(err, "write", path);
}

static btc_status check_place(const btc_gallery *g, btc_error *err) {
  struct stat s;
  char header[PATH_MAX + NAME_ROOM];
  if (lstat(g->out, &s) != 0) return errno == ENOENT ? BTC_OK : failed(err, "look at", g->out);
  if (S_ISDIR(s.st_mode) && rmdir(g->out) == 0) return BTC_OK; /* an empty folder is as good as none */
  snprintf(header, sizeof header, "%s/data/header.js", g->out);
  if (!S_ISDIR(s.st_mode) || access(header, F_OK) != 0)
    return btc_fail(err, BTC_ERR_ARG, "'%s' is there and is no gallery: give another place", g->out);
  if (!g->replace) return btc_fail(err, BTC_ERR_ARG, "'%s' is there already (--replace puts the new gallery in its place)", g->out);
  return BTC_OK;
}

/* The page may load nothing from anywhere (its Content-Security-Policy), unless there are tiles: then pictures from their server.
 */
static btc_status write_page(btc_gallery *g, const char *data, size_t len, btc_error *err) {
  static const char mark[] = "img-src 'self' data:",
                    plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-:[]";
  const char *host = g->tiles, *at = memmem(data, len, mark, strlen(mark));
  if (!host) return write_file(g, "index.html", data, len, err);
  host = strncmp(host, "https://", 8) == 0 ? host + 8 : strncmp(host, "http://", 7) == 0 ? host + 7 : NULL;
  const char *name = host && strncmp(host, "{s}.", 4) == 0 ? host + 4 : host; /* servers a., b., c. */
  size_t n = name ? strspn(name, plain) : 0;
  if (!at || !n || name[n] != '/')
    return btc_fail(err, BTC_ERR_ARG, "'%s' is no address of tiles like https://tiles.example/{z}/{x}/{y}.png", g->tiles);
  size_t head = (size_t)(at - data) + strlen(mark);
  char *page = NULL;
  int size = asprintf(&page, "%.*s %.*s%s%.*s%.*s", (int)head, data, (int)(host - g->tiles), g->tiles, name == host ? "" : "*.",
                      (int)n, name, (int)(len - head), data + head);
  if (size < 0) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a gallery");
  btc_status st = write_file(g, "index.html", page, (size_t)size, err);
  free(page);
  return st;
}

btc_status btc_gallery_create(const char *out, const btc_gallery_options *o, btc_gallery **result, btc_error *err) {
  btc_gallery *g = *result = btc_alloc_zero(1, sizeof *g);
  size_t n = strlen(out);
  while (n > 1 && out[n - 1] == '/') n--;
  if (!g || n >= PATH_MAX) {
    btc_gallery_close(result);
    return g ? btc_fail(err, BTC_ERR_ARG, "the gallery's path is too long")
             : btc_fail(err, BTC_ERR_NOMEM, "no memory for a gallery");
  }
  snprintf(g->out, sizeof g->out, "%.*s", (int)n, out);
  g->title = btc_strdup(o->title);
  g->tiles = btc_strdup(o->tiles);
  g->replace = o->replace;
  g->plane = o->plane;
  g->chunk = json_array();
  btc_sha256_init(&g->ids);
  btc_status st = g->title && g->chunk ? check_place(g, err) : btc_fail(err, BTC_ERR_NOMEM, "no memory for a gallery");
  if (st == BTC_OK) {
    snprintf(g->tmp, sizeof g->tmp, "%s.tmp.%ld", g->out, (long)getpid());
    if (mkdir(g->tmp, 0777) != 0) {
      st = failed(err, "make the folder", g->tmp);
      g->tmp[0] = 0;
    }
  }
  if (st == BTC_OK) st = make_folder(g, "data", err);
  if (st == BTC_OK) st = make_folder(g, "images", err);
  for (size_t i = 0; st == BTC_OK && i < sizeof page_files / sizeof page_files[0]; i++)
    st = strcmp(page_files[i].name, "index.html") == 0
             ? write_page(g, (const char *)page_files[i].data, page_files[i].len, err)
             : write_file(g, page_files[i].name, page_files[i].data, page_files[i].len, err);
  if (st != BTC_OK) btc_gallery_close(result);
  return st;
}

uint64_t btc_gallery_count(const btc_gallery *g) {
  return g->n;
}

void btc_gallery_close(btc_gallery **g) {
  if (!*g) return;
  if (!(*g)->published && *(*g)->tmp) remove_tree((*g)->tmp);
  free((*g)->title);
  free((*g)->tiles);
  json_decref((*g)->chunk);
  free(*g);
  *g = NULL;
}

/* A call as a script. Everything that is not ASCII is escaped: the line separators that end a script's line are. */
static btc_status write_call(const btc_gallery *g, const char *name, const char *function, const json_t *argument, btc_error *err) {
  char *json = json_dumps(argument, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(12)), *text = NULL;
  int n = json ? asprintf(&text, "btcchat.%s(%s);\n", function, json) : -1;
  btc_status st = n < 0 ? btc_fail(err, BTC_ERR_NOMEM, "no memory for '%s'", name) : write_file(g, name, text, (size_t)n, err);
  if (n >= 0) free(text);
  free(json);
  return st;
}

static btc_status flush_chunk(btc_gallery *g, btc_error *err) {
  char name[NAME_ROOM];
  if (!json_array_size(g->chunk)) return BTC_OK;
  snprintf(name, sizeof name, "data/%04u.js", ++g->chunks);
  btc_status st = write_call(g, name, "chunk", g->chunk, err);
  json_array_clear(g->chunk);
  return st;
}

static btc_status picture(btc_gallery *g, json_t *record, const char *key, const btc_image *im, bool png, btc_error *err) {
  char name[NAME_ROOM], path[PATH_MAX + 2 * NAME_ROOM];
  if (!im || !im->rgb) return BTC_OK;
  snprintf(name, sizeof name, "images/%03" PRIu64 "/%06" PRIu64 "-%s.%s", g->n / PER_FOLDER, g->n, key, png ? "png" : "jpg");
  json_object_set_new(record, key, json_string(name));
  if (!png) {
    snprintf(path, sizeof path, "%s/%s", g->tmp, name);
    return btc_jpeg_write(im, path, QUALITY, err);
  }
  uint8_t *data;
  size_t len;
  btc_status st = btc_image_encode_png(im, &data, &len, err);
  if (st != BTC_OK) return st;
  st = write_file(g, name, data, len, err);
  free(data);
  return st;
}

static btc_status pictures(btc_gallery *g, json_t *record, const btc_gallery_pictures *p, btc_error *err) {
  char folder[NAME_ROOM];
  snprintf(folder, sizeof folder, "images/%03" PRIu64, g->n / PER_FOLDER);
  btc_status st = g->n % PER_FOLDER == 0 ? make_folder(g, folder, err) : BTC_OK;
  if (st == BTC_OK) st = picture(g, record, "before", p->before, false, err);
  if (st == BTC_OK) st = picture(g, record, "after", p->after, false, err);
  if (st == BTC_OK) st = picture(g, record, "heat", p->heat, true, err);
  if (p->heat && p->heat->rgb) json_object_set_new(record, "top", json_real(p->top));
  if (p->before && p->before->rgb) {
    json_object_set_new(record, "width", json_integer(p->before->width));
    json_object_set_new(record, "height", json_integer(p->before->height));
  }
  return st;
}

btc_status btc_gallery_add(btc_gallery *g, json_t *record, const btc_gallery_pictures *p, btc_error *err) {
  const char *id = json_string_value(json_object_get(record, "id"));
  double score = json_number_value(json_object_get(record, "score"));
  btc_status st = pictures(g, record, p, err);
  if (id) btc_sha256_update(&g->ids, id, strlen(id) + 1);
  if (score > g->top_score) g->top_score = score;
  if (json_array_append_new(g->chunk, record) != 0 && st == BTC_OK) st = btc_fail(err, BTC_ERR_NOMEM, "no memory for a record");
  g->n++;
  if (st == BTC_OK && json_array_size(g->chunk) == BTC_GALLERY_CHUNK) st = flush_chunk(g, err);
  return st;
}

static btc_status write_header(btc_gallery *g, btc_error *err) {
  uint8_t digest[32];
  char hex[33];
  btc_sha256_final(&g->ids, digest);
  for (int i = 0; i < 16; i++) snprintf(hex + (ptrdiff_t)2 * i, 3, "%02x", digest[i]);
  json_t *title = json_string(g->title);
  json_t *o =
      json_pack("{s:i, s:o, s:s, s:I, s:i, s:f, s:b}", "v", 1, "title", title ? title : json_string("gallery"), "digest", hex,
                "records", (json_int_t)g->n, "chunks", (int)g->chunks, "top_score", g->top_score, "plane", (int)g->plane);
  if (g->tiles) json_object_set_new(o, "tiles", json_string(g->tiles));
  btc_status st = write_call(g, "data/header.js", "header", o, err);
  json_decref(o);
  return st;
}

/* One sync of the file system in place of one a picture. */
static btc_status sync_all(const btc_gallery *g, btc_error *err) {
  int fd = open(g->tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return failed(err, "open", g->tmp);
  int r = syncfs(fd);
  close(fd);
  return r == 0 ? BTC_OK : failed(err, "sync", g->tmp);
}

btc_status btc_gallery_publish(btc_gallery *g, btc_error *err) {
  char old[PATH_MAX + NAME_ROOM];
  btc_status st = flush_chunk(g, err);
  if (st == BTC_OK) st = write_header(g, err);
  if (st == BTC_OK) st = sync_all(g, err);
  if (st == BTC_OK) st = check_place(g, err);
  if (st != BTC_OK) return st;
  snprintf(old, sizeof old, "%s.old.%ld", g->out, (long)getpid());
  bool there = rename(g->out, old) == 0;
  if (rename(g->tmp, g->out) != 0) {
    st = failed(err, "rename to", g->out);
    if (there && rename(old, g->out) != 0) return st;
    return st;
  }
  g->published = true;
  if (there) remove_tree(old);
  return BTC_OK;
}
