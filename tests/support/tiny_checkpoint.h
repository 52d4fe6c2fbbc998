/*
 * A random checkpoint small enough for unit tests, written to the test's temporary directory: odd grid, grouped key/value
 * heads, one shard or several. And small PNG pictures to go with it.
 */
#ifndef TINY_CHECKPOINT_H
#define TINY_CHECKPOINT_H

/* Directory of the checkpoint, written at the first call; shards > 1 splits the language model. Lives until the process ends. */
const char *tiny_checkpoint(void);
const char *tiny_checkpoint_sharded(void);
/* The same with so many heads of its 48 channels, in all calls the same. */
const char *tiny_checkpoint_of_heads(int heads, int kv_heads);
/* Path of a w x h RGB PNG with noise from the seed. Lives until the process ends. */
const char *tiny_picture(int w, int h, unsigned seed);

#endif
