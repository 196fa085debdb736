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

#endif
