/* What the stand-ins of CUDA's libraries saw, for tests that link them. Reset by assigning zeros while no backend works. */
#ifndef TEST_FAKE_H
#define TEST_FAKE_H

#include <stdint.h>

enum { FAKE_PRODUCTS = 65536 };

typedef struct fake_product {
  int64_t m, n, k; /* rows of x, outputs, columns */
} fake_product;

typedef struct fake_seen {
  int64_t to_host, to_device, within; /* bytes copied: from the device, to it, from place to place there */
  int64_t recorded, repeated;         /* sequences: recorded, and launched as recordings */
  int64_t most_beside; /* copies not done, at a time, of a stream that has had nothing but copies from pinned memory */
  int64_t waits;       /* of a stream for another one's event */
  int64_t launches;    /* of kernels that ran at once, not of those that a recording repeats */
  int64_t n_products;  /* cuBLASLt's; the first FAKE_PRODUCTS are kept */
  fake_product product[FAKE_PRODUCTS];
} fake_seen;

extern fake_seen fake;
int64_t fake_streams(void); /* that have not been destroyed */
int64_t fake_held(void);    /* bytes of the device's memory that have not been freed */

/* Whether this thread's stream is being recorded; and that something happened which a recording does not survive. */
int fake_is_recording(void);
void fake_spoil_recording(void);

#endif
