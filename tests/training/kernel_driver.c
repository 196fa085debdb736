/* Runs a C kernel on many shapes against plain loops; built with sanitizers by test_sanitizers.py, once a kernel.

   KERNEL is the path of the kernel, in quotes; -DATTENTION, -DDROPOUT, -DPOINTWISE or -DSPLIT says which, -DREAL=... the type of
   lora.c.
   Every array has an allocation of its own, of exactly its size, so that each access beyond it is seen. */

#include KERNEL
#include <stdio.h>

static uint64_t state = 1;

static double uniform(void) { /* in (-1, 1) */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / (double)(1ull << 52) - 1;
}

static int failures = 0;

static void check(const char *what, double found, double wanted, double tolerance) {
    double error = found > wanted ? found - wanted : wanted - found;
    double size = wanted > 0 ? wanted : -wanted;
    if (!(error <= tolerance * (1 + size)) && failures++ < 5) printf("%s is %.9g, not %.9g\n", what, found, wanted);
}

#ifdef ATTENTION

static float *random_floats(int64_t n) {
    float *x = malloc(sizeof(float) * n);
    for (int64_t i = 0; i < n; i++) x[i] = 2 * uniform();
    return x;
}

/* One sequence's head by the definition: out, and the gradients of q, k and v, added. */
static void plain(const attention_args *a, int64_t begin, int64_t length, int64_t h, double *out, double *gq,
                  double *gk, double *gv) {
    int64_t w = a->width, g = h / (a->heads / a->groups);
    for (int64_t i = 0; i < length; i++) {
        double p[64], slope[64], sum = 0, mean = 0, top = -1e300;
        const float *q = a->q + (begin + i) * a->q_stride + h * w, *go = a->grad_out + ((begin + i) * a->heads + h) * w;
        for (int64_t j = 0; j <= i; j++) {
            p[j] = 0;
            for (int64_t d = 0; d < w; d++) p[j] += (double)q[d] * a->k[(begin + j) * a->k_stride + g * w + d];
            p[j] *= a->scaling;
            top = p[j] > top ? p[j] : top;
        }
        for (int64_t j = 0; j <= i; j++) sum += p[j] = exp(p[j] - top);
        for (int64_t j = 0; j <= i; j++) {
            p[j] /= sum;
            slope[j] = 0;
            for (int64_t d = 0; d < w; d++) {
                double v = a->v[(begin + j) * a->v_stride + g * w + d];
                out[((begin + i) * a->heads + h) * w + d] += p[j] * v;
                slope[j] += go[d] * v;
                gv[((begin + j) * a->groups + g) * w + d] += p[j] * go[d];
            }
            mean += p[j] * slope[j];
        }
        for (int64_t j = 0; j <= i; j++)
            for (int64_t d = 0; d < w; d++) {
                double s = a->scaling * p[j] * (slope[j] - mean);
                gq[((begin + i) * a->heads + h) * w + d] += s * a->k[(begin + j) * a->k_stride + g * w + d];
                gk[((begin + j) * a->groups + g) * w + d] += s * q[d];
            }
    }
}

/* `extra` floats lie between the tokens of q, k and v, as they do in a fused projection; none after the last. */
static void run(const int64_t *lengths, int64_t sequences, int64_t heads, int64_t groups, int64_t width,
                int64_t extra) {
    int64_t *starts = malloc(sizeof(int64_t) * (sequences + 1)), n = 0;
    for (int64_t s = 0; s <= sequences; s++) {
        starts[s] = n;
        if (s < sequences) n += lengths[s];
    }
    int64_t qs = heads * width + extra, ks = groups * width + extra, qn = n * heads * width, kn = n * groups * width;
    float *q = random_floats(n * qs - extra), *k = random_floats(n * ks - extra), *v = random_floats(n * ks - extra);
    float *go = random_floats(qn), *out = malloc(sizeof(float) * qn), *scales = malloc(sizeof(float) * 2 * heads * n);
    float *gq = malloc(sizeof(float) * qn), *gk = malloc(sizeof(float) * kn), *gv = malloc(sizeof(float) * kn);
    double *wanted = calloc(2 * qn + 2 * kn, sizeof(double));
    attention_args a = {q,  k,   v,      qs, ks, ks, n, heads, groups, width, sequences, starts, 0.3f,
                        out, scales, go, gq, gk, gv};
    if (attention_forward(&a) || attention_backward(&a)) exit(2);
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t h = 0; h < heads; h++)
            plain(&a, starts[s], lengths[s], h, wanted, wanted + qn, wanted + 2 * qn, wanted + 2 * qn + kn);
    for (int64_t i = 0; i < qn; i++) check("out", out[i], wanted[i], 1e-5);
    for (int64_t i = 0; i < qn; i++) check("grad q", gq[i], wanted[qn + i], 1e-5);
    for (int64_t i = 0; i < kn; i++) check("grad k", gk[i], wanted[2 * qn + i], 1e-5);
    for (int64_t i = 0; i < kn; i++) check("grad v", gv[i], wanted[2 * qn + kn + i], 1e-5);
    float *all[] = {q, k, v, go, out, scales, gq, gk, gv};
    for (int i = 0; i < 9; i++) free(all[i]);
    free(wanted), free(starts);
}

