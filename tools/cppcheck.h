/* What tools/lint.sh tells cppcheck of macros whose headers it does not read. (Its -D takes no value with a semicolon in it: it
 * then checks nothing, in silence.) */
#define json_object_foreach_safe(o, n, k, v) for (n = 0, k = json_object_key(o), v = json_object_value(o); k; k = n)
#define json_object_foreach(o, k, v) for (k = json_object_key(o), v = json_object_value(o); k; k = json_object_key(k))
#define json_array_foreach(a, i, v) for (i = 0, v = json_array_get(a, i); i < json_array_size(a); i++)
