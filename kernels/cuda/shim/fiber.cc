/*
 * Fibers. On x86-64 a switch is a dozen instructions of our own, because swapcontext makes two system calls and a kernel's test
 * switches millions of times; elsewhere it is swapcontext. AddressSanitizer is told of every switch. A page below each stack
 * catches overflow.
 */
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 256 << 10 }; /* red zones make frames large */
#else
enum { STACK_BYTES = 64 << 10 };
#endif

#if defined(__x86_64__)
typedef void *machine_context;
#else
typedef ucontext_t machine_context;
#endif

struct btc_fiber {
  machine_context context;
  void (*entry)(void *);
  void *argument;
  char *stack;
  void *fake_stack; /* AddressSanitizer's */
  bool started;
};

static machine_context scheduler;
static btc_fiber *current;
const char *btc_fiber_low, *btc_fiber_high;

#if defined(__SANITIZE_ADDRESS__)
static void *scheduler_fake_stack;
static const void *scheduler_bottom;
static size_t scheduler_bytes;
static void leave_for(const btc_fiber *f, void **save) {
  __sanitizer_start_switch_fiber(save, f ? f->stack : scheduler_bottom, f ? STACK_BYTES : scheduler_bytes);
}
static void arrive_in_fiber(btc_fiber *f) {
  __sanitizer_finish_switch_fiber(f->fake_stack, &scheduler_bottom, &scheduler_bytes);
}
static void arrive_in_scheduler() {
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}
#define SAVE_OF(f) (&(f)->fake_stack)
#define SAVE_OF_SCHEDULER (&scheduler_fake_stack)
#else
static void leave_for(const btc_fiber *, void **) {
}
static void arrive_in_fiber(btc_fiber *) {
}
static void arrive_in_scheduler() {
}
#define SAVE_OF(f) nullptr
#define SAVE_OF_SCHEDULER nullptr
#endif

#if defined(__x86_64__)
/* Keeps the registers a call must keep on the old stack, its address in *save, and takes those of the new one. */
extern "C" void btc_fiber_switch(void **save, void *load);
asm(".text\n.p2align 4\n.globl btc_fiber_switch\n.type btc_fiber_switch,@function\n"
    "btc_fiber_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size btc_fiber_switch,.-btc_fiber_switch\n");
static void switch_to(machine_context *save, machine_context *load) {
  btc_fiber_switch(save, *load);
}
#else
static void switch_to(machine_context *save, machine_context *load) {
  swapcontext(save, load);
}
#endif

static void fiber_main() {
  btc_fiber *f = current;
  arrive_in_fiber(f);
  f->entry(f->argument);
  abort();
}

static void prepare(btc_fiber *f) {
#if defined(__x86_64__)
  void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES);
  *--top = nullptr; /* where fiber_main would return to, and the alignment of a called function */
  *--top = reinterpret_cast<void *>(fiber_main);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f->context = top;
#else
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK_BYTES;
  f->context.uc_link = nullptr;
  makecontext(&f->context, fiber_main, 0);
#endif
}

btc_fiber *btc_fiber_create(void (*entry)(void *), void *argument) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto *f = static_cast<btc_fiber *>(calloc(1, sizeof(btc_fiber)));
  void *low = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!f || low == MAP_FAILED || mprotect(low, page, PROT_NONE) != 0) {
    free(f);
    if (low != MAP_FAILED) munmap(low, STACK_BYTES + page);
    return nullptr;
  }
  f->stack = static_cast<char *>(low) + page;
  f->entry = entry;
  f->argument = argument;
  return f;
}

void btc_fiber_restart(btc_fiber *f) {
  f->started = false;
}

void btc_fiber_resume(btc_fiber *f) {
  if (!f->started) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK_BYTES);
#endif
    f->fake_stack = nullptr;
    prepare(f);
    f->started = true;
  }
  current = f;
  btc_fiber_low = f->stack;
  btc_fiber_high = f->stack + STACK_BYTES;
  leave_for(f, SAVE_OF_SCHEDULER);
  switch_to(&scheduler, &f->context);
  arrive_in_scheduler();
}

void btc_fiber_yield(void) {
  btc_fiber *f = current;
  leave_for(nullptr, SAVE_OF(f));
  switch_to(&f->context, &scheduler);
  arrive_in_fiber(f);
}
