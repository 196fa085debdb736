/* Forward and backward pass of the low-rank updates of several adapters on one layer; one thread.

   For each segment, one adapter's own rows of x (N, d_in):
       u = x A^T (n, r);   y += s u B;   backward: i = s g B^T;   dB += s u^T g;   dA += i^T x;   dx += i A
   with A (r, d_in) and B (r, d_out), B being transposed. Dropped entries of x count as 0 and get no gradient
   from here.

   Ranks are small and rows few, so that the overhead of a general product exceeds its arithmetic. The order of
   every sum depends on its own segment only: other adapters of the pass change no bit of it.
   Compiled for REAL = float and for REAL = double; vector extensions of GCC and Clang, no intrinsics. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#define LANES (64 / (int)sizeof(REAL))
#define TILE 4
#define ROUNDED(n) (((n) + LANES - 1) / LANES * LANES)
#define INLINE static inline __attribute__((always_inline))

typedef REAL lanes __attribute__((vector_size(64), aligned(sizeof(REAL))));

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

INLINE lanes load(const REAL *p) { return *(const lanes *)p; }

/* The last `width % LANES` numbers before p + width, zeros before them. */
INLINE lanes load_tail(const REAL *p, int64_t width) {
    lanes x = load(p + width - LANES);
    for (int i = 0; i < LANES; i++)
        if (i < LANES - width % LANES) x[i] = 0;
    return x;
}

/* out[i][j] = scale sum_d x[i][d] w[d][j] for a tile of rows and the first `count` of LANES columns. */
INLINE void dots(const int rows, int64_t width, REAL scale, const REAL *x, const REAL *w, int64_t pitch, REAL *out,
                 int64_t columns, int64_t count) {
    lanes sum[2 * TILE];
    for (int i = 0; i < rows; i++) sum[i] = (lanes){};
    for (int64_t d = 0; d < width; d++) {
        lanes v = load(w + d * pitch);
        for (int i = 0; i < rows; i++) sum[i] += x[i * width + d] * v;
    }
    for (int i = 0; i < rows; i++) {
        sum[i] *= scale;
        if (count >= LANES)
            *(lanes *)(out + i * columns) = sum[i];
        else
            for (int64_t j = 0; j < count; j++) out[i * columns + j] = sum[i][j];
    }
}

/* out (n, m) = scale x (n, width) w (m, width)^T; `transposed` holds w^T, m rounded up to LANES. */
static void inner_products(int64_t n, int64_t m, int64_t width, REAL scale, const REAL *x, const REAL *w,
                           REAL *transposed, REAL *out) {
    int64_t pitch = ROUNDED(m);
    for (int64_t d = 0; d < width; d++)
        for (int64_t j = 0; j < pitch; j++) transposed[d * pitch + j] = j < m ? w[j * width + d] : 0;
    for (int64_t j = 0; j < m; j += LANES) {
        int64_t i = 0;
        for (; i + 2 * TILE <= n; i += 2 * TILE)
            dots(2 * TILE, width, scale, x + i * width, transposed + j, pitch, out + i * m + j, m, m - j);
        for (; i < n; i++) dots(1, width, scale, x + i * width, transposed + j, pitch, out + i * m + j, m, m - j);
    }
}

/* out[i][d] += scale sum_j c[i][j] v[j][d] for a tile of rows and `vectors` times LANES columns. c's entries lie
   `row` apart along i and `column` apart along j. */
INLINE void sums(const int rows, const int vectors, const int ragged, int64_t terms, REAL scale, const REAL *c,
                 int64_t row, int64_t column, const REAL *v, int64_t width, REAL *out) {
    lanes sum[TILE][TILE];
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
    for (; d + TILE * LANES <= width; d += TILE * LANES) ROWS_OF(TILE, 0, v + d, out + d);
    for (; d + LANES <= width; d += LANES) ROWS_OF(1, 0, v + d, out + d);
    if (width % LANES) ROWS_OF(1, 1, v, out);
}

/* Sets the dropped entries of `rows` to 0 and saves their values; `restore` writes them back. */
static void zero_dropped(const segment *p, REAL *rows, REAL *saved) {
    for (int64_t i = 0; i < p->drops; i++) {
        saved[i] = rows[p->dropped[i]];
        rows[p->dropped[i]] = 0;
    }
}

static void restore(const segment *p, REAL *rows, const REAL *saved) {
    for (int64_t i = 0; i < p->drops; i++) rows[p->dropped[i]] = saved[i];
}

/* Scratch memory for any segment: A or B transposed, inner products, dropped entries. Null if out of memory. */
static REAL *workspace(const lora_args *w) {
    int64_t largest = 1, wider = w->d_in > w->d_out ? w->d_in : w->d_out;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t size = ROUNDED(p->rank) * wider + (p->end - p->begin) * p->rank + p->drops;
        if (size > largest) largest = size;
    }
    return malloc(largest * sizeof(REAL));
}

int lora_forward(lora_args *w) {
    REAL *transposed = workspace(w), *u = w->u;
    if (!transposed) return 1;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t n = p->end - p->begin, r = p->rank;
        REAL *x = w->x + p->begin * w->d_in, *saved = transposed + ROUNDED(r) * w->d_in;
        zero_dropped(p, x, saved);
        inner_products(n, r, w->d_in, 1, x, p->a, transposed, u);
        restore(p, x, saved);
        add_product(n, r, w->d_out, p->scaling, u, r, 1, p->b, w->y + p->begin * w->d_out);
        u += n * r;
    }
    free(transposed);
    return 0;
}

int lora_backward(lora_args *w) {
    REAL *transposed = workspace(w), *u = w->u;
    if (!transposed) return 1;
    for (int64_t k = 0; k < w->segments; k++) {
        const segment *p = w->segment + k;
        int64_t n = p->end - p->begin, r = p->rank;
        REAL *x = w->x + p->begin * w->d_in, *inner = transposed + ROUNDED(r) * w->d_out, *saved = inner + n * r;
        const REAL *grad_output = w->y + p->begin * w->d_out;
        inner_products(n, r, w->d_out, p->scaling, grad_output, p->b, transposed, inner);
        add_product(r, n, w->d_out, p->scaling, u, 1, r, grad_output, p->b_gradient);
        zero_dropped(p, x, saved);
        add_product(r, n, w->d_in, 1, inner, 1, r, x, p->a_gradient);
        restore(p, x, saved);
        if (w->grad_x) {
            REAL *grad_input = w->grad_x + p->begin * w->d_in;
            zero_dropped(p, grad_input, saved);
            add_product(n, r, w->d_in, 1, inner, r, 1, p->a, grad_input);
            restore(p, grad_input, saved);
        }
        u += n * r;
    }
    free(transposed);
    return 0;
}

/* y = x A^T of a single segment with all rows: a plain product in which a row's bits do not depend on its index. */
int lora_product(lora_args *w) {
    const segment *p = w->segment;
    REAL *transposed = workspace(w);
    if (!transposed) return 1;
    inner_products(p->end - p->begin, p->rank, w->d_in, 1, w->x, p->a, transposed, w->y);
    free(transposed);
    return 0;
}
