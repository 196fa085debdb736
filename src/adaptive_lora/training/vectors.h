/* Vectors of 64 bytes for the kernels of this folder: the vector extensions of GCC and Clang, no intrinsics, any
   instruction set. REAL is float unless it is defined as double. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#define LANES (64 / (int)sizeof(REAL))
#define INLINE static inline __attribute__((always_inline))

typedef REAL lanes __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));

INLINE lanes splat(REAL x) { return (lanes){} + x; }
INLINE lanes load(const REAL *p) { return *(const lanes *)p; }
INLINE void store(REAL *p, lanes x) { *(lanes *)p = x; }

/* The first `count` < LANES numbers at p, zeros after them. */
INLINE lanes load_some(const REAL *p, int64_t count) {
    REAL a[LANES] = {0};
    memcpy(a, p, count * sizeof(REAL));
    return load(a);
}

INLINE void store_some(REAL *p, lanes x, int64_t count) {
    REAL a[LANES];
    store(a, x);
    memcpy(p, a, count * sizeof(REAL));
}

/* Pairwise: the chain of dependent operations is short. */
INLINE REAL sum_of(lanes x) {
    REAL a[LANES];
    memcpy(a, &x, sizeof a);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}

#define IS_float 1
#define IS_OF(type) IS_##type
#define IS(type) IS_OF(type)

#if IS(REAL) && defined __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
/* Of 16 vectors of 16 floats: lane i is `sum_of(x[i])`, bit by bit. At each step two vectors become one of half sums. */
INLINE void sums_of(const lanes *x, REAL *sums) {
    lanes a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    store(sums, __builtin_shufflevector(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
                    __builtin_shufflevector(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31));
}
#endif
#endif

#endif
