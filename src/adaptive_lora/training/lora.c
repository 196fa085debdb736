/* Forward and backward pass of the low-rank updates of several adapters on one layer; one thread.

   For each segment, one adapter's own rows of x (N, d_in):
       u = x A^T (n, r);   y += s u B;   backward: i = s g B^T;   dB += s u^T g;   dA += i^T x;   dx += i A
   with A (r, d_in) and B (r, d_out), B being transposed. Dropped entries of x count as 0 and get no gradient
   from here.

   Ranks are small and rows few, so that the overhead of a general product exceeds its arithmetic. The order of
   every sum depends on its own segment only: other adapters of the pass change no bit of it.
   Compiled for REAL = float and for REAL = double. */

#include "vectors.h"

#include <stdlib.h>

/* Rows of a tile, and columns or vectors: as many sums as half of the registers hold. */
#define TILE 4
#define ACROSS (MANY_REGISTERS ? 4 : 2)

typedef struct {
    int64_t begin, end, rank;
    REAL *a, *b, *a_gradient, *b_gradient;
    const int64_t *dropped; /* indices into the segment's rows of x, flattened */
    int64_t drops;
    double scaling;
} segment;

typedef struct {
    int64_t d_in, d_out, segments;
    segment *segment;
    REAL *x, *y; /* (N, d_in), (N, d_out); in the backward pass y is its gradient */
    REAL *u; /* u of all segments, concatenated */
    REAL *grad_x; /* (N, d_in), or null */
} lora_args;

/* The last `width % LANES` numbers before p + width, and zeros. */
INLINE lanes load_tail(const REAL *p, int64_t width) {
    if (width < LANES) return load_some(p, width);
    lanes x = load(p + width - LANES);
    for (int i = 0; i < LANES; i++)
        if (i < LANES - width % LANES) x[i] = 0;
    return x;
}

/* out[i][j] = scale sum_d x[i][d] w[j][d] for a tile of rows of x and of w, each `width` long; out's rows are m long. */
INLINE void dots(const int rows, const int columns, int64_t width, REAL scale, const REAL *x, const REAL *w, int64_t m,
                 REAL *out) {
    lanes sum[TILE][ACROSS];
    int64_t d = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) sum[i][j] = (lanes){};
    for (; d + LANES <= width; d += LANES)
        for (int j = 0; j < columns; j++) {
            lanes v = load(w + j * width + d);
            for (int i = 0; i < rows; i++) sum[i][j] += load(x + i * width + d) * v;
        }
    if (d < width)
        for (int j = 0; j < columns; j++) {
            lanes v = load_tail(w + j * width, width);
            for (int i = 0; i < rows; i++) sum[i][j] += load_tail(x + i * width, width) * v;
        }
#ifdef SHUFFLES
    if (rows == TILE && columns == ACROSS && TILE * ACROSS % LANES == 0) {
        REAL sums[TILE][ACROSS];
        for (int k = 0; k < TILE * ACROSS; k += LANES) sums_of(sum[0] + k, sums[0] + k);
        for (int i = 0; i < TILE; i++)
            for (int j = 0; j < ACROSS; j++) out[i * m + j] = scale * sums[i][j];
        return;
    }
#endif
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) out[i * m + j] = scale * sum_of(sum[i][j]);
}

#define COLUMNS_OF(columns)                                                                                 \
    do {                                                                                                    \
        for (i = 0; i + TILE <= n; i += TILE)                                                               \
            dots(TILE, columns, width, scale, x + i * width, w + j * width, m, out + i * m + j);            \
        for (; i < n; i++) dots(1, columns, width, scale, x + i * width, w + j * width, m, out + i * m + j); \
    } while (0)

/* out (n, m) = scale x (n, width) w (m, width)^T */
static void inner_products(int64_t n, int64_t m, int64_t width, REAL scale, const REAL *x, const REAL *w, REAL *out) {
    int64_t i, j = 0;
    for (; j + ACROSS <= m; j += ACROSS) COLUMNS_OF(ACROSS);
    if (ACROSS > 3 && m - j == 3) COLUMNS_OF(3);
    if (ACROSS > 2 && m - j == 2) COLUMNS_OF(2);
    if (m - j == 1) COLUMNS_OF(1);
}

/* out[i][d] += scale sum_j c[i][j] v[j][d] for a tile of rows and `vectors` times LANES columns. c's entries lie
   `row` apart along i and `column` apart along j. */
INLINE void sums(const int rows, const int vectors, const int ragged, int64_t terms, REAL scale, const REAL *c,
                 int64_t row, int64_t column, const REAL *v, int64_t width, REAL *out) {
    lanes sum[TILE][ACROSS];
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < vectors; k++) sum[i][k] = (lanes){};
    for (int64_t j = 0; j < terms; j++)
        for (int k = 0; k < vectors; k++) {
            lanes value = ragged ? load_tail(v + j * width, width) : load(v + j * width + k * LANES);
            for (int i = 0; i < rows; i++) sum[i][k] += c[i * row + j * column] * value;
        }
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < vectors; k++) {
            REAL *to = out + i * width + (ragged ? width - LANES : k * LANES);
            *(lanes *)to = load(to) + scale * sum[i][k];
        }
}

