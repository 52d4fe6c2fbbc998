/* Jobs as the queue's commands show and await them. */
#ifndef CLI_JOBS_H
#define CLI_JOBS_H

#include <jansson.h>

#include "broker_options.h"
#include "progress.h"

bool job_over(const Btc__Job *j);              /* finished or cancelled to the end */
const char *job_state_text(const Btc__Job *j); /* "running", "paused", "finished", "cancelling", "cancelled" */
uint64_t job_ended(const Btc__Job *j);
/* 0 all done, 3 some failed, 1 cancelled: the exit code of a job that is over. */
int job_code(const Btc__Job *j);
json_t *job_json(const Btc__Job *j);              /* NULL: no memory */
void job_print(const Btc__Job *j);                /* some lines on stdout */
void jobs_print(Btc__Job *const *jobs, size_t n); /* a table on stdout */
progress_state job_progress(const Btc__Job *j);

/* Prints the JSON and frees it. Returns CLI_OK or CLI_FAILED. */
int print_json(json_t *o);

/* Asks once a second until the job is over, with progress. *out (btc_wire_free) is then the last status reply. Returns CLI_OK when
 * it is over; else the exit code of what was said. Stays through pauses, and says so. */
int job_wait(btc_client *c, const char *jid, Btc__Envelope **out);
/* Sleeps up to ms, or until the user interrupts. */
void cli_sleep_ms(int ms);

#endif
