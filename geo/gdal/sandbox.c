/* Limits and the seccomp filter: see sandbox.h. An allow list: what is not named fails. */
#define _GNU_SOURCE
#include "geo/gdal/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define CALL(name) SCMP_SYS(name)

static const int allowed[] = {CALL(read),
                              CALL(pread64),
                              CALL(readv),
                              CALL(preadv),
                              CALL(lseek),
                              CALL(fstat),
                              CALL(close),
                              CALL(dup), /* descriptors it holds */
                              CALL(write),
                              CALL(writev),
                              CALL(recvmsg),
                              CALL(sendmsg),
                              CALL(poll),
                              CALL(ppoll), /* the socket */
                              CALL(mmap),
                              CALL(munmap),
                              CALL(mremap),
                              CALL(mprotect),
                              CALL(brk),
                              CALL(madvise), /* memory */
                              CALL(futex),
                              CALL(rt_sigaction),
                              CALL(rt_sigprocmask),
                              CALL(rt_sigreturn),
                              CALL(sigaltstack),
                              CALL(tgkill),
                              CALL(getpid),
                              CALL(gettid),
                              CALL(alarm),
                              CALL(setitimer),
                              CALL(exit),
                              CALL(exit_group),
                              CALL(restart_syscall),
                              CALL(sched_yield),
                              CALL(clock_gettime),
                              CALL(clock_getres),
                              CALL(clock_nanosleep),
                              CALL(nanosleep),
                              CALL(gettimeofday),
                              CALL(time),
                              CALL(times),
                              CALL(getrusage),
                              CALL(getrandom),
                              CALL(uname),
                              CALL(sysinfo),
                              CALL(getuid),
                              CALL(geteuid),
                              CALL(getgid),
                              CALL(getegid),
                              CALL(sched_getaffinity),
                              CALL(rseq),
                              CALL(set_robust_list),
                              CALL(getcpu),
                              CALL(membarrier)};

/* Only an attack makes these. */
static const int deadly[] = {CALL(execve),
                             CALL(execveat),
                             CALL(fork),
                             CALL(vfork),
                             CALL(ptrace),
                             CALL(process_vm_readv),
                             CALL(kill),
                             CALL(process_vm_writev),
                             CALL(tkill),
                             CALL(bpf),
                             CALL(io_uring_setup),
                             CALL(userfaultfd),
                             CALL(open_by_handle_at),
                             CALL(mount),
                             CALL(unshare),
                             CALL(setns),
                             CALL(keyctl),
                             CALL(perf_event_open),
                             CALL(pidfd_open),
                             CALL(prctl)};
static const int sockets[] = {CALL(socket), CALL(socketpair), CALL(connect), CALL(bind), CALL(listen), CALL(accept), CALL(accept4)};

/* --allow-vsi: what libcurl and the resolver need. */
static const int networking[] = {
    CALL(socket),     CALL(socketpair), CALL(connect),       CALL(bind),        CALL(sendto),     CALL(recvfrom),   CALL(sendmmsg),
    CALL(getsockopt), CALL(setsockopt), CALL(getsockname),   CALL(getpeername), CALL(ioctl),      CALL(clone),      CALL(clone3),
    CALL(pipe2),      CALL(eventfd2),   CALL(epoll_create1), CALL(epoll_ctl),   CALL(epoll_wait), CALL(stat),       CALL(lstat),
    CALL(newfstatat), CALL(statx),      CALL(access),        CALL(faccessat2),  CALL(readlink),   CALL(getdents64), CALL(getcwd),
    CALL(statfs),     CALL(prlimit64),  CALL(select),        CALL(pselect6)};

static int add_all(scmp_filter_ctx c, uint32_t action, const int *calls, size_t n) {
  int e = 0;
  for (size_t i = 0; i < n && e == 0; i++) e = seccomp_rule_add(c, action, calls[i], 0);
  return e;
}