int main(void) {
    const int64_t lengths[] = {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 2, 40}, shapes[][2] = {{1, 1}, {4, 2}, {3, 3}};
    const int64_t widths[] = {1, 5, 16, 17, 24, 32};
    for (int w = 0; w < 6; w++)
        for (int h = 0; h < 3; h++) {
            run(lengths, 12, shapes[h][0], shapes[h][1], widths[w], 0);
            run(lengths + w, 1, shapes[h][0], shapes[h][1], widths[w], 3);
        }
    run(lengths, 0, 2, 1, 8, 0); /* no sequence at all */
    return failures > 0;
}

#elif defined POINTWISE

static float *random_floats(int64_t n, double size) {
    float *x = malloc(sizeof(float) * n);
    for (int64_t i = 0; i < n; i++) x[i] = size * uniform();
    return x;
}

static float *room_for(int64_t n) { return malloc(sizeof(float) * n); }

static void run_norm(int64_t rows, int64_t width) {
    float *x = random_floats(rows * width, 3), *w = random_floats(width, 2), *g = random_floats(rows * width, 1);
    float *inverse = room_for(rows), *out = room_for(rows * width), *back = room_for(rows * width);
    pointwise_args a = {rows, width, 0, 0, x, w, g, inverse, out, 1e-5};
    if (pointwise_norm_forward(&a)) exit(2);
    a.out = back;
    if (pointwise_norm_backward(&a)) exit(2);
    for (int64_t i = 0; i < rows; i++) {
        double squares = 0, along = 0;
        for (int64_t d = 0; d < width; d++) squares += (double)x[i * width + d] * x[i * width + d];
        double scale = 1 / sqrt(squares / width + 1e-5);
        for (int64_t d = 0; d < width; d++) along += (double)g[i * width + d] * w[d] * x[i * width + d];
        for (int64_t d = 0; d < width; d++) {
            check("norm", out[i * width + d], x[i * width + d] * scale * w[d], 1e-5);
            double wanted = g[i * width + d] * w[d] * scale - x[i * width + d] * along * scale * scale * scale / width;
            check("gradient through a norm", back[i * width + d], wanted, 1e-5);
        }
    }
    free(x), free(w), free(g), free(inverse), free(out), free(back);
}

static void run_gate(int64_t n, double size) {
    float *g = random_floats(n, size), *u = random_floats(n, 2), *grad = random_floats(n, 1);
    float *out = room_for(n), *of_g = room_for(n), *of_u = room_for(n);
    pointwise_args a = {1, n, 0, 0, g, u, grad, of_u, out, 0};
    if (pointwise_gate_forward(&a)) exit(2);
    a.out = of_g;
    if (pointwise_gate_backward(&a)) exit(2);
    for (int64_t i = 0; i < n; i++) {
        double s = 1 / (1 + exp(-(double)g[i]));
        check("gate", out[i], g[i] * s * u[i], 1e-5);
        check("gradient of the gated", of_u[i], grad[i] * g[i] * s, 1e-5);
        check("gradient of the gate", of_g[i], grad[i] * u[i] * s * (1 + g[i] * (1 - s)), 1e-5);
    }
    free(g), free(u), free(grad), free(out), free(of_g), free(of_u);
}

static void run_gelu(int64_t n, double size) {
    float *x = random_floats(n, size), *grad = random_floats(n, 1), *out = room_for(n), *back = room_for(n);
    pointwise_args a = {1, n, 0, 0, x, 0, grad, 0, out, 0};
    if (pointwise_gelu_forward(&a)) exit(2);
    a.out = back;
    if (pointwise_gelu_backward(&a)) exit(2);
    for (int64_t i = 0; i < n; i++) {
        double c = sqrt(2 / 3.14159265358979323846), v = x[i], t = tanh(c * (v + 0.044715 * v * v * v));
        check("gelu", out[i], v * (1 + t) / 2, 1e-5);
        double slope = (1 + t) / 2 + v * (1 - t * t) * c * (1 + 3 * 0.044715 * v * v) / 2;
        check("gradient through gelu", back[i], grad[i] * slope, 1e-5);
    }
    free(x), free(grad), free(out), free(back);
}

