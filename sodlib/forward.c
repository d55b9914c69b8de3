/* The forward pass of a folded CSNet on the processor, step by step from a program that compiled.py writes.
 *
 * A feature is a plane of rows. Rows are padded to whole vectors; what stands in the padding is never used. Planes lie
 * in a workspace, one for every image. All offsets are in floats.
 */
#include <string.h>
#include <time.h>

#ifdef __AVX512F__
#define LANES 16
#define MOST 12 /* outputs whose sums of two vectors fit into the registers */
#else
#define LANES 8
#define MOST 6
#endif
#define MARGIN 16 /* zeros on either side of a row of the depthwise convolutions */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int integers __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

enum { CONVOLUTION, DEPTHWISE, POOL, ENLARGE };

typedef struct {
    long kind, height, width;        /* of the output */
    long inputs, sources, in_stride; /* sources: index into the table of planes */
    long outputs, target, plane, stride;
    long weights, kernel, dilation, activated;
    long factor, average;       /* of a pool */
    long added;                 /* index into the table of what is enlarged and added: plane, stride, spacing, factor */
    long additions;
    long merged; /* whether the outputs, times the last weights, are summed into one plane, with the last bias */
} step;

INLINE vector load(const float *at) { return *(const unaligned *)at; }
INLINE void store(float *at, vector v) { *(unaligned *)at = v; }
INLINE vector all(float x) { return x - (vector){0}; }

INLINE vector prelu(vector v, float slope)
{
    integers positive = v > 0;
    return (vector)(((integers)v & positive) | ((integers)(v * slope) & ~positive));
}

/* One row of a plane, `factor` times as high and wide, bilinear with half-integer pixel centres; set or added. */
INLINE void enlarge_by(float *out, const float *plane, long stride, long height, long width, long factor, long y,
                        int add, float *between)
{
    long half = factor / 2, above = (y + half) / factor - 1;
    float weight = (2 * ((y + half) % factor) + 1) / (2.0f * factor);
    const float *first = plane + (above < 0 ? 0 : above) * stride;
    const float *second = plane + (above + 1 < height ? above + 1 : height - 1) * stride;
    float *row = between + LANES;
    for (long x = 0; x < width; x += LANES)
        store(row + x, load(first + x) * (1 - weight) + load(second + x) * weight);
    row[-1] = row[0];
    row[width] = row[width - 1];
    integers left;
    vector share;
    for (int lane = 0; lane < LANES; lane++) {
        left[lane] = (lane + half) / factor;
        share[lane] = (2 * ((lane + half) % factor) + 1) / (2.0f * factor);
    }
    for (long x = 0; x < width * factor; x += LANES) {
        vector value;
#if defined(__GNUC__) && !defined(__clang__)
        if (factor <= LANES) {
            vector here = load(row + x / factor - 1);
            vector a = __builtin_shuffle(here, left);
            vector b = __builtin_shuffle(here, left + 1);
            value = a + (b - a) * share;
        } else
#endif
            for (int lane = 0; lane < LANES; lane++) {
                const float *here = row + (x + lane + half) / factor - 1;
                float part = (2 * ((x + lane + half) % factor) + 1) / (2.0f * factor);
                value[lane] = here[0] + (here[1] - here[0]) * part;
            }
        store(out + x, add ? load(out + x) + value : value);
    }
}

static void enlarge_row(float *out, const float *plane, long stride, long height, long width, long factor, long y,
                        int add, float *between)
{
    if (factor == 2) /* known to the compiler, it divides by none */
        enlarge_by(out, plane, stride, height, width, 2, y, add, between);
    else if (factor == 4)
        enlarge_by(out, plane, stride, height, width, 4, y, add, between);
    else
        enlarge_by(out, plane, stride, height, width, factor, y, add, between);
}

/* `count` outputs at `vectors` neighbouring vectors of a row. Weights: input, tap, output. */
INLINE void sums(int count, int vectors, int taps, const float *space, const long *planes, long inputs, long at,
                 long in_stride, long dilation, const float *weights, const float *bias, const float *slopes,
                 const float *added, long added_stride, float *out, long plane)
{
    vector sum[MOST][2];
#pragma GCC unroll 16
    for (int m = 0; m < count; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++)
            sum[m][n] = added ? load(added + m * added_stride + n * LANES) + bias[m] : all(bias[m]);
    for (long c = 0; c < inputs; c++) {
        const float *source = space + planes[c] + at;
#pragma GCC unroll 1
        for (int ky = 0; ky < taps; ky++)
#pragma GCC unroll 3
            for (int kx = 0; kx < taps; kx++) {
                const float *here = source + dilation * (ky * in_stride + kx);
                vector x[2];
#pragma GCC unroll 2
                for (int n = 0; n < vectors; n++)
                    x[n] = load(here + n * LANES);
#pragma GCC unroll 16
                for (int m = 0; m < count; m++) {
                    vector w = all(weights[m]);
#pragma GCC unroll 2
                    for (int n = 0; n < vectors; n++)
                        sum[m][n] += x[n] * w;
                }
                weights += count;
            }
    }
#pragma GCC unroll 16
    for (int m = 0; m < count; m++)
#pragma GCC unroll 2
        for (int n = 0; n < vectors; n++)
            store(out + m * plane + n * LANES, slopes ? prelu(sum[m][n], slopes[m]) : sum[m][n]);
}

