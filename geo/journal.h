/*
 * What a scene's run has finished, in one file that is only ever appended to: an entry a window, its record and its change cells.
 * A process that is killed leaves whole entries and at most one torn one, which the next opening cuts off; so a run goes on where
 * it was and no finished window is computed twice.
 *
 * File: "BTCSCENE" and a version, key, number of windows; then entries (length, index, digest, bytes). Written for one machine: its
 * byte order. Entries reach the disk when btc_journal_sync says so; a power cut may cost those since.
 * Memory: 8 bytes a window. One process at a time (flock), one thread at a time.
 */
#ifndef BTC_GEO_JOURNAL_H
#define BTC_GEO_JOURNAL_H

#include "base/base.h"

typedef struct btc_journal btc_journal;

/* The largest record; with it the largest entry that is believed. */
#define BTC_JOURNAL_MAX_RECORD (1u << 20)

/* Opens or makes the file. key: 64 hex digits that stand for everything that decides the results. count: windows. cells: change
 * cells of an entry that has any. ARG when the file is another run's (other key, count or cells): it is left alone, unless
 * `afresh`, which empties it. LIMIT: another process has it open. IO: the system refused, with its reason. */
btc_status btc_journal_open(const char *path, const char *key, uint64_t count, uint32_t cells, bool afresh, btc_journal **out,
                            btc_error *err);
void btc_journal_close(btc_journal **j); /* NULL is fine */

uint64_t btc_journal_finished(const btc_journal *j); /* windows with an entry */
bool btc_journal_has(const btc_journal *j, uint64_t index);
/* cells: [cells] or NULL: the window has none. An entry that could not be written whole is taken back. ARG: it has one already. */
btc_status btc_journal_append(btc_journal *j, uint64_t index, const char *record, const uint16_t *cells, btc_error *err);
/* *record: malloc'ed, terminated, the caller's; record NULL: not wanted. cells: room for them, or NULL; *has_cells may be NULL. */
btc_status btc_journal_read(btc_journal *j, uint64_t index, char **record, uint16_t *cells, bool *has_cells, btc_error *err);
btc_status btc_journal_sync(btc_journal *j, btc_error *err);

#endif
