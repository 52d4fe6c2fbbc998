/* btcchat: finds the subcommand and runs it. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

/* in the order of --help */
static const cli_command *const commands[] = {
    &cmd_caption, &cmd_ask,                                 //
    &cmd_scene,                                             //
    &cmd_run,     &cmd_broker,  &cmd_worker,                //
    &cmd_submit,  &cmd_status,  &cmd_top,    &cmd_results,  //
    &cmd_cancel,  &cmd_pause,   &cmd_resume, &cmd_replay,   //
    &cmd_dead,    &cmd_workers, &cmd_pipes,  &cmd_drain,    //
    &cmd_plan,    &cmd_report,  &cmd_find,   &cmd_diff,     //
    &cmd_keygen,                                            //
    &cmd_inspect, &cmd_verify,                              //
    &cmd_doctor,  &cmd_bench,                               //
    NULL,
};

static const cli_command *find(const char *name) {
  for (int i = 0; commands[i]; i++)
    if (strcmp(commands[i]->name, name) == 0) return commands[i];
  return NULL;
}

static void print_overview(FILE *to) {
  fprintf(to, "btcchat %s: captions what changed between two overhead images\n\nusage: btcchat COMMAND [options] arguments\n\n",
          BTC_VERSION);
  for (int i = 0; commands[i]; i++) fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
  fprintf(to,
          "\n'btcchat COMMAND --help' explains a command. Exit codes: 0 done, 1 failed, 2 usage, 3 some items failed, 4 broker or "
          "Redis\nnot reached, 130 interrupted.\n");
}

int main(int argc, char **argv) {
  if (argc < 2) {
    print_overview(stderr);
    return CLI_USAGE;
  }
  const char *word = argv[1];
  if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
    print_overview(stdout);
    return cli_finish_stdout(CLI_OK);
  }
  if (!strcmp(word, "--version")) {
    printf("btcchat %s\n", BTC_VERSION);
    return cli_finish_stdout(CLI_OK);
  }
  const cli_command *cmd = find(word);
  if (!cmd) {
    cli_error("unknown command '%s' (try 'btcchat --help')", word);
    return CLI_USAGE;
  }
  cli_catch_signals();
  int code = cli_finish_stdout(cmd->run(argc - 1, argv + 1));
  cli_free_settings();
  return code;
}
