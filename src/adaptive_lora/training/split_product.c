/* Products of float32 matrices on the bfloat16 tiles of a processor (AMX): y = x W^T; one thread.

   A float32 number is the sum of three bfloat16 ones up to 2^-27 of itself: a = a0 + a1 + a2. Of

       x w = sum of x_i w_j

   the six products with i + j < 3 are added up in float32; the others are 2^-26 of x w, less than a product in float32
   rounds off. Tiles multiply bfloat16 many times as fast as vectors multiply float32, so that six products take less
   time than one.

   Both matrices are cut into parts as tiles of 16 by 32 numbers, of x as many as stay in cache, of W as many as 4096
   columns of y need. A row of y depends on its row of x alone, and on no other row nor its place.
   Numbers whose parts are subnormal are 0, and an infinite one makes a row NaN. */

#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t rows, d_in, d_out;
    int64_t w_row, w_column; /* strides of W (d_out, d_in) in numbers; one of them is 1 */
    const float *x, *w; /* x (rows, d_in), contiguous */
    float *y; /* (rows, d_out), contiguous */
    void *workspace; /* of `bytes`, at a multiple of 64 */
    int64_t bytes;
} split_args;

#if defined __AMX_BF16__ && defined __AVX512BF16__ && defined __linux__

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SIDE = 16, /* rows of a tile, and numbers of its sums */
    DEEP = 32, /* numbers along the common dimension */
    BLOCK = 2 * SIDE, /* sums of one inner loop: two by two tiles */
    TILE = SIDE * DEEP,
    PARTS = 3,
    STEPS = 18, /* tiles along the common dimension whose products are added up before others */
    ROWS = 256, /* of x that are cut at a time */
    COLUMNS = 64, /* of y that are computed at a time: parts of so much of W stay in cache */
    PANEL = 4096, /* of y for which W is cut at a time */
    AHEAD = 3, /* tiles of x that are fetched before they are cut */
    DEPTH = 576, /* of the common dimension that is cut at a time: a multiple of STEPS tiles */
};

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Linux lets a process use tiles that has asked for them. */
int split_product_available(split_args *unused) {
    (void)unused;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}

static __m512 widened(__m256i half) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16); }

static __mmask16 first(int64_t count) { return count >= SIDE ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

/* 16 numbers, the ones after `count` being 0. */
static __m512 load(const float *p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }

/* The parts of 32 numbers, each of them rounded from what the parts before leave. */
static void cut(__m512 low, __m512 high, __m512i part[PARTS]) {
    for (int p = 0; p < PARTS; p++) {
        part[p] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        low -= widened(_mm512_castsi512_si256(part[p]));
        high -= widened(_mm512_extracti64x4_epi64(part[p], 1));
    }
}

/* The place of a tile: blocks of STEPS of the common dimension, in them blocks of 32 rows (or columns), in them steps,
   parts and the two tiles of a block. */
static int64_t place(int64_t block, int64_t blocks, int64_t step, int64_t steps) {
    int64_t before = step / STEPS * STEPS, deep = smaller(STEPS, steps - before);
    return (before * blocks + block * deep + step - before) * PARTS * 2 * TILE;
}

/* Rows of x from `top` on, numbers from `k` on, as tiles: a row of a tile is 32 numbers of a row of x. */
static void cut_rows(const split_args *t, int64_t top, int64_t rows, int64_t k, int64_t depth, uint16_t *tiles) {
    int64_t blocks = up_to(rows, BLOCK) / BLOCK, steps = up_to(depth, DEEP) / DEEP;
    for (int64_t i = 0; i < blocks * steps; i++) {
        int64_t block = i / steps, s = i % steps, left = depth - s * DEEP;
        const __mmask16 low = first(left), high = first(left - SIDE);
        const float *x = t->x + (top + block * BLOCK) * t->d_in + k + s * DEEP;
        uint16_t *out = tiles + place(block, blocks, s, steps);
        int64_t there = smaller(BLOCK, rows - block * BLOCK);
        for (int64_t r = 0; r < there; r++, x += t->d_in, out += DEEP) {
            __m512i part[PARTS];
            _mm_prefetch(x + AHEAD * DEEP, _MM_HINT_T0);
            _mm_prefetch(x + AHEAD * DEEP + SIDE, _MM_HINT_T0);
            cut(_mm512_maskz_loadu_ps(low, x), _mm512_maskz_loadu_ps(high, x + SIDE), part);
            for (int p = 0; p < PARTS; p++) _mm512_storeu_si512(out + p * 2 * TILE, part[p]);
        }
        for (int p = 0; p < PARTS; p++) memset(out + p * 2 * TILE, 0, (BLOCK - there) * DEEP * sizeof(uint16_t));
    }
}

/* 16 by 16 pairs of numbers, rows for columns. */
static void transpose(__m512i *a) {
    __m512i b[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < SIDE; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88);
        a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd);
    }
}

