/*
 * Broken checkpoints for tests: copies of good ones, changed step by step. The steps are those of vectors/bad/apply.py,
 * re-done in C so that the tests need no Python. Everything here asserts: a recipe that cannot be built fails its test.
 */
#ifndef BTC_RECIPES_H
#define BTC_RECIPES_H

#include <jansson.h>

/* The cases of vectors/bad/bad.json; json_decref. Integers beyond 64 bits are kept exactly (see recipes.c). */
json_t *recipes_load(const char *bad_json_path);

/* Copies the directory tree `from` to the new directory `to`. */
void tree_copy(const char *from, const char *to);
void tree_remove(const char *path);

/* Applies one step to the checkpoint at root. */
void recipe_step(const char *root, const json_t *step);
/* The same from JSON text with ' for ": recipe_apply(root, "{'op': 'delete', 'file': 'config.json'}"). */
void recipe_apply(const char *root, const char *step);

#endif
