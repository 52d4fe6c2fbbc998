/* The tensor files of one part: one file, or shards named by an index (spec 2.1). The index may only name plain files beside it. */
#define _GNU_SOURCE
#include "checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"

#define MAX_SHARDS 1024
static const btc_json_limits index_limits = {16u << 20, 1000000};

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard is a plain file name: nothing of the index may lead out of the folder. */
static btc_status check_shard_name(const char *label, const char *tensor, const json_t *v, btc_error *err) {
  if (!json_is_string(v))
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': the shard of tensor '%.256s' is not a file name", label, tensor);
  const char *name = json_string_value(v);
  size_t len = strlen(name), tail = strlen(".safetensors");
  if (len > 255 || len <= tail || strcmp(name + len - tail, ".safetensors") != 0 || strchr(name, '/') || strchr(name, '\\') ||
      name[0] == '.')
    return btc_fail(err, BTC_ERR_FORMAT,
                    "'%s': the shard '%.256s' of tensor '%.256s' is not the name of a .safetensors file beside it", label, name,
                    tensor);
  return BTC_OK;
}

/* Distinct shard names, sorted; *names is malloc'ed, the strings are borrowed from map. */
static btc_status shard_names(const char *label, json_t *map, const char ***names, size_t *count, btc_error *err) {
  size_t n = 0, distinct = 0;
  const char **list = btc_alloc(json_object_size(map), sizeof *list);
  if (!list) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", label);
  *names = list;
  const char *tensor;
  json_t *v;
  json_object_foreach(map, tensor, v) {
    btc_status st = check_shard_name(label, tensor, v, err);
    if (st != BTC_OK) return st;
    list[n++] = json_string_value(v);
  }
  qsort(list, n, sizeof *list, by_text);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || strcmp(list[i], list[distinct - 1]) != 0) list[distinct++] = list[i];
  if (distinct > MAX_SHARDS)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': %zu shards, at most %d are opened", label, distinct, MAX_SHARDS);
  *count = distinct;
  return BTC_OK;
}

static btc_status open_file(btc_part_tensors *p, const char *dir, const char *name, btc_error *err) {
  char *path = btc_path_join(dir, name);
  if (!path) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", p->label);
  btc_status st = btc_safetensors_open(path, &p->file[p->n_files], err);
  free(path);
  if (st == BTC_OK) p->n_files++;
  return st;
}

/* The map must tell the truth; tensors that it does not mention are found all the same. */
static btc_status check_map(const btc_part_tensors *p, json_t *map, const char *const *names, btc_error *err) {
  const char *tensor;
  json_t *v;
  json_object_foreach(map, tensor, v) {
    const char *name = json_string_value(v);
    const char **at = names ? bsearch(&name, names, p->n_files, sizeof *names, by_text) : NULL;
    if (!at || !btc_safetensors_find(p->file[at - names], tensor))
      return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%.256s' is not in '%s', where the index says it is", p->label, tensor,
                      name);
  }
  return BTC_OK;
}

static btc_status open_shards(btc_part_tensors *p, const char *dir, btc_error *err) {
  json_t *index = NULL;
  const char **names = NULL;
  size_t count = 0;
  btc_status st = btc_json_read(p->label, &index_limits, &index, err);
  if (st != BTC_OK) return st;
  json_t *map = json_object_get(index, "weight_map");
  if (!json_is_object(map) || json_object_size(map) == 0) {
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s': there is no weight_map", p->label);
    goto out;
  }
  if ((st = shard_names(p->label, map, &names, &count, err)) != BTC_OK) goto out;
  if (!(p->file = btc_alloc_zero(count, sizeof *p->file))) {
    st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", p->label);
    goto out;
  }
  for (size_t i = 0; i < count && st == BTC_OK; i++) st = open_file(p, dir, names[i], err);
  if (st == BTC_OK) st = check_map(p, map, names, err);
out:
  free(names);
  json_decref(index);
  return st;
}

btc_status btc_part_open_files(btc_part_tensors *p, const char *dir, btc_error *err) {
  char *single = btc_path_join(dir, "model.safetensors"), *index = btc_path_join(dir, "model.safetensors.index.json");
  struct stat sb;
  btc_status st;
  if (!single || !index) {
    st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", dir);
  } else if (lstat(single, &sb) != 0 && lstat(index, &sb) == 0) {
    p->label = index;
    index = NULL;
    st = open_shards(p, dir, err);
  } else {
    p->label = single;
    single = NULL;
    p->file = btc_alloc_zero(1, sizeof *p->file);
    st = p->file ? open_file(p, dir, "model.safetensors", err) : btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", dir);
  }
  free(single);
  free(index);
  return st;
}
