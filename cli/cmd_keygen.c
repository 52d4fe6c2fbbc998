/* btcchat keygen: a CURVE key pair, and the line that lets it in. */
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "net/keys.h"

static int run(int argc, char **argv);

const cli_command cmd_keygen = {
    .name = "keygen",
    .arguments = "PREFIX",
    .summary = "makes a key pair for encrypted connections",
    .details =
        "Writes PREFIX.key (secret, readable by you only) and PREFIX.pub, and prints the line that lets this key in when it stands "
        "in the broker's\n"
        "allow-list (PUBLIC-KEY ROLE NAME [tenants=A,B] [priorities=1,2]). Make one pair for the broker, whose .pub file everybody "
        "needs (--server-key), and one "
        "for each client and worker.",
    .run = run,
};

/* What stands behind the last slash, as far as it may be a name in an allow-list. */
static void name_of(const char *prefix, char name[65]) {
  const char *slash = strrchr(prefix, '/');
  size_t n = 0;
  for (const char *c = slash ? slash + 1 : prefix; *c && n < 64; c++)
    name[n++] = strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", *c) ? *c : '_';
  name[n] = 0;
}

static int run(int argc, char **argv) {
  const char *role = "client";
  const cli_option table[] = {
      {.name = "role",
       .type = CLI_CHOICE,
       .target = &role,
       .value = "ROLE",
       .help = "in the printed line: client, worker or admin (default client)",
       .choices = "client|worker|admin"},
  };
  char **args, public_key[41], name[65];
  int n, code;
  btc_error err;
  if (!cli_parse(&cmd_keygen, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_keygen, "one PREFIX expected, got %d", n);
  name_of(args[0], name);
  if (!name[0]) return cli_usage_error(&cmd_keygen, "'%s' does not end in a name", args[0]);
  if (btc_keys_generate(args[0], public_key, &err) != BTC_OK) {
    cli_error("%s", err.message);
    return CLI_FAILED;
  }
  fprintf(stderr, "btcchat: wrote '%s.key' (secret) and '%s.pub'; for the broker's allow-list:\n", args[0], args[0]);
  printf("%s %s %s\n", public_key, role, name);
  return CLI_OK;
}
