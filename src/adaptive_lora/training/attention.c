/* Causal attention over sequences laid end to end, float32, one thread.

   Meant for short sequences and small heads, where a general kernel spends its time on the way to the
   arithmetic. A block of ROWS queries meets all keys up to its last one; keys run along the lanes of a
   vector, so that scores, exponentials and their gradients need no shuffling. Vector extensions of GCC
   and Clang: no intrinsics, any instruction set.

   Layouts: q (N, heads, width), k and v (N, groups, width), heads / groups queries share a key; tokens
   are `*_stride` floats apart, heads `width` floats. starts (sequences + 1). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define ROWS 8
#define HIDDEN -1e30f /* the score of a key that a query may not see */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

typedef struct {
    const float *q, *k, *v;
    int64_t q_stride, k_stride, v_stride;
    int64_t tokens, heads, groups, width, sequences;
    const int64_t *starts;
    float scaling;
    float *out;       /* (N, heads, width) */
    float *scales; /* (heads, N, 2): the largest score, and 1 / the sum of exponentials of what the others lack to it */
    const float *out_gradient;
    float *q_gradient, *k_gradient, *v_gradient;
} attention;

static inline lanes all(float x) { return (lanes){} + x; }
static inline lanes at(const float *p) { return *(const lanes *)p; }
static inline void put(float *p, lanes x) { *(lanes *)p = x; }

static inline lanes larger(lanes x, lanes y) {
    whole less = x < y;
    return (lanes)(((whole)y & less) | ((whole)x & ~less));
}

/* exp(x) for x <= 88, relative error 2e-7 (Cephes' polynomial); 0 at the far left, NaN for NaN. */
static inline lanes exponential(lanes x) {
    whole lost = x != x;
    lanes safe = larger(x, all(-87.0f));
    lanes round = all(12582912.0f);
    lanes n = (safe * 1.44269504f + round) - round;
    lanes r = safe - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    whole power = (__builtin_convertvector(n, whole) + 127) << 23;
    lanes value = p * (lanes)power;
    return (lanes)(((whole)x & lost) | ((whole)value & ~lost));
}

/* out[r][j] = sum_d rows[r][d] * columns[d][j] for j < count, a multiple of LANES. */
static inline void products(int64_t width, int64_t count, int64_t pitch, const float *restrict rows,
                            const float *restrict columns, float *restrict out) {
    int64_t j = 0;
    for (; j + 2 * LANES <= count; j += 2 * LANES) {
        lanes one[ROWS], two[ROWS];
        for (int r = 0; r < ROWS; r++) one[r] = two[r] = all(0);
        for (int64_t d = 0; d < width; d++) {
            lanes a = at(columns + d * pitch + j), b = at(columns + d * pitch + j + LANES);
            for (int r = 0; r < ROWS; r++) {
                float x = rows[r * width + d];
                one[r] += x * a;
                two[r] += x * b;
            }
        }
        for (int r = 0; r < ROWS; r++) {
            put(out + r * pitch + j, one[r]);
            put(out + r * pitch + j + LANES, two[r]);
        }
    }
    for (; j < count; j += LANES) {
        lanes one[ROWS];
        for (int r = 0; r < ROWS; r++) one[r] = all(0);
        for (int64_t d = 0; d < width; d++)
            for (int r = 0; r < ROWS; r++) one[r] += rows[r * width + d] * at(columns + d * pitch + j);
        for (int r = 0; r < ROWS; r++) put(out + r * pitch + j, one[r]);
    }
}

/* out[r][d] = sum_j weights[r][j] * values[j][d] */
static inline void gather(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict values, float *restrict out) {
    for (int64_t d = 0; d < width; d += LANES) {
        lanes sum[ROWS];
        for (int r = 0; r < ROWS; r++) sum[r] = all(0);
        for (int64_t j = 0; j < count; j++) {
            lanes value = at(values + j * width + d);
            for (int r = 0; r < ROWS; r++) sum[r] += weights[r * pitch + j] * value;
        }
        for (int r = 0; r < ROWS; r++) put(out + r * width + d, sum[r]);
    }
}

/* sums[j][d] += sum_r weights[r][j] * rows[r][d] */
static inline void spread(int64_t width, int64_t count, int64_t pitch, const float *restrict weights,
                          const float *restrict rows, float *restrict sums) {
    for (int64_t d = 0; d < width; d += LANES) {
        lanes row[ROWS];
        for (int r = 0; r < ROWS; r++) row[r] = at(rows + r * width + d);
        for (int64_t j = 0; j < count; j++) {
            lanes even = at(sums + j * width + d), odd = all(0);
            for (int r = 0; r < ROWS; r += 2) {
                even += weights[r * pitch + j] * row[r];
                odd += weights[(r + 1) * pitch + j] * row[r + 1];
            }
            put(sums + j * width + d, even + odd);
        }
    }
}

