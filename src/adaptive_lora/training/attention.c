/* Causal attention over sequences laid end to end, float32, one thread.

   For short sequences and small heads, where the overhead of a general kernel exceeds the arithmetic. A block
   of ROWS queries is multiplied with all keys up to its last one; keys run along the lanes of a vector, so that
   scores, exponentials and their gradients need no shuffling.

   Layouts: q (N, heads, width), k and v (N, groups, width), heads / groups queries share a key; consecutive
   tokens are `*_stride` floats apart, heads `width` floats. starts (sequences + 1). */

#include "exponential.h"

#include <math.h>
#include <stdlib.h>

#define ROWS (MANY_REGISTERS ? 8 : 4) /* even */
#define PANEL (2 * LANES)
#define HIDDEN -1e30f /* the score of a masked key */

typedef struct {
    const float *q, *k, *v;
    int64_t q_stride, k_stride, v_stride;
    int64_t tokens, heads, groups, width, sequences;
    const int64_t *starts;
    float scaling;
    float *out;       /* (N, heads, width) */
    float *scales; /* (heads, N, 2): the largest score m, and 1 / sum exp(score - m) */
    const float *grad_out;
    float *grad_q, *grad_k, *grad_v;
} attention_args;

/* One vector of columns, or two next to each other, of the sums of `products`. */
INLINE void product_tile(const int vectors, int64_t width, int64_t wide, int64_t pitch, const float *restrict rows,
                         const float *restrict panel, float *restrict out) {
    lanes sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = splat(0);
    for (int64_t d = 0; d < width; d++)
        for (int v = 0; v < vectors; v++) {
            lanes column = load(panel + d * PANEL + v * LANES);
            for (int r = 0; r < ROWS; r++) sum[r][v] += rows[r * wide + d] * column;
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) store(out + r * pitch + v * LANES, sum[r][v]);
}

/* out[r][j] = sum_d rows[r][d] * columns[d][j] for d < width and j < count, a multiple of LANES; rows are `wide`
   apart, `columns` in panels, see `transpose`. */
static inline void products(int64_t width, int64_t wide, int64_t count, int64_t pitch, const float *restrict rows,
                            const float *restrict columns, float *restrict out) {
    int64_t j = 0;
    for (; j + PANEL <= count; j += PANEL) product_tile(2, width, wide, pitch, rows, columns + j * wide, out + j);
    if (j < count) product_tile(1, width, wide, pitch, rows, columns + j * wide, out + j);
}

INLINE void weighted_tile(const int vectors, int64_t width, int64_t count, int64_t pitch,
                          const float *restrict weights, const float *restrict values, float *restrict out) {
    lanes sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) sum[r][v] = splat(0);
    for (int64_t j = 0; j < count; j++)
        for (int v = 0; v < vectors; v++) {
            lanes value = load(values + j * width + v * LANES);
            for (int r = 0; r < ROWS; r++) sum[r][v] += weights[r * pitch + j] * value;
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) store(out + r * width + v * LANES, sum[r][v]);
}

/* out[r][d] = sum_j weights[r][j] * values[j][d] */
static inline void weighted_rows(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict values, float *restrict out) {
    int64_t d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) weighted_tile(2, width, count, pitch, weights, values + d, out + d);
    if (d < width) weighted_tile(1, width, count, pitch, weights, values + d, out + d);
}

INLINE void columns_tile(const int vectors, int64_t width, int64_t count, int64_t pitch,
                         const float *restrict weights, const float *restrict rows, float *restrict sums) {
    lanes row[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++) row[r][v] = load(rows + r * width + v * LANES);
    for (int64_t j = 0; j < count; j++) {
        lanes even[2], odd[2];
        for (int v = 0; v < vectors; v++) even[v] = load(sums + j * width + v * LANES), odd[v] = splat(0);
        for (int r = 0; r < ROWS; r += 2)
            for (int v = 0; v < vectors; v++) {
                even[v] += weights[r * pitch + j] * row[r][v];
                odd[v] += weights[(r + 1) * pitch + j] * row[r + 1][v];
            }
        for (int v = 0; v < vectors; v++) store(sums + j * width + v * LANES, even[v] + odd[v]);
    }
}

/* sums[j][d] += sum_r weights[r][j] * rows[r][d] */
static inline void add_weighted_columns(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict rows, float *restrict sums) {
    int64_t d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) columns_tile(2, width, count, pitch, weights, rows + d, sums + d);
    if (d < width) columns_tile(1, width, count, pitch, weights, rows + d, sums + d);
}

/* Copies `count` rows of `width` floats, `stride` apart, to rows of `padded`, filled with 0 up to `all_rows` rows. */
static void copy_rows(float *to, const float *from, int64_t stride, int64_t count, int64_t all_rows, int64_t width,
                 int64_t padded) {
    memset(to, 0, sizeof(float) * all_rows * padded);
    for (int64_t t = 0; t < count; t++) memcpy(to + t * padded, from + t * stride, sizeof(float) * width);
}

