/* Option tables: getopt_long in, help text out, environment and --config behind them. */
#define _GNU_SOURCE
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 48
#define CONFIG_MAX_BYTES (1u << 20)

static json_t *config; /* borrowed by text options until cli_free_settings */

void cli_free_settings(void) {
  json_decref(config);
  config = NULL;
}

int cli_usage_error(const cli_command *cmd, const char *fmt, ...) {
  char text[1024];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  cli_error("%s: %s (try 'btcchat %s --help')", cmd->name, text, cmd->name);
  return CLI_USAGE;
}

static void print_help(const cli_command *cmd, const cli_option *o, size_t n) {
  printf("usage: btcchat %s [options]%s%s\n\n%s\n", cmd->name, *cmd->arguments ? " " : "", cmd->arguments, cmd->summary);
  if (cmd->details) printf("\n%s\n", cmd->details);
  printf("\noptions:\n");
  for (size_t i = 0; i < n; i++) {
    char left[96];
    if (!o[i].help) continue;
    snprintf(left, sizeof left, "  %c%c%c --%s%s%s", o[i].letter ? '-' : ' ', o[i].letter ? o[i].letter : ' ',
             o[i].letter ? ',' : ' ', o[i].name, o[i].value ? " " : "", o[i].value ? o[i].value : "");
    printf("%-32s %s\n", left, o[i].help);
  }
  printf("%-32s %s\n%-32s %s\n", "      --config FILE", "JSON object with option names as keys", "  -h, --help", "this text");
  printf(
      "\nEach option can also be given as an environment variable: BTCCHAT_ and its name in capitals, as in BTCCHAT_MODEL.\n"
      "Precedence: option, environment, --config, default.\n");
}

static bool in_choices(const char *choices, const char *value) {
  size_t n = strlen(value);
  for (const char *c = choices; *c;) {
    size_t len = strcspn(c, "|");
    if (len == n && memcmp(c, value, n) == 0) return true;
    c += len;
    if (*c) c++;
  }
  return false;
}

/* Stores a value given as text. source says where it came from, for the message. */
static bool set_text(const cli_command *cmd, const cli_option *o, const char *value, const char *source) {
  char *end;
  errno = 0;
  if (o->type == CLI_FLAG) {
    bool yes = !strcmp(value, "1") || !strcmp(value, "true"), no = !strcmp(value, "0") || !strcmp(value, "false") || !*value;
    if (yes || no) {
      *(bool *)o->target = yes;
      return true;
    }
    cli_usage_error(cmd, "%s: '%s' is neither true nor false", source, value);
    return false;
  }
  if (o->type == CLI_TEXT || (o->type == CLI_CHOICE && in_choices(o->choices, value))) {
    *(const char **)o->target = value;
    return true;
  }
  if (o->type == CLI_CHOICE) {
    cli_usage_error(cmd, "%s: '%s' is not one of %s", source, value, o->choices);
    return false;
  }
  double real = 0;
  long long whole = 0;
  if (o->type == CLI_INT)
    real = (double)(whole = strtoll(value, &end, 10));
  else
    real = strtod(value, &end);
  if (end == value || *end || errno || !(real >= o->low && real <= o->high)) {
    cli_usage_error(cmd, "%s: '%s' is not a%s number between %.16g and %.16g", source, value, o->type == CLI_INT ? " whole" : "",
                    o->low, o->high);
    return false;
  }
  if (o->type == CLI_INT)
    *(int64_t *)o->target = whole;
  else
    *(double *)o->target = real;
  return true;
}

static bool set_json(const cli_command *cmd, const cli_option *o, const json_t *v) {
  char number[64], source[128];
  snprintf(source, sizeof source, "--config: '%s'", o->name);
  if (json_is_string(v)) return set_text(cmd, o, json_string_value(v), source);
  if (json_is_boolean(v)) return set_text(cmd, o, json_is_true(v) ? "1" : "0", source);
  if (json_is_integer(v)) {
    snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    if (o->type == CLI_INT || o->type == CLI_REAL) return set_text(cmd, o, number, source);
  }
  if (json_is_real(v) && o->type == CLI_REAL) {
    snprintf(number, sizeof number, "%.17g", json_real_value(v));
    return set_text(cmd, o, number, source);
  }
  cli_usage_error(cmd, "%s has a value of the wrong type", source);
  return false;
}