/* Copies `count` rows of `width` floats, `stride` apart, to rows of `padded`; up to `all_rows` the rest is 0. */
static void load(float *to, const float *from, int64_t stride, int64_t count, int64_t all_rows, int64_t width,
                 int64_t padded) {
    memset(to, 0, sizeof(float) * all_rows * padded);
    for (int64_t t = 0; t < count; t++) memcpy(to + t * padded, from + t * stride, sizeof(float) * width);
}

static void turn(float *to, const float *rows, int64_t count, int64_t width, int64_t pitch) {
    memset(to, 0, sizeof(float) * width * pitch);
    for (int64_t t = 0; t < count; t++)
        for (int64_t d = 0; d < width; d++) to[d * pitch + t] = rows[t * width + d];
}

static int64_t rounded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static int64_t pitch_of(const attention *a) {
    int64_t longest = 0;
    for (int64_t s = 0; s < a->sequences; s++)
        if (a->starts[s + 1] - a->starts[s] > longest) longest = a->starts[s + 1] - a->starts[s];
    return rounded(longest);
}

/* x where j + lane < seen, `other` beyond. */
static inline lanes shown(lanes x, int64_t j, int64_t seen, float other) {
    whole place = (whole){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)j;
    whole yes = place < (int32_t)seen;
    return (lanes)(((whole)x & yes) | ((whole)all(other) & ~yes));
}

/* Halves a vector until one number is left: few steps that wait for each other. */
static inline float most_of(lanes x) {
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

/* Turns a row of scores into exp(score - top) of the first `seen` keys and 0 beyond; scale is top and 1 / sum. */
static inline void normalise(float *row, int64_t seen, int64_t count, float *scale) {
    int64_t whole_vectors = seen / LANES * LANES;
    lanes most = all(HIDDEN), sums = all(0);
    for (int64_t j = 0; j < whole_vectors; j += LANES) most = larger(most, at(row + j));
    for (int64_t j = whole_vectors; j < count; j += LANES) {
        put(row + j, shown(at(row + j), j, seen, HIDDEN));
        most = larger(most, at(row + j));
    }
    float top = most_of(most);
    for (int64_t j = 0; j < count; j += LANES) {
        lanes e = exponential(at(row + j) - top);
        e = j < whole_vectors ? e : shown(e, j, seen, 0);
        put(row + j, e);
        sums += e;
    }
    scale[0] = top;
    scale[1] = 1 / sum_of(sums);
}

int attention_forward(const attention *a) {
    int64_t width = a->width, wide = rounded(width), pitch = pitch_of(a), share = a->heads / a->groups;
    float *room = aligned_alloc(4 * LANES, sizeof(float) * (3 * pitch * wide + ROWS * (pitch + 2 * wide)));
    if (!room) return 1;
    float *keys = room, *turned = keys + pitch * wide, *values = turned + pitch * wide;
    float *weights = values + pitch * wide, *queries = weights + ROWS * pitch, *sums = queries + ROWS * wide;
    for (int64_t s = 0; s < a->sequences; s++) {
        int64_t begin = a->starts[s], length = a->starts[s + 1] - begin;
        for (int64_t g = 0; g < a->groups; g++) {
            load(keys, a->k + begin * a->k_stride + g * width, a->k_stride, length, length, width, wide);
            load(values, a->v + begin * a->v_stride + g * width, a->v_stride, length, length, width, wide);
            turn(turned, keys, length, wide, pitch);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = length - i < ROWS ? length - i : ROWS, seen = i + rows, count = rounded(seen);
                    load(queries, a->q + (begin + i) * a->q_stride + h * width, a->q_stride, rows, ROWS, width, wide);
                    for (int64_t x = 0; x < ROWS * wide; x++) queries[x] *= a->scaling;
                    products(wide, count, pitch, queries, turned, weights);
                    for (int64_t r = 0; r < rows; r++)
                        normalise(weights + r * pitch, i + r + 1, count, a->scales + 2 * (h * a->tokens + begin + i + r));
                    for (int64_t r = rows; r < ROWS; r++) memset(weights + r * pitch, 0, sizeof(float) * count);
                    gather(wide, seen, pitch, weights, values, sums);
                    for (int64_t r = 0; r < rows; r++) {
                        float share = a->scales[2 * (h * a->tokens + begin + i + r) + 1];
                        float *out = a->out + ((begin + i + r) * a->heads + h) * width;
                        for (int64_t d = 0; d < width; d++) out[d] = sums[r * wide + d] * share;
                    }
                }
        }
    }
    free(room);
    return 0;
}