#define ADD_ALL(c, action, calls) add_all(c, action, calls, sizeof calls / sizeof *calls)

/* fcntl: locks and flags of what it holds, as sqlite (PROJ's database) and stdio want; no F_DUPFD games matter. */
static int add_fcntl(scmp_filter_ctx c) {
  static const unsigned commands[] = {F_GETFL, F_GETFD, F_SETFD, F_SETLK, F_GETLK, F_OFD_SETLK};
  int e = 0;
  for (size_t i = 0; i < sizeof commands / sizeof *commands && e == 0; i++)
    e = seccomp_rule_add(c, SCMP_ACT_ALLOW, CALL(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, commands[i]));
  return e;
}

static int add_fstat_by_path(scmp_filter_ctx c) { /* glibc's fstat is newfstatat(fd, "", .., AT_EMPTY_PATH) */
  return seccomp_rule_add(c, SCMP_ACT_ALLOW, CALL(newfstatat), 1, SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH));
}

static int add_network(scmp_filter_ctx c) {
  int e = ADD_ALL(c, SCMP_ACT_ALLOW, networking);
  if (e == 0) e = seccomp_rule_add(c, SCMP_ACT_ALLOW, CALL(fcntl), 0);
  const uint64_t changing = O_ACCMODE | O_CREAT | O_TRUNC;
  if (e == 0) e = seccomp_rule_add(c, SCMP_ACT_ALLOW, CALL(openat), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, changing, O_RDONLY));
  if (e == 0) e = seccomp_rule_add(c, SCMP_ACT_ALLOW, CALL(open), 1, SCMP_A1(SCMP_CMP_MASKED_EQ, changing, O_RDONLY));
  return e;
}

static btc_status filter(bool network, btc_error *err) {
  scmp_filter_ctx c = seccomp_init(SCMP_ACT_ERRNO(EACCES));
  int e = c ? 0 : -ENOMEM;
  if (e == 0) e = ADD_ALL(c, SCMP_ACT_ALLOW, allowed);
  if (e == 0) e = ADD_ALL(c, SCMP_ACT_KILL_PROCESS, deadly);
  if (e == 0 && !network) e = ADD_ALL(c, SCMP_ACT_KILL_PROCESS, sockets);
  if (e == 0 && !network) e = add_fcntl(c);
  if (e == 0 && !network) e = add_fstat_by_path(c);
  if (e == 0 && network) e = add_network(c);
  if (e == 0) e = seccomp_load(c);
  if (c) seccomp_release(c);
  return e == 0 ? BTC_OK : btc_fail(err, BTC_ERR_UNSUPPORTED, "this kernel has no seccomp filters: %s", strerror(-e));
}

static int64_t mapped_bytes(void) {
  long long pages = 0;
  FILE *f = fopen("/proc/self/statm", "re");
  // NOLINTNEXTLINE(cert-err34-c): the kernel's own number
  if (!f || fscanf(f, "%lld", &pages) != 1) pages = 0;
  if (f) fclose(f);
  return pages * 4096;
}

static bool limit(int what, int64_t value) {
  const struct rlimit r = {(rlim_t)value, (rlim_t)value};
  return setrlimit(what, &r) == 0;
}

btc_status sandbox_enter(const sandbox_options *o, btc_error *err) {
  bool ok = limit(RLIMIT_CORE, 0) && limit(RLIMIT_FSIZE, 0) && limit(RLIMIT_CPU, o->cpu_s);
#if !defined(__SANITIZE_ADDRESS__) /* which maps 20 TiB */
  ok = ok && limit(RLIMIT_AS, mapped_bytes() + o->memory_bytes);
#else
  (void)mapped_bytes;
#endif
  if (!ok) return btc_fail(err, BTC_ERR_IO, "cannot set limits: %s", strerror(errno));
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
    return btc_fail(err, BTC_ERR_IO, "cannot give up privileges: %s", strerror(errno));
  return filter(o->network, err);
}