static bool load_config(const cli_command *cmd, const char *path, const cli_option *o, size_t n) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (btc_file_read(path, CONFIG_MAX_BYTES, &data, &len, &err) != BTC_OK) {
    cli_error("%s", err.message);
    return false;
  }
  json_error_t je;
  config = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, &je);
  free(data);
  if (!json_is_object(config)) {
    cli_error("'%s' is not a JSON object: line %d: %s", path, config ? 1 : je.line, config ? "another kind of value" : je.text);
    return false;
  }
  for (size_t i = 0; i < n; i++) {
    const json_t *v = json_object_get(config, o[i].name);
    if (v && !set_json(cmd, &o[i], v)) return false;
  }
  return true; /* keys of other subcommands are fine: one file may serve them all */
}

static bool load_environment(const cli_command *cmd, const cli_option *o, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char name[96];
    snprintf(name, sizeof name, "BTCCHAT_%s", o[i].name);
    for (char *c = name; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    const char *v = getenv(name);
    if (v && *v && !set_text(cmd, &o[i], v, name)) return false;
  }
  return true;
}

enum { OPT_HELP = 1000, OPT_CONFIG, OPT_FIRST };

static void build_tables(const cli_option *o, size_t n, struct option *longs, char *shorts) {
  strcpy(shorts, ":h");
  size_t at = 2;
  for (size_t i = 0; i < n; i++) {
    bool arg = o[i].type != CLI_FLAG;
    longs[i] = (struct option){o[i].name, arg ? required_argument : no_argument, NULL, OPT_FIRST + (int)i};
    if (!o[i].letter) continue;
    shorts[at++] = o[i].letter;
    if (arg) shorts[at++] = ':';
  }
  shorts[at] = 0;
  longs[n] = (struct option){"help", no_argument, NULL, 'h'};
  longs[n + 1] = (struct option){"config", required_argument, NULL, OPT_CONFIG};
  longs[n + 2] = (struct option){0};
}

static const cli_option *option_of(const cli_option *o, size_t n, int code) {
  if (code >= OPT_FIRST) return &o[code - OPT_FIRST];
  for (size_t i = 0; i < n; i++)
    if (o[i].letter && o[i].letter == code) return &o[i];
  return NULL;
}

/* Walks the command line once: apply == false only looks for --help and --config, which must be known first. */
static bool walk(const cli_command *cmd, const cli_option *o, size_t n, int argc, char **argv, bool apply, const char **config_path,
                 int *code) {
  struct option longs[MAX_OPTIONS + 3];
  char shorts[2 * MAX_OPTIONS + 4], source[96];
  build_tables(o, n, longs, shorts);
  optind = 0; /* glibc: start afresh */
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
    if (c == 'h') {
      print_help(cmd, o, n);
      *code = CLI_OK;
      return false;
    }
    if (c == '?' || c == ':') {
      const char *word = optind > 0 && optind <= argc ? argv[optind - 1] : "?";
      *code = cli_usage_error(cmd, c == ':' ? "option '%s' needs a value" : "unknown option '%s'", word);
      return false;
    }
    if (c == OPT_CONFIG) {
      *config_path = optarg;
      continue;
    }
    const cli_option *opt = option_of(o, n, c);
    if (!apply || !opt) continue;
    snprintf(source, sizeof source, "--%s", opt->name);
    if (!set_text(cmd, opt, opt->type == CLI_FLAG ? "1" : optarg, source)) {
      *code = CLI_USAGE;
      return false;
    }
  }
  return true;
}

bool cli_parse(const cli_command *cmd, const cli_option *o, size_t n, int argc, char **argv, char ***args, int *n_args, int *code) {
  const char *path = getenv("BTCCHAT_CONFIG");
  *code = CLI_USAGE;
  if (n > MAX_OPTIONS) abort(); /* a table of ours outgrew the bound */
  if (!walk(cmd, o, n, argc, argv, false, &path, code)) return false;
  if (path && *path && !load_config(cmd, path, o, n)) return false;
  if (!load_environment(cmd, o, n)) return false;
  if (!walk(cmd, o, n, argc, argv, true, &path, code)) return false;
  *args = argv + optind;
  *n_args = argc - optind;
  return true;
}