#define ROWS_OF(vectors, ragged, at_v, at_out)                                                                  \
    do {                                                                                                        \
        int64_t i = 0;                                                                                          \
        for (; i + TILE <= n; i += TILE)                                                                        \
            sums(TILE, vectors, ragged, terms, scale, c + i * row, row, column, at_v, width, at_out + i * width); \
        for (; i < n; i++)                                                                                      \
            sums(1, vectors, ragged, terms, scale, c + i * row, row, column, at_v, width, at_out + i * width);    \
    } while (0)

/* out (n, width) += scale c (n, terms) v (terms, width) */
static void add_product(int64_t n, int64_t terms, int64_t width, REAL scale, const REAL *c, int64_t row,
                        int64_t column, const REAL *v, REAL *out) {
    int64_t d = 0;
    for (; d + ACROSS * LANES <= width; d += ACROSS * LANES) ROWS_OF(ACROSS, 0, v + d, out + d);
    for (; d + LANES <= width; d += LANES) ROWS_OF(1, 0, v + d, out + d);
    if (width % LANES) ROWS_OF(1, 1, v, out);
}

/* Rows of a segment that are taken at a time, so that what one product reads is in the cache for the next. */
#define BLOCK 64

/* Sets the dropped entries of a segment's rows, from number `from` on and with an index below `bound`, to 0; their
   values go to `saved`. Returns the number of the next one; indices ascend. `restore` writes them back. */
INLINE int64_t zero_dropped(const segment *p, int64_t from, int64_t bound, REAL *rows, REAL *saved) {
    int64_t i = from;
    for (; i < p->drops && p->dropped[i] < bound; i++) {
        saved[i - from] = rows[p->dropped[i]];
        rows[p->dropped[i]] = 0;
    }
    return i;
}

INLINE void restore(const segment *p, int64_t from, int64_t to, REAL *rows, const REAL *saved) {
    for (int64_t i = from; i < to; i++) rows[p->dropped[i]] = saved[i - from];
}

/* Scratch memory for a block of any segment: inner products, dropped entries. Null if out of memory. */
static REAL *workspace(const lora_args *w) {
    int64_t largest = 1;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t size = BLOCK * p->rank + (p->drops < BLOCK * w->d_in ? p->drops : BLOCK * w->d_in);
        if (size > largest) largest = size;
    }
    return malloc(largest * sizeof(REAL));
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

int lora_forward(lora_args *w) {
    REAL *saved = workspace(w), *u = w->u;
    if (!saved) return 1;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t r = p->rank, from = 0, to;
        REAL *x = w->x + p->begin * w->d_in;
        for (int64_t at = p->begin; at < p->end; at += BLOCK, from = to) {
            int64_t n = least(BLOCK, p->end - at);
            to = zero_dropped(p, from, (at - p->begin + n) * w->d_in, x, saved);
            inner_products(n, r, w->d_in, 1, w->x + at * w->d_in, p->a, u);
            restore(p, from, to, x, saved);
            add_product(n, r, w->d_out, p->scaling, u, r, 1, p->b, w->y + at * w->d_out);
            u += n * r;
        }
    }
    free(saved);
    return 0;
}

int lora_backward(lora_args *w) {
    REAL *inner = workspace(w), *u = w->u;
    if (!inner) return 1;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t r = p->rank, from = 0, to;
        REAL *x = w->x + p->begin * w->d_in, *saved = inner + BLOCK * r;
        REAL *grad_x = w->grad_x ? w->grad_x + p->begin * w->d_in : NULL;
        for (int64_t at = p->begin; at < p->end; at += BLOCK, from = to) {
            int64_t n = least(BLOCK, p->end - at), bound = (at - p->begin + n) * w->d_in;
            const REAL *grad_output = w->y + at * w->d_out;
            inner_products(n, r, w->d_out, p->scaling, grad_output, p->b, inner);
            add_product(r, n, w->d_out, p->scaling, u, 1, r, grad_output, p->b_gradient);
            to = zero_dropped(p, from, bound, x, saved);
            add_product(r, n, w->d_in, 1, inner, 1, r, w->x + at * w->d_in, p->a_gradient);
            restore(p, from, to, x, saved);
            if (grad_x) {
                zero_dropped(p, from, bound, grad_x, saved);
                add_product(n, r, w->d_in, 1, inner, r, 1, p->a, w->grad_x + at * w->d_in);
                restore(p, from, to, grad_x, saved);
            }
            u += n * r;
        }
    }
    free(inner);
    return 0;
}

/* y = x A^T of a single segment with all rows: a plain product in which a row's bits do not depend on its index. */
int lora_product(lora_args *w) {
    const segment *p = w->segment;
    inner_products(p->end - p->begin, p->rank, w->d_in, 1, w->x, p->a, w->y);
    return 0;
}
