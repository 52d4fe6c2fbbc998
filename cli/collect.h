/*
 * Records on their way out: to stdout, or into files that appear whole or not at all; as they come, or in the order of the manifest
 * (then they are spooled first: memory is 12 bytes an item, whatever the records weigh).
 */
#ifndef CLI_COLLECT_H
#define CLI_COLLECT_H

#include "broker_options.h"
#include "order.h"

typedef struct collector collector;

typedef struct collector_options {
  const char *dir;       /* for results.jsonl; NULL: stdout */
  bool split;            /* failed records go into errors.jsonl; dir only */
  const id_order *order; /* NULL: as they come */
} collector_options;

typedef struct collected {
  uint64_t good, failed;
} collected;

/* All return CLI_OK or the exit code of what was said. */
int collector_open(const collector_options *o, collector **out);
/* Whole lines. With an order, failed records are passed over: collector_dead brings them. */
int collector_lines(collector *c, const char *text, size_t len);
int collector_dead(collector *c, const Btc__DeadItem *d);
/* Publishes. */
int collector_finish(collector *c, collected *counts);
void collector_close(collector **c); /* what was not finished leaves no trace */

/* What is known of a record without parsing all of it: id (malloc'ed unless it is in the line: *owned), and whether it failed. */
bool record_head(const char *line, size_t len, const char **id, size_t *id_len, char **owned, bool *failed);

/* All records of a job that is over, failed ones included, in order: asks the broker for both. */
int collect_job(btc_client *client, const char *jid, collector *c);

#endif