#define ARGUMENTS space, planes, inputs, at, in_stride, dilation, weights, bias, slopes, added, added_stride, out, plane
#define CASE(COUNT)                                                                                                    \
    case COUNT:                                                                                                        \
        if (taps == 1)                                                                                                 \
            vectors == 2 ? sums(COUNT, 2, 1, ARGUMENTS) : sums(COUNT, 1, 1, ARGUMENTS);                                \
        else                                                                                                           \
            vectors == 2 ? sums(COUNT, 2, 3, ARGUMENTS) : sums(COUNT, 1, 3, ARGUMENTS);                                \
        break;

static void block(int count, int vectors, int taps, const float *space, const long *planes, long inputs, long at,
                  long in_stride, long dilation, const float *weights, const float *bias, const float *slopes,
                  const float *added, long added_stride, float *out, long plane)
{
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

/* Outputs in blocks of nearly equal size. */
static void convolution(const step *s, float *space, const float *weights, const long *table, int threads)
{
    long blocks = (s->outputs + MOST - 1) / MOST, taps = s->kernel * s->kernel;
    const float *bias = weights + s->weights, *slopes = bias + s->outputs, *packed = slopes + s->outputs;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long y = 0; y < s->height; y++) {
        float enlarged[MOST * s->stride], between[s->stride + 3 * LANES], rows[s->merged ? MOST * s->stride : 1];
        float *target = space + s->target + y * s->stride;
        const float *shares = packed + s->outputs * s->inputs * taps;
        if (s->merged)
            for (long x = 0; x < s->stride; x++)
                target[x] = shares[s->outputs];
        for (long b = 0; b < blocks; b++) {
            long first = b * s->outputs / blocks, count = (b + 1) * s->outputs / blocks - first;
            for (long a = 0; a < s->additions; a++) {
                const long *what = table + s->added + 4 * a;
                for (long m = 0; m < count; m++)
                    enlarge_row(enlarged + m * s->stride, space + what[0] + (first + m) * what[2], what[1],
                                s->height / what[3], s->width / what[3], what[3], y, a > 0, between);
            }
            for (long x = 0; x < s->width; x += 2 * LANES)
                block(count, x + LANES < s->width ? 2 : 1, s->kernel, space, table + s->sources, s->inputs,
                      y * s->in_stride + x, s->in_stride, s->dilation, packed + first * s->inputs * taps, bias + first,
                      s->activated ? slopes + first : 0, s->additions ? enlarged + x : 0, s->stride,
                      s->merged ? rows + x : target + first * s->plane + x, s->merged ? s->stride : s->plane);
            for (long m = 0; s->merged && m < count; m++)
                for (long x = 0; x < s->stride; x++)
                    target[x] += shares[first + m] * rows[m * s->stride + x];
        }
    }
}

/* Neighbours of all lanes: `v` and the vectors before and after it. */
INLINE vector moved(vector v, vector other, int right)
{
    integers lanes;
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = right ? lane + 1 : lane + LANES - 1;
#ifdef __clang__
    vector result;
    for (int lane = 0; lane < LANES; lane++)
        result[lane] = right ? (lane + 1 < LANES ? v[lane + 1] : other[0]) : (lane ? v[lane - 1] : other[LANES - 1]);
    return result;
#else
    return right ? __builtin_shuffle(v, other, lanes) : __builtin_shuffle(other, v, lanes);
#endif
}

/* Two neighbouring rows of a depthwise 3x3 convolution, from four. */
INLINE void depthwise_rows(float *first, float *second, const float *const rows[4], const float *w, long width)
{
    vector before[4], here[4];
    for (int r = 0; r < 4; r++) {
        before[r] = load(rows[r] - LANES);
        here[r] = load(rows[r]);
    }
    for (long x = 0; x < width; x += LANES) {
        vector a = all(w[9]), b = all(w[9]);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            vector after = load(rows[r] + x + LANES);
            vector left = moved(here[r], before[r], 0), right = moved(here[r], after, 1);
            if (r < 3)
                a += left * w[3 * r] + here[r] * w[3 * r + 1] + right * w[3 * r + 2];
            if (r > 0)
                b += left * w[3 * r - 3] + here[r] * w[3 * r - 2] + right * w[3 * r - 1];
            before[r] = here[r];
            here[r] = after;
        }
        store(first + x, prelu(a, w[10]));
        store(second + x, prelu(b, w[10]));
    }
}