/* Rows as columns, in panels of PANEL rows: what is read together lies together, and no stride is a power of two that
   would crowd a few sets of the cache. */
static void transpose(float *to, const float *rows, int64_t count, int64_t width, int64_t pitch) {
    memset(to, 0, sizeof(float) * width * pitch);
    for (int64_t t = 0; t < count; t++)
        for (int64_t d = 0; d < width; d++) to[t / PANEL * PANEL * width + d * PANEL + t % PANEL] = rows[t * width + d];
}

static int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static int64_t row_pitch(const attention_args *a) {
    int64_t longest = 0;
    for (int64_t s = 0; s < a->sequences; s++)
        if (a->starts[s + 1] - a->starts[s] > longest) longest = a->starts[s + 1] - a->starts[s];
    return (longest + PANEL - 1) / PANEL * PANEL;
}

/* x where j + lane < seen, else `other`. */
static inline lanes mask_from(lanes x, int64_t j, int64_t seen, float other) {
    ints index;
    for (int32_t i = 0; i < LANES; i++) index[i] = i; /* a constant */
    ints visible = index + (int32_t)j < (int32_t)seen;
    return (lanes)(((ints)x & visible) | ((ints)splat(other) & ~visible));
}

/* Pairwise reduction: the chain of dependent operations is short. */
static inline float max_of(lanes x) {
    float a[LANES];
    memcpy(a, &x, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
    return a[0];
}

/* A row of scores becomes exp(score - max) for the first `seen` keys, 0 after them; scale is (max, 1 / sum). */
static inline void exponentiate(float *row, int64_t seen, int64_t count, float *scale) {
    int64_t full_vectors = seen / LANES * LANES;
    lanes highest = splat(HIDDEN), sums = splat(0);
    for (int64_t j = 0; j < full_vectors; j += LANES) highest = maximum(highest, load(row + j));
    for (int64_t j = full_vectors; j < count; j += LANES) {
        store(row + j, mask_from(load(row + j), j, seen, HIDDEN));
        highest = maximum(highest, load(row + j));
    }
    float peak = max_of(highest);
    for (int64_t j = 0; j < count; j += LANES) {
        lanes e = exponential(load(row + j) - peak);
        e = j < full_vectors ? e : mask_from(e, j, seen, 0);
        store(row + j, e);
        sums += e;
    }
    scale[0] = peak;
    scale[1] = 1 / sum_of(sums);
}

static int forward(const attention_args *a) {
    int64_t width = a->width, wide = round_up(width), pitch = row_pitch(a), per_key = a->heads / a->groups;
    float *workspace = aligned_alloc(4 * LANES, sizeof(float) * (3 * pitch * wide + ROWS * (pitch + 2 * wide)));
    if (!workspace) return 1;
    float *keys = workspace, *keys_t = keys + pitch * wide, *values = keys_t + pitch * wide;
    float *weights = values + pitch * wide, *queries = weights + ROWS * pitch, *sums = queries + ROWS * wide;
    for (int64_t s = 0; s < a->sequences; s++) {
        int64_t begin = a->starts[s], length = a->starts[s + 1] - begin;
        for (int64_t g = 0; g < a->groups; g++) {
            copy_rows(keys, a->k + begin * a->k_stride + g * width, a->k_stride, length, length, width, wide);
            copy_rows(values, a->v + begin * a->v_stride + g * width, a->v_stride, length, length, width, wide);
            transpose(keys_t, keys, length, wide, pitch);
            for (int64_t h = g * per_key; h < (g + 1) * per_key; h++)
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = length - i < ROWS ? length - i : ROWS, seen = i + rows, count = round_up(seen);
                    copy_rows(queries, a->q + (begin + i) * a->q_stride + h * width, a->q_stride, rows, ROWS, width,
                              wide);
                    for (int64_t x = 0; x < ROWS * wide; x++) queries[x] *= a->scaling;
                    products(width, wide, count, pitch, queries, keys_t, weights);
                    for (int64_t r = 0; r < rows; r++)
                        exponentiate(weights + r * pitch, i + r + 1, count,
                                     a->scales + 2 * (h * a->tokens + begin + i + r));
                    for (int64_t r = rows; r < ROWS; r++) memset(weights + r * pitch, 0, sizeof(float) * count);
                    weighted_rows(wide, seen, pitch, weights, values, sums);
                    for (int64_t r = 0; r < rows; r++) {
                        float inverse = a->scales[2 * (h * a->tokens + begin + i + r) + 1];
                        float *out = a->out + ((begin + i + r) * a->heads + h) * width;
                        for (int64_t d = 0; d < width; d++) out[d] = sums[r * wide + d] * inverse;
                    }
                }
        }
    }
    free(workspace);
    return 0;
}