/* 16 rows of W from n on, 32 numbers from k on: a tile of each part, whose rows are pairs of numbers of all 16. */
static void cut_along(const split_args *t, int64_t n, int64_t k, uint16_t *out) {
    __m512i rows[PARTS][SIDE];
    for (int i = 0; i < SIDE; i++) {
        __m512i part[PARTS];
        int64_t left = n + i < t->d_out ? t->d_in - k : 0;
        const float *w = t->w + (n + i) * t->w_row + k;
        _mm_prefetch(w + AHEAD * DEEP, _MM_HINT_T0);
        _mm_prefetch(w + AHEAD * DEEP + SIDE, _MM_HINT_T0);
        cut(load(w, left), load(w + SIDE, left - SIDE), part);
        for (int p = 0; p < PARTS; p++) rows[p][i] = part[p];
    }
    for (int p = 0; p < PARTS; p++) {
        transpose(rows[p]);
        for (int i = 0; i < SIDE; i++) _mm512_storeu_si512(out + p * 2 * TILE + i * DEEP, rows[p][i]);
    }
}

/* The same where numbers of a column of W lie side by side. */
static void cut_across(const split_args *t, int64_t n, int64_t k, uint16_t *out) {
    short order[2 * SIDE];
    for (int i = 0; i < 2 * SIDE; i++) order[i] = i / 2 + i % 2 * SIDE;
    const __m512i in_pairs = _mm512_loadu_si512(order);
    for (int i = 0; i < SIDE; i++) {
        __m512i part[PARTS];
        int64_t row = k + 2 * i, columns = t->d_out - n;
        const float *w = t->w + row * t->w_column + n;
        _mm_prefetch(w + AHEAD * SIDE, _MM_HINT_T0);
        _mm_prefetch(w + t->w_column + AHEAD * SIDE, _MM_HINT_T0);
        __m512 even = load(w, row < t->d_in ? columns : 0);
        cut(even, load(w + t->w_column, row + 1 < t->d_in ? columns : 0), part);
        for (int p = 0; p < PARTS; p++)
            _mm512_storeu_si512(out + p * 2 * TILE + i * DEEP, _mm512_permutexvar_epi16(in_pairs, part[p]));
    }
}

/* Rows of W from `left` on, numbers from `k` on; where its columns are in memory one after another, so are they here. */
static void cut_weight(const split_args *t, int64_t left, int64_t columns, int64_t k, int64_t depth, uint16_t *tiles) {
    int64_t blocks = up_to(columns, BLOCK) / BLOCK, steps = up_to(depth, DEEP) / DEEP, halves = 2 * blocks;
    for (int64_t i = 0; i < halves * steps; i++) {
        int64_t half = t->w_column == 1 ? i / steps : i % halves, s = t->w_column == 1 ? i % steps : i / halves;
        uint16_t *out = tiles + place(half / 2, blocks, s, steps) + half % 2 * TILE;
        if (t->w_column == 1) cut_along(t, left + half * SIDE, k + s * DEEP, out);
        else cut_across(t, left + half * SIDE, k + s * DEEP, out);
    }
}

/* Tiles 0 to 3 are sums, 4 and 5 two tiles of x, 6 and 7 two of W. A compiler's instructions for them are statements. */
#define X(part)                                                                                             \
    do {                                                                                                    \
        _tile_loadd(4, a + (part) * 2 * TILE, 64);                                                          \
        _tile_loadd(5, a + ((part) * 2 + 1) * TILE, 64);                                                    \
    } while (0)
#define W(part)                                                                                             \
    do {                                                                                                    \
        _tile_loadd(6, b + (part) * 2 * TILE, 64);                                                          \
        _tile_loadd(7, b + ((part) * 2 + 1) * TILE, 64);                                                    \
    } while (0)
#define MULTIPLY                                                                                            \
    do {                                                                                                    \
        _tile_dpbf16ps(0, 4, 6);                                                                            \
        _tile_dpbf16ps(1, 4, 7);                                                                            \
        _tile_dpbf16ps(2, 5, 6);                                                                            \
        _tile_dpbf16ps(3, 5, 7);                                                                            \
    } while (0)