static void run_rotation(int64_t rows, int64_t heads, int64_t width, int64_t extra) {
    int64_t stride = heads * width + extra, half = width / 2, n = rows * heads * width;
    float *x = random_floats(rows * stride - extra, 2), *c = random_floats(rows * width, 1);
    float *s = random_floats(rows * width, 1), *out = room_for(n), *back = room_for(n);
    pointwise_args a = {rows, width, heads, stride, x, c, 0, s, out, 0};
    if (pointwise_rotate_forward(&a)) exit(2);
    a.out = back;
    if (pointwise_rotate_backward(&a)) exit(2);
    for (int64_t i = 0; i < n; i++) {
        int64_t t = i / (heads * width), h = i / width % heads, d = i % width, other = (d + half) % width;
        const float *from = x + t * stride + h * width, *sines = s + t * width;
        double sign = d < half ? -1 : 1, straight = (double)from[d] * c[t * width + d];
        check("rotation", out[i], straight + sign * from[other] * sines[d], 1e-5);
        check("gradient through a rotation", back[i], straight - sign * from[other] * sines[other], 1e-5);
    }
    free(x), free(c), free(s), free(out), free(back);
}

static void run_costs(int64_t rows, int64_t width, int learning) {
    float *x = random_floats(rows * width, 4), *w = learning ? random_floats(rows, 1) : NULL;
    float *slope = learning ? room_for(rows * width) : NULL;
    int64_t *targets = malloc(sizeof(int64_t) * rows), *likeliest = malloc(sizeof(int64_t) * rows);
    double *nll = malloc(sizeof(double) * rows);
    for (int64_t i = 0; i < rows; i++) targets[i] = i * 7 % width;
    cost_args a = {rows, width, x, targets, w, nll, likeliest, slope};
    if (pointwise_costs(&a)) exit(2);
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        int64_t most = 0;
        for (int64_t d = 0; d < width; d++) {
            sum += exp((double)x[i * width + d]);
            if (x[i * width + d] > x[i * width + most]) most = d;
        }
        check("likeliest", likeliest[i], most, 0);
        check("cross entropy", nll[i], log(sum) - x[i * width + targets[i]], 1e-6);
        for (int64_t d = 0; learning && d < width; d++) {
            double wanted = w[i] * (exp((double)x[i * width + d]) / sum - (d == targets[i]));
            check("its gradient", slope[i * width + d], wanted, 1e-5);
        }
    }
    free(x), free(w), free(slope), free(targets), free(likeliest), free(nll);
}

int main(void) {
    const int64_t widths[] = {1, 5, 16, 17, 31, 32, 50, 64};
    for (int i = 0; i < 8; i++)
        for (int64_t rows = 0; rows < 4; rows++) {
            run_norm(rows, widths[i]);
            run_gate(rows * widths[i], i % 2 ? 3 : 200);
            run_gelu(rows * widths[i], i % 2 ? 3 : 200);
            run_rotation(rows + 1, rows + 1, 2 * widths[i], i % 3);
            run_costs(rows, widths[i], i % 2);
            run_costs(rows, 500 + widths[i], rows % 2);
        }
    return failures > 0;
}

#elif defined SPLIT
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Numbers that end where nothing may be read: sanitizers do not see loads under a mask. */
static float *numbers_at_an_end(int64_t n) {
    int64_t page = sysconf(_SC_PAGESIZE), bytes = (n * (int64_t)sizeof(float) + page - 1) / page * page;
    char *p = mmap(0, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + bytes, page, PROT_NONE)) exit(2);
    float *x = (float *)(p + bytes) - n;
    for (int64_t i = 0; i < n; i++) x[i] = 2 * uniform();
    return x;
}

/* W lies along its rows or along its columns. */
static void run(int64_t rows, int64_t d_in, int64_t d_out, int along) {
    float *x = numbers_at_an_end(rows * d_in), *w = numbers_at_an_end(d_out * d_in);
    split_args a = {rows, d_in, d_out, along ? d_in : 1, along ? 1 : d_out, x, w, malloc(sizeof(float) * rows * d_out)};
    split_product_multiply(&a);
    a.workspace = aligned_alloc(64, a.bytes);
    split_product_multiply(&a);
    for (int64_t i = 0; i < rows * d_out; i++) {
        double sum = 0;
        for (int64_t k = 0; k < d_in; k++)
            sum += (double)x[i / d_out * d_in + k] * w[i % d_out * a.w_row + k * a.w_column];
        check("product", a.y[i], sum, 1e-5);
    }
    free(a.y), free(a.workspace);
}

