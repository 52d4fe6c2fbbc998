/* btcchat workers: the fleet. btcchat drain: asks one of it to stop. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>

#include "fleet.h"
#include "jobs.h"

static int run_workers(int argc, char **argv);
static int run_drain(int argc, char **argv);

const cli_command cmd_workers = {
    .name = "workers",
    .arguments = "",
    .summary = "the workers, what they run and how fast",
    .run = run_workers,
};

const cli_command cmd_drain = {
    .name = "drain",
    .arguments = "WORKER",
    .summary = "asks a worker to finish what it has begun, hand back the rest and stop",
    .details = "Returns when the worker was told; 'btcchat workers' shows it go. With keys this needs an admin's.",
    .run = run_drain,
};

/* "cuda:0, NVIDIA H200: 60.1 of 139.8 GiB in use, 93 % busy" */
static void device_print(const Btc__Device *d) {
  double all = (double)d->memory_bytes / 1073741824, free_part = (double)d->free_bytes / 1073741824;
  printf("%s: %.1f of %.1f GiB in use", d->name, all - free_part, all);
  if (d->busy_known) printf(", %.0f %% busy", d->busy * 100);
  putchar('\n');
}

void devices_print(Btc__WorkerInfo *const *workers, size_t n) {
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; k < workers[i]->n_devices; k++) {
      printf("device: worker %s, ", workers[i]->worker);
      device_print(workers[i]->devices[k]);
    }
}

static json_t *device_json(const Btc__Device *d) {
  return json_pack("{s:s,s:I,s:I,s:o}", "name", d->name, "memory_bytes", (json_int_t)d->memory_bytes, "free_bytes",
                   (json_int_t)d->free_bytes, "busy", d->busy_known ? json_real(d->busy) : json_null());
}

json_t *devices_json(Btc__WorkerInfo *const *workers, size_t n) {
  json_t *list = json_array();
  for (size_t i = 0; list && i < n; i++)
    for (size_t k = 0; k < workers[i]->n_devices; k++) {
      json_t *o = device_json(workers[i]->devices[k]);
      if (o) json_object_set_new(o, "worker", json_string(workers[i]->worker));
      json_array_append_new(list, o);
    }
  return list;
}

void workers_print(Btc__WorkerInfo *const *workers, size_t n) {
  if (n)
    printf("%-24s %-9s %-7s %-16s %8s %12s %10s %9s %10s  %s\n", "WORKER", "STATE", "ENGINE", "MODEL", "IN HAND", "DONE", "ITEMS/S",
           "MEMORY", "AGE", "BROKER");
  for (size_t i = 0; i < n; i++) {
    const Btc__WorkerInfo *w = workers[i];
    char age[32], memory[32];
    snprintf(memory, sizeof memory, "%.0f MiB", (double)w->rss_bytes / 1048576);
    printf("%-24s %-9s %-7s %-16s %3u of %-3u %10" PRIu64 " %10.3g %9s %10s  %s\n", w->worker, w->state, w->engine, w->model_name,
           w->in_hand, w->credits, w->items_done, w->items_per_s >= 0.001 ? w->items_per_s : 0, memory,
           duration_text((double)w->age_ms / 1e3, age, sizeof age), w->broker);
    for (size_t k = 0; k < w->n_devices; k++) {
      printf("  ");
      device_print(w->devices[k]);
    }
  }
}

static json_t *worker_json(Btc__WorkerInfo *const *one) {
  const Btc__WorkerInfo *w = *one;
  return json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:f,s:I,s:I,s:I,s:s,s:s,s:o}", "worker", w->worker, "state", w->state,
                   "engine", w->engine, "model", w->model_name, "class", w->model_class, "credits", (json_int_t)w->credits,
                   "in_hand", (json_int_t)w->in_hand, "items_done", (json_int_t)w->items_done, "items_per_s", w->items_per_s,
                   "rss_bytes", (json_int_t)w->rss_bytes, "age_ms", (json_int_t)w->age_ms, "seen_ms_ago",
                   (json_int_t)w->last_seen_ms, "broker", w->broker, "program", w->program, "devices", devices_json(one, 1));
}

static int show_workers(btc_client *c, bool json) {
  Btc__Envelope *reply;
  btc_error err;
  btc_status st = btc_client_workers(c, &reply, &err);
  if (st != BTC_OK) return client_failed(c, NULL, st, &err);
  const Btc__WorkersReply *w = reply->workers_reply;
  int code = CLI_OK;
  if (json) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < w->n_workers; i++) json_array_append_new(list, worker_json(&w->workers[i]));
    code = print_json(list);
  } else {
    workers_print(w->workers, w->n_workers);
    if (!w->n_workers) fprintf(stderr, "btcchat: no worker is connected; start one with 'btcchat worker'\n");
  }
  btc_wire_free(&reply);
  return code;
}

static int run_workers(int argc, char **argv) {
  return run_list(&cmd_workers, argc, argv, show_workers);
}

static int run_drain(int argc, char **argv) {
  broker_options b = broker_options_default;
  double grace_s = 60;
  cli_option table[] = {
      BROKER_OPTION_ROWS(b),
      {.name = "grace",
       .type = CLI_REAL,
       .target = &grace_s,
       .value = "SECONDS",
       .help = "time to finish what it has begun, seconds (default 60)",
       .low = 0,
       .high = 86400},
  };
  char **args;
  int n, code;
  btc_client *c = NULL;
  btc_error err;
  if (!cli_parse(&cmd_drain, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_drain, "one WORKER expected, got %d", n);
  if (!*args[0]) return cli_usage_error(&cmd_drain, "the WORKER is empty");
  if ((code = open_client(&b, &c)) == CLI_OK) {
    btc_status st = btc_client_drain(c, args[0], (int64_t)(grace_s * 1000), &err);
    if (st != BTC_OK) code = client_failed(c, args[0], st, &err);
  }
  btc_client_close(&c);
  return code;
}
