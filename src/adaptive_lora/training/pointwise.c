/* What a model computes number by number, or row by row, between its products; float32, one thread.

   RMS norm        y = w x / sqrt(mean(x^2) + epsilon)
   gate            y = silu(g) u,  silu(g) = g / (1 + exp(-g))
   GELU            y = x / (1 + exp(-2 z)),  z = sqrt(2/pi) (x + 0.044715 x^3): half x (1 + tanh z) in other words
   rotation        (y1, y2) = (x1 c1 - x2 s1, x2 c2 + x1 s2)  of the halves of each head, c and s by token
   cross entropy   log sum exp(x) - x[target], and its gradient

   Each reads what it needs once and writes its result once. Every number comes from the same operations wherever it
   stands, so that no bit depends on the other rows. */

#include "exponential.h"

#include <math.h>

typedef struct {
    int64_t rows, width, heads, stride; /* stride: floats from one token of `x` to the next, of the rotation */
    const float *x, *weight, *grad;     /* gate: x is g, weight is u; rotation: weight is c, other is s */
    float *other;                       /* norm: 1 / sqrt(...) of each row; gate: the gradient of u */
    float *out;
    double epsilon;
} pointwise_args;

INLINE lanes at_most(const float *p, int64_t left) { return left >= LANES ? load(p) : load_some(p, left); }

INLINE void put(float *p, lanes x, int64_t left) {
    if (left >= LANES)
        store(p, x);
    else
        store_some(p, x, left);
}

int pointwise_norm_forward(const pointwise_args *a) {
    int64_t width = a->width;
    for (int64_t i = 0; i < a->rows; i++) {
        const float *x = a->x + i * width;
        lanes even = splat(0), odd = splat(0);
        int64_t d = 0;
        for (; d + 2 * LANES <= width; d += 2 * LANES) {
            even += load(x + d) * load(x + d);
            odd += load(x + d + LANES) * load(x + d + LANES);
        }
        for (; d < width; d += LANES) {
            lanes v = at_most(x + d, width - d);
            even += v * v;
        }
        float inverse = 1 / sqrtf(sum_of(even + odd) / width + (float)a->epsilon);
        a->other[i] = inverse;
        for (d = 0; d < width; d += LANES)
            put(a->out + i * width + d,
                at_most(x + d, width - d) * inverse * at_most(a->weight + d, width - d), width - d);
    }
    return 0;
}

int pointwise_norm_backward(const pointwise_args *a) {
    int64_t width = a->width;
    for (int64_t i = 0; i < a->rows; i++) {
        const float *x = a->x + i * width, *grad = a->grad + i * width;
        lanes along = splat(0);
        for (int64_t d = 0; d < width; d += LANES)
            along += at_most(x + d, width - d) * at_most(grad + d, width - d) * at_most(a->weight + d, width - d);
        float inverse = a->other[i], slope = sum_of(along) * inverse * inverse * inverse / width;
        for (int64_t d = 0; d < width; d += LANES)
            put(a->out + i * width + d,
                at_most(grad + d, width - d) * at_most(a->weight + d, width - d) * inverse -
                    at_most(x + d, width - d) * slope,
                width - d);
    }
    return 0;
}

/* 1 / (1 + exp(-x)) */
INLINE lanes sigmoid(lanes x) {
    lanes least = splat(-88.0f);
    return 1.0f / (1.0f + exponential(-maximum(x, least)));
}

int pointwise_gate_forward(const pointwise_args *a) {
    int64_t count = a->rows * a->width;
    for (int64_t d = 0; d < count; d += LANES) {
        lanes g = at_most(a->x + d, count - d);
        put(a->out + d, g * sigmoid(g) * at_most(a->weight + d, count - d), count - d);
    }
    return 0;
}

int pointwise_gate_backward(const pointwise_args *a) {
    int64_t count = a->rows * a->width;
    for (int64_t d = 0; d < count; d += LANES) {
        lanes g = at_most(a->x + d, count - d), grad = at_most(a->grad + d, count - d), s = sigmoid(g);
        put(a->other + d, grad * g * s, count - d);
        put(a->out + d, grad * at_most(a->weight + d, count - d) * s * (1.0f + g * (1.0f - s)), count - d);
    }
    return 0;
}

/* 2 z = GELU_SCALE x (1 + GELU_CUBE x^2) */
#define GELU_SCALE 1.5957691216057308f
#define GELU_CUBE 0.044715f