/* Adds the products of a block of x and one of W to `sums`, rows of `stride` numbers: of each step the largest last. */
static void multiply(const uint16_t *a, const uint16_t *b, int64_t steps, int fresh, float *sums,
                     int64_t stride) {
    float *below = sums + SIDE * stride;
    stride *= sizeof(float);
    __asm__ volatile("" ::: "memory"); /* GCC does not know that tiles are loaded from memory */
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, stride);
        _tile_loadd(1, sums + SIDE, stride);
        _tile_loadd(2, below, stride);
        _tile_loadd(3, below + SIDE, stride);
    }
    for (int64_t s = 0; s < steps; s++, a += PARTS * 2 * TILE, b += PARTS * 2 * TILE) {
        X(0);
        W(2);
        MULTIPLY;
        W(1);
        MULTIPLY;
        X(1);
        MULTIPLY;
        W(0);
        MULTIPLY;
        X(2);
        MULTIPLY;
        X(0);
        MULTIPLY;
    }
    _tile_stored(0, sums, stride);
    _tile_stored(1, sums + SIDE, stride);
    _tile_stored(2, below, stride);
    _tile_stored(3, below + SIDE, stride);
}

/* A block at the edge of y, whole in `block`. */
static void copy(float *to, int64_t to_stride, const float *from, int64_t from_stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, columns * sizeof(float));
}

static void multiply_block(const split_args *t, const uint16_t *a, const uint16_t *b, int64_t steps, int fresh,
                           int64_t row, int64_t column) {
    int64_t rows = smaller(BLOCK, t->rows - row), columns = smaller(BLOCK, t->d_out - column);
    float *y = t->y + row * t->d_out + column, whole[BLOCK * BLOCK];
    if (rows == BLOCK && columns == BLOCK) {
        multiply(a, b, steps, fresh, y, t->d_out);
        return;
    }
    if (!fresh) copy(whole, BLOCK, y, t->d_out, rows, columns);
    multiply(a, b, steps, fresh, whole, BLOCK);
    copy(y, t->d_out, whole, BLOCK, rows, columns);
}

/* Adds to y of the rows from `top` on, whose tiles are `x`, and the columns from `left` on, whose tiles are `w`. */
static void multiply_panel(const split_args *t, int64_t top, int64_t left, int64_t columns, int64_t depth, int fresh,
                           const uint16_t *x, const uint16_t *w) {
    int64_t down = up_to(smaller(ROWS, t->rows - top), BLOCK) / BLOCK, across = up_to(columns, BLOCK) / BLOCK;
    int64_t steps = up_to(depth, DEEP) / DEEP;
    for (int64_t from = 0; from < across; from += COLUMNS / BLOCK)
        for (int64_t s = 0; s < steps; s += STEPS)
            for (int64_t i = 0; i < down; i++)
                for (int64_t j = from; j < smaller(across, from + COLUMNS / BLOCK); j++)
                    multiply_block(t, x + place(i, down, s, steps), w + place(j, across, s, steps),
                                   smaller(STEPS, steps - s), fresh && s == 0, top + i * BLOCK, left + j * BLOCK);
}

/* Numbers of the tiles of W that are cut at a time. */
static int64_t cut_of_weight(const split_args *t) {
    return smaller(PANEL, up_to(t->d_out, BLOCK)) * smaller(DEPTH, up_to(t->d_in, DEEP)) * PARTS;
}

static int64_t needed(const split_args *t) {
    int64_t of_x = smaller(ROWS, up_to(t->rows, BLOCK)) * smaller(DEPTH, up_to(t->d_in, DEEP)) * PARTS;
    return (cut_of_weight(t) + of_x) * sizeof(uint16_t);
}

/* Writes y. Where the workspace is too small: sets `bytes` to what it takes, and returns 1. */
int split_product_multiply(split_args *t) {
    if (t->bytes < needed(t)) {
        t->bytes = needed(t);
        return 1;
    }
    uint16_t *w = t->workspace, *x = w + cut_of_weight(t);
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = DEEP * sizeof(uint16_t), shapes.rows[i] = SIDE;
    _tile_loadconfig(&shapes);
    for (int64_t left = 0; left < t->d_out; left += PANEL)
        for (int64_t k = 0; k < t->d_in; k += DEPTH) {
            int64_t columns = smaller(PANEL, t->d_out - left), depth = smaller(DEPTH, t->d_in - k);
            cut_weight(t, left, columns, k, depth, w);
            for (int64_t top = 0; top < t->rows; top += ROWS) {
                cut_rows(t, top, smaller(ROWS, t->rows - top), k, depth, x);
                multiply_panel(t, top, left, columns, depth, k == 0, x, w);
            }
        }
    _tile_release();
    return 0;
}

#else

int split_product_available(split_args *unused) {
    (void)unused;
    return 0;
}

int split_product_multiply(split_args *unused) { return split_product_available(unused); }

#endif
