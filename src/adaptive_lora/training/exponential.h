/* Exponentials of vectors of floats. */

#ifndef EXPONENTIAL_H
#define EXPONENTIAL_H

#include "vectors.h"

typedef int32_t ints __attribute__((vector_size(BYTES), aligned(4), may_alias));

INLINE lanes maximum(lanes x, lanes y) {
    ints smaller = (ints)(x < y);
    return (lanes)(((ints)y & smaller) | ((ints)x & ~smaller));
}

/* exp(x) for x <= 88, relative error 2e-7 (Cephes' polynomial); about 0 below -87, NaN for NaN. */
INLINE lanes exponential(lanes x) {
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
    return p * (lanes)power; /* of NaN p is NaN, whatever the power became */
}

#endif
