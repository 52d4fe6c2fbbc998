#include "shadow.h"

#include <cstdlib>
#include <unordered_map>

enum { PAGE_BITS = 12, PAGE = 1 << PAGE_BITS, SEATS = 1024, MOST_PAGES = 4096 /* of 64 to 256 KiB */ };

struct page {
  btc_shim_cell *cells;
  uintptr_t number;
  int shift; /* a cell stands for 1 << shift bytes */
};

static std::unordered_map<uintptr_t, page *> pages;
static page *seats[SEATS]; /* the last page used of those with the same low bits */

static btc_shim_cell *new_cells(int shift) {
  return static_cast<btc_shim_cell *>(calloc(static_cast<size_t>(PAGE >> shift), sizeof(btc_shim_cell)));
}

static page *page_at(uintptr_t number) {
  page **seat = &seats[number % SEATS];
  if (*seat && (*seat)->number == number) return *seat;
  page *&p = pages[number];
  if (!p) p = new page{new_cells(2), number, 2};
  *seat = p;
  return p;
}

/* What is known of four bytes is known of each. */
static void split(page *p, int shift) {
  btc_shim_cell *finer = new_cells(shift);
  if (finer)
    for (int i = 0; i < PAGE >> shift; i++) finer[i] = p->cells[i >> (p->shift - shift)];
  free(p->cells);
  p->cells = finer;
  p->shift = shift;
}

btc_shim_cell *btc_shim_shadow(uintptr_t at, size_t *bytes, int *n_cells) {
  page *p = page_at(at >> PAGE_BITS);
  size_t from = at % PAGE;
  if (*bytes > PAGE - from) *bytes = PAGE - from;
  int shift = (from | *bytes) % 2 ? 0 : (from | *bytes) % 4 ? 1 : 2;
  if (p->cells && shift < p->shift) split(p, shift);
  if (!p->cells) return nullptr;
  *n_cells = static_cast<int>(*bytes >> p->shift);
  return p->cells + (from >> p->shift);
}

void btc_shim_shadow_trim() {
  if (pages.size() > MOST_PAGES) btc_shim_shadow_forget();
}

void btc_shim_shadow_forget() {
  for (auto &entry : pages) {
    free(entry.second->cells);
    delete entry.second;
  }
  pages.clear();
  for (page *&seat : seats) seat = nullptr;
}