int pointwise_gelu_forward(const pointwise_args *a) {
    int64_t count = a->rows * a->width;
    for (int64_t d = 0; d < count; d += LANES) {
        lanes x = at_most(a->x + d, count - d);
        put(a->out + d, x * sigmoid(GELU_SCALE * x * (1.0f + GELU_CUBE * x * x)), count - d);
    }
    return 0;
}

int pointwise_gelu_backward(const pointwise_args *a) {
    int64_t count = a->rows * a->width;
    for (int64_t d = 0; d < count; d += LANES) {
        lanes x = at_most(a->x + d, count - d), square = x * x;
        lanes s = sigmoid(GELU_SCALE * x * (1.0f + GELU_CUBE * square));
        lanes slope = GELU_SCALE * (1.0f + 3 * GELU_CUBE * square);
        put(a->out + d, at_most(a->grad + d, count - d) * s * (1.0f + x * (1.0f - s) * slope), count - d);
    }
    return 0;
}

/* Two halves of `half` numbers; back: of a gradient, whose sines are those of the other half. */
INLINE void rotate_halves(const int back, int64_t half, const float *restrict x, const float *restrict c,
                          const float *restrict s, float *restrict out) {
    for (int64_t d = 0; d < half; d++) {
        float one = x[d], two = x[half + d];
        out[d] = back ? one * c[d] + two * s[half + d] : one * c[d] - two * s[d];
        out[half + d] = back ? two * c[half + d] - one * s[d] : two * c[half + d] + one * s[half + d];
    }
}

INLINE int rotate(const pointwise_args *a, const int back) {
    int64_t width = a->width;
    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t h = 0; h < a->heads; h++) {
            const float *x = a->x + i * a->stride + h * width, *c = a->weight + i * width, *s = a->other + i * width;
            float *out = a->out + (i * a->heads + h) * width;
            if (width == 64) /* known to the compiler: no loop is left */
                rotate_halves(back, 32, x, c, s, out);
            else if (width == 16)
                rotate_halves(back, 8, x, c, s, out);
            else
                rotate_halves(back, width / 2, x, c, s, out);
        }
    return 0;
}

int pointwise_rotate_forward(const pointwise_args *a) { return rotate(a, 0); }
int pointwise_rotate_backward(const pointwise_args *a) { return rotate(a, 1); }

/* Cross entropy of the rows of x (rows, width) with `targets`: a row stays in the cache for all of its passes. */
typedef struct {
    int64_t rows, width;
    const float *x;
    const int64_t *targets;
    const float *weights; /* (rows), or null: no gradient */
    double *nll;
    int64_t *likeliest;
    float *out; /* (rows, width): weight (softmax(x) - onehot(target)) */
} cost_args;

INLINE float largest(const float *x, int64_t width) {
    lanes top = splat(x[0]);
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) top = maximum(top, load(x + d));
    float most = x[0];
    for (int i = 0; i < LANES; i++) most = top[i] > most ? top[i] : most;
    for (; d < width; d++) most = x[d] > most ? x[d] : most;
    return most;
}

/* Terms of a sum in single precision; the sums of blocks are added in double. */
#define SUMMED 512

/* sum exp(x - x[peak]) over all but the peak itself, beside whose 1 many small terms would be rounded away; all terms,
   the peak's 1 too, go to `out`, unless it is null. */
static double exponentials(const float *x, int64_t width, int64_t peak, float *out) {
    double total = 0;
    for (int64_t at = 0; at < width; at += SUMMED) {
        lanes sum = splat(0);
        for (int64_t d = at; d < at + SUMMED && d < width; d += LANES) {
            lanes e = exponential(at_most(x + d, width - d) - x[peak]);
            if (out) put(out + d, e, width - d);
            for (int64_t i = width - d; i < LANES; i++) e[i] = 0;
            if (peak >= d && peak < d + LANES) e[peak - d] = 0;
            sum += e;
        }
        total += sum_of(sum);
    }
    return total;
}

int pointwise_costs(const cost_args *a) {
    int64_t width = a->width;
    for (int64_t i = 0; i < a->rows; i++) {
        const float *x = a->x + i * width;
        float top = largest(x, width), *out = a->weights ? a->out + i * width : NULL;
        int64_t peak = 0;
        while (peak < width - 1 && x[peak] != top) peak++;
        double others = exponentials(x, width, peak, out);
        a->likeliest[i] = peak;
        a->nll[i] = log1p(others) - ((double)x[a->targets[i]] - x[peak]);
        if (!out) continue;
        float factor = a->weights[i] / (1 + others);
        for (int64_t d = 0; d < width; d += LANES) put(out + d, at_most(out + d, width - d) * factor, width - d);
        out[a->targets[i]] -= a->weights[i];
    }
    return 0;
}
