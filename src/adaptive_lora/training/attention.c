/* Causal attention over sequences laid end to end, float32, one thread.

   For short sequences and small heads, where the overhead of a general kernel exceeds the arithmetic. A block
   of ROWS queries is multiplied with all keys up to its last one; keys run along the lanes of a vector, so that
   scores, exponentials and their gradients need no shuffling. Vector extensions of GCC and Clang: no
   intrinsics, any instruction set.

   Layouts: q (N, heads, width), k and v (N, groups, width), heads / groups queries share a key; consecutive
   tokens are `*_stride` floats apart, heads `width` floats. starts (sequences + 1). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define ROWS 8
#define HIDDEN -1e30f /* the score of a masked key */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

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

static inline lanes splat(float x) { return (lanes){} + x; }
static inline lanes load(const float *p) { return *(const lanes *)p; }
static inline void store(float *p, lanes x) { *(lanes *)p = x; }

static inline lanes maximum(lanes x, lanes y) {
    ints smaller = x < y;
    return (lanes)(((ints)y & smaller) | ((ints)x & ~smaller));
}

/* exp(x) for x <= 88, relative error 2e-7 (Cephes' polynomial); about 0 below -87, NaN for NaN. */
static inline lanes exponential(lanes x) {
    ints is_nan = x != x;
    lanes safe = maximum(x, splat(-87.0f));
    lanes round = splat(12582912.0f);
    lanes n = (safe * 1.44269504f + round) - round;
    lanes r = safe - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ints power = (__builtin_convertvector(n, ints) + 127) << 23;
    lanes value = p * (lanes)power;
    return (lanes)(((ints)x & is_nan) | ((ints)value & ~is_nan));
}

/* out[r][j] = sum_d rows[r][d] * columns[d][j] for j < count, a multiple of LANES. */
static inline void products(int64_t width, int64_t count, int64_t pitch, const float *restrict rows,
                            const float *restrict columns, float *restrict out) {
    int64_t j = 0;
    for (; j + 2 * LANES <= count; j += 2 * LANES) {
        lanes one[ROWS], two[ROWS];
        for (int r = 0; r < ROWS; r++) one[r] = two[r] = splat(0);
        for (int64_t d = 0; d < width; d++) {
            lanes a = load(columns + d * pitch + j), b = load(columns + d * pitch + j + LANES);
            for (int r = 0; r < ROWS; r++) {
                float x = rows[r * width + d];
                one[r] += x * a;
                two[r] += x * b;
            }
        }
        for (int r = 0; r < ROWS; r++) {
            store(out + r * pitch + j, one[r]);
            store(out + r * pitch + j + LANES, two[r]);
        }
    }
    for (; j < count; j += LANES) {
        lanes one[ROWS];
        for (int r = 0; r < ROWS; r++) one[r] = splat(0);
        for (int64_t d = 0; d < width; d++)
            for (int r = 0; r < ROWS; r++) one[r] += rows[r * width + d] * load(columns + d * pitch + j);
        for (int r = 0; r < ROWS; r++) store(out + r * pitch + j, one[r]);
    }
}

/* out[r][d] = sum_j weights[r][j] * values[j][d] */
static inline void weighted_rows(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict values, float *restrict out) {
    for (int64_t d = 0; d < width; d += LANES) {
        lanes sum[ROWS];
        for (int r = 0; r < ROWS; r++) sum[r] = splat(0);
        for (int64_t j = 0; j < count; j++) {
            lanes value = load(values + j * width + d);
            for (int r = 0; r < ROWS; r++) sum[r] += weights[r * pitch + j] * value;
        }
        for (int r = 0; r < ROWS; r++) store(out + r * width + d, sum[r]);
    }
}

/* sums[j][d] += sum_r weights[r][j] * rows[r][d] */
static inline void add_weighted_columns(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict rows, float *restrict sums) {
    for (int64_t d = 0; d < width; d += LANES) {
        lanes row[ROWS];
        for (int r = 0; r < ROWS; r++) row[r] = load(rows + r * width + d);
        for (int64_t j = 0; j < count; j++) {
            lanes even = load(sums + j * width + d), odd = splat(0);
            for (int r = 0; r < ROWS; r += 2) {
                even += weights[r * pitch + j] * row[r];
                odd += weights[(r + 1) * pitch + j] * row[r + 1];
            }
            store(sums + j * width + d, even + odd);
        }
    }
}

/* Copies `count` rows of `width` floats, `stride` apart, to rows of `padded`, filled with 0 up to `all_rows` rows. */
static void copy_rows(float *to, const float *from, int64_t stride, int64_t count, int64_t all_rows, int64_t width,
                 int64_t padded) {
    memset(to, 0, sizeof(float) * all_rows * padded);
    for (int64_t t = 0; t < count; t++) memcpy(to + t * padded, from + t * stride, sizeof(float) * width);
}

static void transpose(float *to, const float *rows, int64_t count, int64_t width, int64_t pitch) {
    memset(to, 0, sizeof(float) * width * pitch);
    for (int64_t t = 0; t < count; t++)
        for (int64_t d = 0; d < width; d++) to[d * pitch + t] = rows[t * width + d];
}

static int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static int64_t row_pitch(const attention_args *a) {
    int64_t longest = 0;
    for (int64_t s = 0; s < a->sequences; s++)
        if (a->starts[s + 1] - a->starts[s] > longest) longest = a->starts[s + 1] - a->starts[s];
    return round_up(longest);
}

/* x where j + lane < seen, else `other`. */
static inline lanes mask_from(lanes x, int64_t j, int64_t seen, float other) {
    ints index = (ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)j;
    ints visible = index < (int32_t)seen;
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

static inline float sum_of(lanes x) {
    float a[LANES];
    memcpy(a, &x, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
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

int attention_forward(const attention_args *a) {
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
                    products(wide, count, pitch, queries, keys_t, weights);
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

int attention_backward(const attention_args *a) {
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
                    products(wide, count, pitch, queries, keys_t, weights);
                    products(wide, count, pitch, grads, values_t, score_grads);
                    for (int64_t r = 0; r < rows; r++) {
                        float mean = 0;
                        for (int64_t d = 0; d < width; d++)
                            mean += a->out[first + r * stride + d] * grads[r * wide + d];
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