/* From scores and dL/dweights of one query: its weights again, and dL/dscores = weights * (dL/dweights - mean). */
static inline void unfold(float *row, float *gradient, int64_t seen, int64_t count, const float *scale, float mean) {
    int64_t whole_vectors = seen / LANES * LANES;
    for (int64_t j = 0; j < count; j += LANES) {
        lanes weight = exponential(at(row + j) - scale[0]) * scale[1];
        weight = j < whole_vectors ? weight : shown(weight, j, seen, 0);
        lanes slope = weight * (at(gradient + j) - mean);
        put(row + j, weight);
        put(gradient + j, j < whole_vectors ? slope : shown(slope, j, seen, 0));
    }
}

int attention_backward(const attention *a) {
    int64_t width = a->width, wide = rounded(width), pitch = pitch_of(a), share = a->heads / a->groups;
    int64_t stride = a->heads * width;
    float *room = aligned_alloc(4 * LANES, sizeof(float) * (6 * pitch * wide + ROWS * (2 * pitch + 3 * wide)));
    if (!room) return 1;
    float *keys = room, *turned_keys = keys + pitch * wide, *values = turned_keys + pitch * wide;
    float *turned_values = values + pitch * wide, *key_sums = turned_values + pitch * wide;
    float *value_sums = key_sums + pitch * wide, *weights = value_sums + pitch * wide;
    float *slopes = weights + ROWS * pitch, *queries = slopes + ROWS * pitch;
    float *outer = queries + ROWS * wide, *sums = outer + ROWS * wide;
    for (int64_t s = 0; s < a->sequences; s++) {
        int64_t begin = a->starts[s], length = a->starts[s + 1] - begin;
        for (int64_t g = 0; g < a->groups; g++) {
            load(keys, a->k + begin * a->k_stride + g * width, a->k_stride, length, length, width, wide);
            load(values, a->v + begin * a->v_stride + g * width, a->v_stride, length, length, width, wide);
            turn(turned_keys, keys, length, wide, pitch);
            turn(turned_values, values, length, wide, pitch);
            memset(key_sums, 0, sizeof(float) * pitch * wide);
            memset(value_sums, 0, sizeof(float) * pitch * wide);
            for (int64_t h = g * share; h < (g + 1) * share; h++)
                for (int64_t i = 0; i < length; i += ROWS) {
                    int64_t rows = length - i < ROWS ? length - i : ROWS, seen = i + rows, count = rounded(seen);
                    int64_t first = ((begin + i) * a->heads + h) * width;
                    load(queries, a->q + (begin + i) * a->q_stride + h * width, a->q_stride, rows, ROWS, width, wide);
                    load(outer, a->out_gradient + first, stride, rows, ROWS, width, wide);
                    for (int64_t x = 0; x < ROWS * wide; x++) queries[x] *= a->scaling;
                    products(wide, count, pitch, queries, turned_keys, weights);
                    products(wide, count, pitch, outer, turned_values, slopes);
                    for (int64_t r = 0; r < rows; r++) {
                        float mean = 0;
                        for (int64_t d = 0; d < width; d++) mean += a->out[first + r * stride + d] * outer[r * wide + d];
                        unfold(weights + r * pitch, slopes + r * pitch, i + r + 1, count,
                               a->scales + 2 * (h * a->tokens + begin + i + r), mean);
                    }
                    for (int64_t r = rows; r < ROWS; r++) {
                        memset(weights + r * pitch, 0, sizeof(float) * count);
                        memset(slopes + r * pitch, 0, sizeof(float) * count);
                    }
                    gather(wide, seen, pitch, slopes, keys, sums);
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t d = 0; d < width; d++)
                            a->q_gradient[first + r * stride + d] = sums[r * wide + d] * a->scaling;
                    spread(wide, seen, pitch, slopes, queries, key_sums);
                    spread(wide, seen, pitch, weights, outer, value_sums);
                }
            for (int64_t t = 0; t < length; t++) {
                int64_t to = ((begin + t) * a->groups + g) * width;
                memcpy(a->k_gradient + to, key_sums + t * wide, sizeof(float) * width);
                memcpy(a->v_gradient + to, value_sums + t * wide, sizeof(float) * width);
            }
        }
    }
    free(room);
    return 0;
}
