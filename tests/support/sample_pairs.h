/* Manifests of the pairs in samples/, and records as texts that can be compared: for tests of the nano model by several ways. */
#ifndef TEST_SAMPLE_PAIRS_H
#define TEST_SAMPLE_PAIRS_H

/* n pairs of the samples in turn, every seventh with the dates swapped, and number 5 without an image; ids 0000, 0001, ... Written
 * as NAME in the temporary directory. Returns its path (4 in turn). */
const char *sample_manifest(const char *name, int n);

/* All records of some lines of JSON (4,096 at most) without their timings, in the order of their ids, as one text. The caller
 * frees. */
char *records_comparable(const char *lines);

#endif