int main(void) {
    if (!split_product_available(0)) return 0;
    const int64_t shapes[][3] = {{1, 32, 32}, {33, 70, 45}, {31, 33, 65}, {65, 600, 40}, {260, 40, 33}, {2, 35, 4100}};
    for (int i = 0; i < 6; i++)
        for (int along = 0; along < 2; along++) run(shapes[i][0], shapes[i][1], shapes[i][2], along);
    return failures > 0;
}

#elif defined DROPOUT
#include <stdlib.h>

/* Modules of so many trials, the gaps coming in blocks of `block`. */
static void run(int64_t modules, const int64_t *sizes, int64_t block, double scale) {
    int64_t *ends = malloc(sizeof(int64_t) * modules), *cuts = calloc(modules + 1, sizeof(int64_t)), total = 0;
    for (int64_t m = 0; m < modules; m++) ends[m] = total += sizes[m];
    double *gaps = malloc(sizeof(double) * block);
    int64_t *wanted = malloc(sizeof(int64_t) * (total + 1)), *owner = malloc(sizeof(int64_t) * (total + 1)), at = -1, n = 0;
    dropout_args a = {gaps, block, scale, ends, modules, 0, cuts, 0, -1, 0};
    while (a.module < modules) {
        for (int64_t i = 0; i < block; i++) {
            gaps[i] = (1 + uniform()) * (1 + uniform());
            at += gaps[i] * scale > total ? total + 1 : (int64_t)(gaps[i] * scale) + 1;
            if (at >= total) continue;
            int64_t m = 0;
            while (at >= ends[m]) m++;
            wanted[n] = at - (ends[m] - sizes[m]);
            owner[n++] = m;
        }
        a.positions = realloc(a.positions, sizeof(int64_t) * (n ? n : 1));
        dropout_positions(&a);
    }
    check("found", a.found, n, 0);
    check("first cut", cuts[0], 0, 0);
    check("last cut", cuts[modules], n, 0);
    for (int64_t i = 0; i < n; i++) {
        check("position", a.positions[i], wanted[i], 0);
        check("in its module", cuts[owner[i]] <= i && i < cuts[owner[i] + 1], 1, 0);
    }
    free(ends), free(cuts), free(gaps), free(wanted), free(owner), free(a.positions);
}

int main(void) {
    const int64_t sizes[] = {70, 0, 0, 1, 33, 400, 0};
    for (int64_t modules = 1; modules <= 7; modules++)
        for (int64_t block = 1; block < 300; block = 3 * block + 1) {
            run(modules, sizes, block, 0.4);
            run(modules, sizes, block, 30);
            run(modules, sizes, block, 1e300);
        }
    return failures > 0;
}

#else

#define TOLERANCE (sizeof(REAL) == 4 ? 1e-4 : 1e-12)

static REAL *random_reals(int64_t n) {
    REAL *x = malloc(sizeof(REAL) * n);
    for (int64_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}

static double dot(const REAL *x, int64_t dx, const REAL *y, int64_t dy, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i * dx] * y[i * dy];
    return sum;
}

