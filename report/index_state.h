/* What index.c and index_search.c share. */
#ifndef BTC_INDEX_STATE_H
#define BTC_INDEX_STATE_H

#include <limits.h>

#include "index.h"
#include "sql.h"

struct btc_index {
  sqlite3 *db;
  char path[PATH_MAX];
  bool rebuilt;
};

#endif
