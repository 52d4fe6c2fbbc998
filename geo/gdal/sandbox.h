/*
 * What the decoder may still do once it reads what we do not trust: compute, read and write descriptors that it holds, map memory
 * up to a bound, answer, end. No file can be opened or changed, no process or thread started, no socket made. Calls that a library
 * may try in good faith (open, stat) fail with EACCES; those that only an attack makes (exec, socket, ptrace, ...) kill.
 */
#ifndef GEO_GDAL_SANDBOX_H
#define GEO_GDAL_SANDBOX_H

#include "base/base.h"

typedef struct sandbox_options {
  int64_t memory_bytes; /* address space over what is mapped already */
  int cpu_s;            /* processor time of its whole life */
  bool network;         /* --allow-vsi: sockets, threads and reading files are allowed; changing files, exec and the like are not */
} sandbox_options;

/* For good. UNSUPPORTED: the kernel has no seccomp filters; then nothing may be decoded. */
btc_status sandbox_enter(const sandbox_options *o, btc_error *err);

#endif