/* Forward and backward pass of `count` adapters; with `drops`, about half of their inputs are dropped. */
static void run(int64_t count, const int64_t *rows, const int64_t *ranks, int64_t d_in, int64_t d_out, int drops) {
    segment *s = calloc(count, sizeof(segment));
    int64_t total = 0, inner = 0;
    for (int64_t k = 0; k < count; k++) {
        int64_t a = ranks[k] * d_in, b = ranks[k] * d_out;
        s[k] = (segment){total, total + rows[k], ranks[k], random_reals(a), random_reals(b),
                         calloc(a, sizeof(REAL)), calloc(b, sizeof(REAL)), 0, 0, 0.5 + k};
        int64_t *dropped = malloc(sizeof(int64_t) * rows[k] * d_in), n = 0;
        for (int64_t i = 0; i < rows[k] * d_in; i++)
            if (drops && uniform() < 0) dropped[n++] = i;
        s[k].dropped = realloc(dropped, sizeof(int64_t) * (n ? n : 1));
        s[k].drops = n;
        total += rows[k], inner += rows[k] * ranks[k];
    }
    REAL *x = random_reals(total * d_in), *y = calloc(total * d_out, sizeof(REAL)), *g = random_reals(total * d_out);
    REAL *u = malloc(sizeof(REAL) * inner), *gx = calloc(total * d_in, sizeof(REAL));
    REAL *kept = malloc(sizeof(REAL) * total * d_in);
    lora_args forward = {d_in, d_out, count, s, x, y, u, 0}, backward = {d_in, d_out, count, s, x, g, u, gx};
    memcpy(kept, x, sizeof(REAL) * total * d_in);
    if (lora_forward(&forward) || lora_backward(&backward)) exit(2);
    if (memcmp(kept, x, sizeof(REAL) * total * d_in)) check("x after the call", 1, 0, 0);
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = 0; i < s[k].drops; i++) kept[s[k].begin * d_in + s[k].dropped[i]] = 0;
    for (int64_t k = 0; k < count; k++) {
        int64_t n = rows[k], r = ranks[k], b = s[k].begin;
        REAL *own = kept + b * d_in, *og = g + b * d_out;
        REAL *xa = malloc(sizeof(REAL) * n * r), *gb = malloc(sizeof(REAL) * n * r);
        double scaling = s[k].scaling;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < r; j++) {
                xa[i * r + j] = dot(own + i * d_in, 1, s[k].a + j * d_in, 1, d_in);
                gb[i * r + j] = scaling * dot(og + i * d_out, 1, s[k].b + j * d_out, 1, d_out);
            }
        for (int64_t i = 0; i < n; i++)
            for (int64_t d = 0; d < d_out; d++)
                check("y", y[(b + i) * d_out + d], scaling * dot(xa + i * r, 1, s[k].b + d, d_out, r), TOLERANCE);
        for (int64_t j = 0; j < r; j++)
            for (int64_t d = 0; d < d_out; d++)
                check("grad b", s[k].b_gradient[j * d_out + d], scaling * dot(xa + j, r, og + d, d_out, n), TOLERANCE);
        for (int64_t j = 0; j < r; j++)
            for (int64_t d = 0; d < d_in; d++)
                check("grad a", s[k].a_gradient[j * d_in + d], dot(gb + j, r, own + d, d_in, n), TOLERANCE);
        for (int64_t i = 0, next = 0; i < n * d_in; i++) {
            int gone = next < s[k].drops && s[k].dropped[next] == i;
            next += gone;
            double wanted = gone ? 0 : dot(gb + i / d_in * r, 1, s[k].a + i % d_in, d_in, r);
            check("grad x", gx[b * d_in + i], wanted, TOLERANCE);
        }
        free(xa), free(gb), free(s[k].a), free(s[k].b), free(s[k].a_gradient), free(s[k].b_gradient);
        free((void *)s[k].dropped);
    }
    free(s), free(x), free(y), free(g), free(u), free(gx), free(kept);
}

/* A plain product takes any widths, those narrower than a vector too; a row alone has the bits that it has in a tile. */
static void run_product(int64_t n, int64_t d_in, int64_t d_out) {
    REAL *x = random_reals(n * d_in), *w = random_reals(d_out * d_in), *y = malloc(sizeof(REAL) * n * d_out);
    segment s = {0, n, d_out, w, 0, 0, 0, 0, 0, 1};
    lora_args a = {d_in, d_out, 1, &s, x, y, 0, 0};
    if (lora_product(&a)) exit(2);
    for (int64_t i = 0; i < n * d_out; i++)
        check("product", y[i], dot(x + i / d_out * d_in, 1, w + i % d_out * d_in, 1, d_in), TOLERANCE);
    REAL *alone = malloc(sizeof(REAL) * d_out);
    for (int64_t i = 0; i < n; i++) {
        segment one = {0, 1, d_out, w, 0, 0, 0, 0, 0, 1};
        lora_args b = {d_in, d_out, 1, &one, x + i * d_in, alone, 0, 0};
        if (lora_product(&b)) exit(2);
        if (memcmp(alone, y + i * d_out, sizeof(REAL) * d_out)) check("bits of a row alone", 1, 0, 0);
    }
    free(x), free(w), free(y), free(alone);
}

int main(void) {
    const int64_t rows[] = {1, 3, 130, 21}, ranks[] = {1, 5, 8, 33};
    const int64_t widths[][2] = {{16, 16}, {17, 31}, {31, 17}, {64, 80}, {129, 23}};
    for (int w = 0; w < 5; w++)
        for (int drops = 0; drops < 2; drops++) {
            run(4, rows, ranks, widths[w][0], widths[w][1], drops);
            run(1, rows + drops, ranks + 3 - drops, widths[w][0], widths[w][1], drops);
        }
    run(0, rows, ranks, 16, 16, 0); /* no adapter at all */
    for (int64_t n = 1; n < 20; n += 6)
        for (int64_t d = 1; d < 40; d += 12) run_product(n, d, 41 - d), run_product(n, d, 1);
    return failures > 0;
}

#endif
