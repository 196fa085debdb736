/* Positions of what LoRA dropout drops, from the gaps between them; one thread.

   Trials of probability p, one after another through all modules of a model. A gap is geometric: floor(E s) + 1 with E
   exponential and s = -1 / log(1 - p). Exponentials come a block at a time; what is carried from one block to the next
   is in the arguments. */

#include <stdint.h>

typedef struct {
    const double *exponentials;
    int64_t count;
    double scale;
    const int64_t *ends; /* trials up to and with each module */
    int64_t modules;
    int64_t *positions, *cuts; /* positions count from the beginning of their module; cuts (modules + 1) part them */
    int64_t module, last, found; /* carried: at first 0, -1, 0 */
} dropout_args;

/* Longer than any model has inputs, and short enough to add. */
#define LONGEST 9e15

int dropout_positions(dropout_args *t) {
    const double *exponentials = t->exponentials, scale = t->scale;
    const int64_t *ends = t->ends, count = t->count, modules = t->modules;
    int64_t *restrict positions = t->positions, module = t->module, last = t->last, found = t->found;
    int64_t begin = module ? ends[module - 1] : 0, end = ends[module];
    for (int64_t i = 0; i < count; i++) {
        double gap = exponentials[i] * scale;
        last += (int64_t)(gap < LONGEST ? gap : LONGEST) + 1;
        while (last >= end) {
            t->cuts[++module] = found;
            if (module == modules) break;
            begin = end;
            end = ends[module];
        }
        if (module == modules) break;
        positions[found++] = last - begin;
    }
    t->module = module;
    t->last = last;
    t->found = found;
    return 0;
}
