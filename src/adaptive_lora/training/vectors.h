/* Vectors of one register for the kernels of this folder: the vector extensions of GCC and Clang, no intrinsics, any
   instruction set. REAL is float unless it is defined as double. BYTES is the size of a register, unless it is defined:
   a larger vector works too, but is kept in memory between two operations, which costs more than they do. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#ifndef BYTES
#if defined __AVX512F__
#define BYTES 64
#elif defined __AVX__
#define BYTES 32
#else
#define BYTES 16
#endif
#endif
#define LANES (BYTES / (int)sizeof(REAL))
/* Vector registers: 32 of AVX-512 and 64-bit ARM, 16 of x86 before. Tiles of sums are cut to them. */
#ifndef MANY_REGISTERS
#if defined __AVX512F__ || defined __aarch64__
#define MANY_REGISTERS 1
#else
#define MANY_REGISTERS 0
#endif
#endif
#define INLINE static inline __attribute__((always_inline))

typedef REAL lanes __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

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

/* Between the two, this thread takes numbers below 1.2e-38 (of doubles 2.2e-308) for 0: an x86 processor needs a hundred
   times as long for an operation on one of them. They are below the rounding of every sum here. */
INLINE unsigned flush_to_zero(void) {
#ifdef __SSE2__
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040); /* what results, and what is read */
    return before;
#else
    return 0;
#endif
}

INLINE void flush_as_before(unsigned before) {
#ifdef __SSE2__
    __builtin_ia32_ldmxcsr(before);
#else
    (void)before;
#endif
}

#define IS_float 1
#define IS_OF(type) IS_##type
#define IS(type) IS_OF(type)

#if IS(REAL) && defined __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
/* Of LANES vectors: lane i is `sum_of(x[i])`, bit by bit. At each step two vectors become one of half sums. */
#define HALVES(to, from, count, low, high)                                      \
    for (int i = 0; i < count; i++)                                             \
        to[i] = __builtin_shufflevector(from[i], from[i + count], LIST low) +   \
                __builtin_shufflevector(from[i], from[i + count], LIST high)
#define LIST(...) __VA_ARGS__
INLINE void sums_of(const lanes *x, REAL *sums) {
    lanes total[1];
#if BYTES == 64
    lanes a[8], b[4], c[2];
    HALVES(a, x, 8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
           (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31));
    HALVES(b, a, 4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
           (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31));
    HALVES(c, b, 2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
           (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31));
    HALVES(total, c, 1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
           (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31));
#elif BYTES == 32
    lanes b[4], c[2];
    HALVES(b, x, 4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15));
    HALVES(c, b, 2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15));
    HALVES(total, c, 1, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15));
#else
    lanes c[2];
    HALVES(c, x, 2, (0, 1, 4, 5), (2, 3, 6, 7));
    HALVES(total, c, 1, (0, 4, 2, 6), (1, 5, 3, 7));
#endif
    store(sums, total[0]);
}
#endif
#endif

#endif