/* Two depthwise 3x3 convolutions, each with bias and PReLU, in place. Weights of a channel: 9, bias, slope; twice. */
static void depthwise(const step *s, float *space, const float *weights, const long *table, int threads)
{
    long length = s->stride + 2 * MARGIN, height = s->height;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 2)
    for (long c = 0; c < s->inputs; c++) {
        float *plane = space + table[s->sources + c], input[4][length], between[4][length], zeros[length], none[length];
        const float *w = weights + s->weights + 22 * c;
        memset(input, 0, sizeof input);
        memset(between, 0, sizeof between);
        memset(zeros, 0, sizeof zeros);
        memcpy(input[0] + MARGIN, plane, 4 * s->width);
        for (long y = 0; y <= height; y += 2) {
            const float *above[4], *middle[4];
            for (long v = y + 1; v < y + 3 && v < height; v++)
                memcpy(input[v % 4] + MARGIN, plane + v * s->stride, 4 * s->width);
            for (long r = 0; r < 4; r++) {
                long in = y - 1 + r, mid = y - 2 + r;
                above[r] = (in < 0 || in >= height ? zeros : input[in % 4]) + MARGIN;
                middle[r] = (mid < 0 || mid >= height ? zeros : between[mid % 4]) + MARGIN;
            }
            float *here = between[y % 4] + MARGIN, *next = between[(y + 1) % 4] + MARGIN;
            if (y < height)
                depthwise_rows(here, next, above, w, s->width);
            here[s->width] = next[s->width] = 0;
            depthwise_rows(y > 0 ? plane + (y - 1) * s->stride : none, y < height ? plane + y * s->stride : none, middle,
                           w + 11, s->width);
        }
    }
}

/* The mean or largest of squares of 2 x 2, or with factor 1 a copy. The target may have a border, left as it is. */
static void pool(const step *s, float *space, const long *table, int threads)
{
    long f = s->factor;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long c = 0; c < s->inputs; c++)
        for (long y = 0; y < s->height; y++) {
            const float *in = space + table[s->sources + c] + y * f * s->in_stride;
            float *out = space + s->target + c * s->plane + y * s->stride;
            if (f == 1)
                memcpy(out, in, 4 * s->width);
            else if (s->average)
                for (long x = 0; x < s->width; x++)
                    out[x] = (in[2 * x] + in[2 * x + 1] + in[s->in_stride + 2 * x] + in[s->in_stride + 2 * x + 1]) / 4;
            else
                for (long x = 0; x < s->width; x++) {
                    float a = in[2 * x], b = in[2 * x + 1], c = in[s->in_stride + 2 * x];
                    float d = in[s->in_stride + 2 * x + 1];
                    a = a > b ? a : b;
                    c = c > d ? c : d;
                    out[x] = a > c ? a : c;
                }
        }
}

static void enlarge(const step *s, float *space, const long *table)
{
    float between[s->in_stride + 3 * LANES];
    for (long y = 0; y < s->height; y++)
        enlarge_row(space + s->target + y * s->stride, space + table[s->sources], s->in_stride, s->height / s->factor,
                    s->width / s->factor, s->factor, y, 0, between);
}

/* What the program must know of this compilation. */
void layout(int *lanes, int *most)
{
    *lanes = LANES;
    *most = MOST;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Input planes lie at `input` of the workspace, the logits at `output`, with rows of `stride` floats. `seconds`, one a
 * step, or none: what the steps of a single image take is added there. */
void forward(const step *steps, long count, const long *table, const float *weights, float *workspace, long size,
             const float *images, float *logits, long batch, long height, long width, long input, long in_plane,
             long in_stride, long output, long stride, int threads, double *seconds)
{
    int outer = batch > 1 ? threads : 1, inner = batch > 1 ? 1 : threads;
#pragma omp parallel for num_threads(outer) if (outer > 1) schedule(static, 1)
    for (long worker = 0; worker < outer; worker++) {
        float *space = workspace + worker * size;
        for (long image = worker; image < batch; image += outer) {
            for (long c = 0; c < 3; c++)
                for (long y = 0; y < height; y++)
                    memcpy(space + input + c * in_plane + y * in_stride,
                           images + ((image * 3 + c) * height + y) * width, 4 * width);
            for (const step *s = steps; s < steps + count; s++) {
                double start = seconds ? now() : 0;
                switch (s->kind) {
                case CONVOLUTION: convolution(s, space, weights, table, inner); break;
                case DEPTHWISE: depthwise(s, space, weights, table, inner); break;
                case POOL: pool(s, space, table, inner); break;
                case ENLARGE: enlarge(s, space, table); break;
                }
                if (seconds)
                    seconds[s - steps] += now() - start;
            }
            for (long y = 0; y < height; y++)
                memcpy(logits + (image * height + y) * width, space + output + y * stride, 4 * width);
        }
    }
}
