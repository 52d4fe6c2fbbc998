/* Places in the program for messages. Instrumented kernels are compiled with line numbers; addr2line reads them. */
#include <elf.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "race.h"

extern "C" const char __executable_start[];

uint32_t btc_shim_place(const void *code) {
  return static_cast<uint32_t>(static_cast<const char *>(code) - __executable_start);
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* "void f<(form)1>(job)" to "f<(form)1>": results of templates are told, parameters of all. */
static void strip(char *function) {
  if (strncmp(function, "void ", 5) == 0) memmove(function, function + 5, strlen(function + 5) + 1);
  int depth = 0;
  char *p = function;
  for (; *p && *p != '\n' && (*p != '(' || depth > 0); p++) depth += *p == '<' ? 1 : *p == '>' ? -1 : 0;
  *p = '\0';
}

/* One of addr2line's frames: its function without parameters, its file and line. */
static bool next_frame(FILE *f, char *function, char *file, size_t size) {
  if (!fgets(function, static_cast<int>(size), f) || !fgets(file, static_cast<int>(size), f)) return false;
  strip(function);
  file[strcspn(file, " \n")] = '\0';
  return function[0] != '?';
}

static bool is_header(const char *file) {
  return strstr(file, ".h:") != nullptr;
}

/* The innermost frame, and where that is in a header the kernel that calls it. */
void btc_shim_where(uint32_t place, char *text, size_t size) {
  char program[4096], command[4300], function[256], file[256];
  uintptr_t at = place - 1; /* inside the call that came back to it */
  snprintf(text, size, "the program at offset %#x", place);
  ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  if (n <= 0) return;
  program[n] = '\0';
  if (reinterpret_cast<const Elf64_Ehdr *>(__executable_start)->e_type == ET_EXEC)
    at += reinterpret_cast<uintptr_t>(__executable_start);
  snprintf(command, sizeof command, "addr2line -Cfi -e '%s' %#zx 2>/dev/null", program, at);
  FILE *f = popen(command, "r");
  if (!f) return;
  bool found = false;
  while (next_frame(f, function, file, sizeof file)) {
    size_t used = found ? strlen(text) : 0;
    if (found && is_header(file)) continue;
    snprintf(text + used, size - used, "%s%s (%s)", found ? ", called by " : "", function, base_name(file));
    found = true;
    if (!is_header(file)) break;
  }
  pclose(f);
}