INLINE float inner_product(int64_t width, const float *x, const float *y) {
    lanes sum = splat(0);
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) sum += load(x + d) * load(y + d);
    float total = d ? sum_of(sum) : 0;
    for (; d < width; d++) total += x[d] * y[d];
    return total;
}

/* From scores and dL/dweights of one query: its weights, and dL/dscores = weights * (dL/dweights - mean). */
static inline void softmax_backward(float *row, float *gradient, int64_t seen, int64_t count, const float *scale,
                                    float mean) {
    int64_t full_vectors = seen / LANES * LANES;
    for (int64_t j = 0; j < count; j += LANES) {
        lanes weight = exponential(load(row + j) - scale[0]) * scale[1];
        weight = j < full_vectors ? weight : mask_from(weight, j, seen, 0);
        lanes score_grad = weight * (load(gradient + j) - mean);
        store(row + j, weight);
        store(gradient + j, j < full_vectors ? score_grad : mask_from(score_grad, j, seen, 0));
    }
}

static int backward(const attention_args *a) {
    int64_t width = a->width, wide = round_up(width), pitch = row_pitch(a), per_key = a->heads / a->groups;
    int64_t stride = a->heads * width;
    float *workspace = aligned_alloc(4 * LANES, sizeof(float) * (6 * pitch * wide + ROWS * (2 * pitch + 3 * wide)));
    if (!workspace) return 1;
    float *keys = workspace, *keys_t = keys + pitch * wide, *values = keys_t + pitch * wide;
    float *values_t = values + pitch * wide, *key_sums = values_t + pitch * wide;
    float *value_sums = key_sums + pitch * wide, *weights = value_sums + pitch * wide;
    float *score_grads = weights + ROWS * pitch, *queries = score_grads + ROWS * pitch;
    float *grads = queries + ROWS * wide, *sums = grads + ROWS * wide;
    for (int64_t s = 0; s < a->sequences; s++) {
        int64_t begin = a->starts[s], length = a->starts[s + 1] - begin;
        for (int64_t g = 0; g < a->groups; g++) {
            copy_rows(keys, a->k + begin * a->k_stride + g * width, a->k_stride, length, length, width, wide);
            copy_rows(values, a->v + begin * a->v_stride + g * width, a->v_stride, length, length, width, wide);
            transpose(keys_t, keys, length, wide, pitch);
            transpose(values_t, values, length, wide, pitch);
            memset(key_sums, 0, sizeof(float) * pitch * wide);
            memset(value_sums, 0, sizeof(float) * pitch * wide);
            for (int64_t h = g * per_key; h < (g + 1) * per_key; h++)
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = length - i < ROWS ? length - i : ROWS, seen = i + rows, count = round_up(seen);
                    int64_t first = ((begin + i) * a->heads + h) * width;
                    copy_rows(queries, a->q + (begin + i) * a->q_stride + h * width, a->q_stride, rows, ROWS, width,
                              wide);
                    copy_rows(grads, a->grad_out + first, stride, rows, ROWS, width, wide);
                    for (int64_t x = 0; x < ROWS * wide; x++) queries[x] *= a->scaling;
                    products(width, wide, count, pitch, queries, keys_t, weights);
                    products(width, wide, count, pitch, grads, values_t, score_grads);
                    for (int64_t r = 0; r < rows; r++) {
                        float mean = inner_product(width, a->out + first + r * stride, grads + r * wide);
                        softmax_backward(weights + r * pitch, score_grads + r * pitch, i + r + 1, count,
                               a->scales + 2 * (h * a->tokens + begin + i + r), mean);
                    }
                    for (int64_t r = rows; r < ROWS; r++) {
                        memset(weights + r * pitch, 0, sizeof(float) * count);
                        memset(score_grads + r * pitch, 0, sizeof(float) * count);
                    }
                    weighted_rows(wide, seen, pitch, score_grads, keys, sums);
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t d = 0; d < width; d++)
                            a->grad_q[first + r * stride + d] = sums[r * wide + d] * a->scaling;
                    add_weighted_columns(wide, seen, pitch, score_grads, queries, key_sums);
                    add_weighted_columns(wide, seen, pitch, weights, grads, value_sums);
                }
            for (int64_t t = 0; t < length; t++) {
                int64_t to = ((begin + t) * a->groups + g) * width;
                memcpy(a->grad_k + to, key_sums + t * wide, sizeof(float) * width);
                memcpy(a->grad_v + to, value_sums + t * wide, sizeof(float) * width);
            }
        }
    }
    free(workspace);
    return 0;
}

int attention_forward(const attention_args *a) {
    unsigned before = flush_to_zero();
    int failed = forward(a);
    flush_as_before(before);
    return failed;
}

int attention_backward(const attention_args *a) {
    unsigned before = flush_to_zero(); /* weights of distant keys, times gradients */
    int failed = backward(a);
    flush_as_before(before);
    return failed;
}
