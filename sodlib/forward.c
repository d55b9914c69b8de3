/* The forward pass of a folded CSNet on the processor, step by step from a program that program.py writes.
 *
 * A feature is a plane of rows. Rows are padded to whole vectors; what stands in the padding is never used. What a 3x3
 * convolution reads has zeros before and so also behind every row. Planes lie in a workspace, one for every image, at
 * whole vectors. All offsets are in floats.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#define SHIFTED(count) ((count) <= MOST / 2) /* whether few outputs wait for loads, and not loads for many outputs */
#define MOST 12 /* outputs whose sums of two vectors fit into the registers; half as many, those of four */
#else
#define LANES 8
#define SHIFTED(count) 0 /* no instruction for it */
#define MOST 6
#endif
#define MOST_TERMS 4 /* coarser scales than the finest one */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int integers __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

#if LANES == 16
static const integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
static const integers lane = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

enum { CONVOLUTION, DEPTHWISE, POOL };

typedef struct {
    long kind, height, width;        /* of the output */
    long inputs, sources, in_stride; /* sources: index into the table of planes */
    long outputs, target, plane, stride;
    long weights, kernel, dilation, activated;
    long factor, average;       /* of a pool */
    long added;                 /* index into the table of what is enlarged and added: plane, stride, spacing, factor */
    long additions;
    long merged; /* whether the outputs, times the last weights, are summed into one plane, with the last bias */
    long buffered; /* whether outputs take the place of inputs that are read once more */
    long pooled, pooled_plane, pooled_stride; /* where the outputs also go, shrunk to half, if anywhere */
    long border; /* zeros around the rows of the last feature written: whole vectors */
} step;

INLINE vector load(const float *at) { return *(const unaligned *)at; }
INLINE void store(float *at, vector v) { *(unaligned *)at = v; }
INLINE vector all(float x) { return x - (vector){0}; }

INLINE vector prelu(vector v, vector slope)
{
#ifdef __AVX512F__
    return _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, all(0), _CMP_LT_OQ), v, slope);
#else
    integers positive = v > 0;
    return (vector)(((integers)v & positive) | ((integers)(v * slope) & ~positive));
#endif
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + 1e-9 * time.tv_nsec;
}

/* Memory for rows of whole vectors. */
static float *allocated(long numbers) { return aligned_alloc(4 * LANES, 4 * ((numbers + LANES - 1) / LANES * LANES)); }

/* The lanes of two vectors that are numbered, from 0 to 2 * LANES - 1. */
INLINE vector picked(vector a, vector b, integers lanes)
{
#ifdef __AVX512F__
    return _mm512_permutex2var_ps(a, (__m512i)lanes, b);
#elif defined(__clang__)
    vector result = a;
    for (int n = 0; n < LANES; n++)
        result[n] = lanes[n] < LANES ? a[lanes[n]] : b[lanes[n] - LANES];
    return result;
#else
    return __builtin_shuffle(a, b, lanes);
#endif
}

/* The left or right neighbours of all lanes of `v`, with the vector before or after it. */
INLINE vector left_of(vector v, vector before)
{
#ifdef __AVX512F__
    return (vector)_mm512_alignr_epi32((__m512i)v, (__m512i)before, LANES - 1);
#else
    return picked(before, v, (integers){7, 8, 9, 10, 11, 12, 13, 14});
#endif
}

INLINE vector right_of(vector v, vector after)
{
#ifdef __AVX512F__
    return (vector)_mm512_alignr_epi32((__m512i)after, (__m512i)v, 1);
#else
    return picked(v, after, (integers){1, 2, 3, 4, 5, 6, 7, 8});
#endif
}

/* -1 in the lanes from 0 to `count` - 1. */
INLINE integers first_lanes(long count) { return lane < (int)count; }

INLINE vector within(vector v, integers lanes) { return (vector)((integers)v & lanes); }

/* Zeros around a row that has been written, up to the row below. */
INLINE void enclose(float *row, long width, long stride, long border)
{
    for (long x = 0; x < border; x += LANES)
        store(row - border + x, all(0));
    for (long x = width; border && x + LANES < stride; x += LANES)
        store(row + x, all(0));
    if (border)
        store(row + stride - LANES, all(0));
}

/* A vector of a row, behind whose end its last number is repeated. */
INLINE vector clamped(const float *row, long x, long width)
{
    if (x + LANES <= width)
        return load(row + x);
    integers inside = first_lanes(width - x);
    vector begun = within(load(row + (x < width ? x : 0)), inside);
    return (vector)((integers)begun | ((integers)all(row[width - 1]) & ~inside));
}

/* A row `factor` times as wide, bilinear with half-integer pixel centres. */
INLINE void widen_by(float *out, const float *row, long width, int factor)
{
    integers phase = lane % factor, right = phase >= factor / 2;
    /* of the neighbour, by its distance */
    integers distance = (right & (2 * phase + 1 - factor)) | (~right & (factor - 1 - 2 * phase));
    vector share = __builtin_convertvector(distance, vector) / (2.0f * factor);
    vector before = all(row[0]), here = clamped(row, 0, width);
    for (long x = 0; x < width; x += LANES) {
        vector after = clamped(row, x + LANES, width);
        vector left_side = left_of(here, before), right_side = right_of(here, after);
        if (factor == 2) { /* the same in fewer steps */
            vector most = here * 0.75f, even = most + left_side * 0.25f, odd = most + right_side * 0.25f;
            store(out + 2 * x, picked(even, odd, lane / 2 + lane % 2 * LANES));
            if (x + LANES / 2 < width)
                store(out + 2 * x + LANES, picked(even, odd, LANES / 2 + lane / 2 + lane % 2 * LANES));
        }
#pragma GCC unroll 8
        for (int part = 0; factor > 2 && part < factor; part++) {
            integers own = (lane + part * LANES) / factor;
            vector a = picked(here, here, own), b = picked(left_side, right_side, own + (right & LANES));
            if (x * factor + part * LANES < width * factor)
                store(out + x * factor + part * LANES, a + (b - a) * share);
        }
        before = here;
        here = after;
    }
}

static void widen(float *out, const float *row, long width, long factor)
{
    if (factor == 2) /* known to the compiler, which then computes none of the lanes */
        widen_by(out, row, width, 2);
    else if (factor == 4)
        widen_by(out, row, width, 4);
    else
        widen_by(out, row, width, 8);
}

/* What is added to a row: two rows of planes that are coarser by `factor` but already as wide, and the lower one's
 * share. */
typedef struct {
    const float *above, *below;
    float share;
} term;

/* `count` outputs at `vectors` neighbouring vectors of a row, by the rows of taps `from` ... `to` - 1: the others fall
 * on zeros. Weights: input, tap, output. */
INLINE void sums(int count, int vectors, int taps, const float *space, const long *planes, long inputs, long at,
                 long in_stride, long dilation, int from, int to, const float *weights, const float *bias,
                 const float *slopes, const term *terms, long additions, long wide, const float *shares, float *out,
                 long plane)
{
    vector sum[MOST][4];
#pragma GCC unroll 16
    for (int m = 0; m < count; m++)
#pragma GCC unroll 4
        for (int n = 0; n < vectors; n++)
            sum[m][n] = all(bias[m]);
    for (const term *t = terms; t < terms + additions; t++)
#pragma GCC unroll 16
        for (int m = 0; m < count; m++)
#pragma GCC unroll 4
            for (int n = 0; n < vectors; n++) {
                sum[m][n] += load(t->above + m * wide + n * LANES) * (1 - t->share);
                sum[m][n] += load(t->below + m * wide + n * LANES) * t->share;
            }
    /* The neighbours `dilation` away, in a vector and the one before or after it. */
    integers left = lane + (LANES - (int)dilation), right = lane + (int)dilation;
    for (long c = 0; c < inputs; c++) {
        const float *source = space + planes[c] + at;
#pragma GCC unroll 1
        for (int ky = 0; ky < taps; ky++) {
            if (taps > 1 && (ky < from || ky >= to)) {
                weights += taps * count;
                continue;
            }
            const float *row = source + dilation * ky * in_stride;
            vector whole[6];
#pragma GCC unroll 6
            for (int n = 0; SHIFTED(count) && taps == 3 && n < vectors + 2; n++)
                whole[n] = load(row + dilation + (n - 1) * LANES);
#pragma GCC unroll 3
            for (int kx = 0; kx < taps; kx++) {
                vector x[4];
#pragma GCC unroll 4
                for (int n = 0; n < vectors; n++)
                    if (!SHIFTED(count) || taps == 1)
                        x[n] = load(row + dilation * kx + n * LANES);
                    else /* a load of parts of two vectors is dearer */
                        x[n] = kx == 0   ? picked(whole[n], whole[n + 1], left)
                               : kx == 1 ? whole[n + 1]
                                         : picked(whole[n + 1], whole[n + 2], right);
#pragma GCC unroll 4
                for (int n = 0; taps == 1 && n < vectors; n++) /* of more planes than the processor foresees */
                    __builtin_prefetch(row + (n + 8) * LANES);
#pragma GCC unroll 16
                for (int m = 0; m < count; m++) {
                    vector w = all(weights[m]);
#pragma GCC unroll 4
                    for (int n = 0; n < vectors; n++)
                        sum[m][n] += x[n] * w;
                }
                weights += count;
            }
        }
    }
    vector merged[4];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; n++)
        merged[n] = shares ? load(out + n * LANES) : all(0);
#pragma GCC unroll 16
    for (int m = 0; m < count; m++)
#pragma GCC unroll 4
        for (int n = 0; n < vectors; n++) {
            vector v = slopes ? prelu(sum[m][n], all(slopes[m])) : sum[m][n];
            if (shares)
                merged[n] += v * shares[m];
            else
                store(out + m * plane + n * LANES, v);
        }
#pragma GCC unroll 4
    for (int n = 0; shares && n < vectors; n++)
        store(out + n * LANES, merged[n]);
}

#define ARGUMENTS                                                                                                      \
    space, planes, inputs, at, in_stride, dilation, from, to, weights, bias, slopes, terms, additions, wide, shares,   \
        out, plane
#define CASE(COUNT)                                                                                                    \
    case COUNT:                                                                                                        \
        if (taps == 1 && vectors == 1)                                                                                 \
            sums(COUNT, 1, 1, ARGUMENTS);                                                                              \
        else if (taps == 1 && vectors == 2)                                                                            \
            sums(COUNT, 2, 1, ARGUMENTS);                                                                              \
        else if (taps == 1)                                                                                            \
            sums(COUNT, COUNT <= MOST / 2 ? 4 : 2, 1, ARGUMENTS);                                                      \
        else if (vectors == 1)                                                                                         \
            sums(COUNT, 1, 3, ARGUMENTS);                                                                              \
        else if (vectors == 2)                                                                                         \
            sums(COUNT, 2, 3, ARGUMENTS);                                                                              \
        else                                                                                                           \
            sums(COUNT, COUNT <= MOST / 2 ? 4 : 2, 3, ARGUMENTS);                                                      \
        break;

static void block(int count, int vectors, int taps, const float *space, const long *planes, long inputs, long at,
                  long in_stride, long dilation, int from, int to, const float *weights, const float *bias,
                  const float *slopes, const term *terms, long additions, long wide, const float *shares, float *out,
                  long plane)
{
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MOST > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

/* What a convolution keeps from row to row: of everything that is enlarged and added, two rows of every output, already
 * as wide as the output, and which rows they are; and a row of all outputs. */
typedef struct {
    float *rows, *row;
    long held[MOST_TERMS][2];
} scratch;

/* Row `y` of a convolution, its outputs in blocks of nearly equal size. */
static void convolved_row(const step *s, float *space, const float *weights, const long *table, scratch *own, long y)
{
    long blocks = (s->outputs + MOST - 1) / MOST, taps = s->kernel * s->kernel, length = s->stride + LANES;
    int above = s->kernel == 3 && y < s->dilation, below = s->kernel == 3 && y + s->dilation >= s->height;
    const float *bias = weights + s->weights, *slopes = bias + s->outputs, *packed = slopes + s->outputs;
    const float *shares = packed + s->outputs * s->inputs * taps;
    float *target = space + s->target + y * s->stride;
    term terms[MOST_TERMS], part[MOST_TERMS];
    for (long a = 0; a < s->additions; a++) {
        const long *what = table + s->added + 4 * a;
        long factor = what[3], height = s->height / factor, next = (y + factor / 2) / factor;
        long used[2] = {next > 0 ? next - 1 : 0, next < height ? next : height - 1};
        float *rows[2];
        for (int k = 0; k < 2; k++) {
            rows[k] = own->rows + (2 * a + used[k] % 2) * s->outputs * length;
            for (long m = 0; own->held[a][used[k] % 2] != used[k] && m < s->outputs; m++)
                widen(rows[k] + m * length, space + what[0] + m * what[2] + used[k] * what[1], s->width / factor,
                      factor);
            own->held[a][used[k] % 2] = used[k];
        }
        terms[a] = (term){rows[0], rows[1], (2 * ((y + factor / 2) % factor) + 1) / (2.0f * factor)};
    }
    for (long x = 0; s->merged && x < s->stride; x++)
        target[x] = shares[s->outputs];
    for (long b = 0; b < blocks; b++) {
        long first = b * s->outputs / blocks, count = (b + 1) * s->outputs / blocks - first;
        int waits = s->buffered && b + 1 < blocks; /* until the last block has read the inputs */
        float *out = s->merged ? target : waits ? own->row + first * length : target + first * s->plane;
        for (long x = 0, vectors; x < s->width; x += vectors * LANES) {
            vectors = count <= MOST / 2 && x + 3 * LANES < s->width ? 4 : x + LANES < s->width ? 2 : 1;
            for (long a = 0; a < s->additions; a++)
                part[a] = (term){terms[a].above + first * length + x, terms[a].below + first * length + x,
                                 terms[a].share};
            block(count, vectors, s->kernel, space, table + s->sources, s->inputs, y * s->in_stride + x, s->in_stride,
                  s->dilation, above, s->kernel - below, packed + first * s->inputs * taps, bias + first,
                  s->activated ? slopes + first : 0, part, s->additions, length, s->merged ? shares + first : 0,
                  out + x, waits ? length : s->plane);
        }
    }
    for (long m = 0; s->buffered && m < (blocks - 1) * s->outputs / blocks; m++)
        memcpy(target + m * s->plane, own->row + m * length, 4 * s->width);
    for (long m = 0; s->border && m < s->outputs; m++)
        enclose(target + m * s->plane, s->width, s->stride, s->border);
}

static void convolution(const step *s, float *space, const float *weights, const long *table, int threads)
{
    long length = s->stride + LANES;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long band = 0; band < threads; band++) {
        scratch own = {s->additions ? allocated(2 * s->additions * s->outputs * length) : 0,
                       s->buffered ? allocated(s->outputs * length) : 0};
        memset(own.held, -1, sizeof own.held);
        for (long y = band * s->height / threads; y < (band + 1) * s->height / threads; y++)
            convolved_row(s, space, weights, table, &own, y);
        free(own.rows);
        free(own.row);
    }
}

/* One vector of each of two neighbouring rows of a depthwise 3x3 convolution, from four. */
INLINE void depthwise_vectors(float *first, float *second, vector before[4], vector here[4], const vector after[4],
                              const vector w[11])
{
    vector a = w[9], b = w[9];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        vector left = left_of(here[r], before[r]), right = right_of(here[r], after[r]);
        if (r < 3) { /* a product and its sum at a time: one instruction */
            a += left * w[3 * r];
            a += here[r] * w[3 * r + 1];
            a += right * w[3 * r + 2];
        }
        if (r > 0) {
            b += left * w[3 * r - 3];
            b += here[r] * w[3 * r - 2];
            b += right * w[3 * r - 1];
        }
        before[r] = here[r];
        here[r] = after[r];
    }
    store(first, prelu(a, w[10]));
    store(second, prelu(b, w[10]));
}

/* Two neighbouring rows of a depthwise 3x3 convolution, from four, with zeros left and right of them. */
static void depthwise_rows(float *first, float *second, const float *const rows[4], const float *weights, long width)
{
    long whole = width / LANES * LANES, x = 0;
    integers rest = first_lanes(width - whole);
    vector w[11], before[4], here[4], after[4];
    for (int n = 0; n < 11; n++)
        w[n] = all(weights[n]);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) { /* all loops unrolled, or the compiler keeps the arrays in memory */
        before[r] = all(0);
        here[r] = whole ? load(rows[r]) : within(load(rows[r]), rest);
    }
    for (; x + LANES < whole; x += LANES) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            after[r] = load(rows[r] + x + LANES);
        depthwise_vectors(first + x, second + x, before, here, after, w);
    }
    for (; x < width; x += LANES) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            after[r] = x + LANES == whole ? within(load(rows[r] + whole), rest) : all(0);
        depthwise_vectors(first + x, second + x, before, here, after, w);
    }
}

INLINE vector larger(vector a, vector b)
{
#ifdef __AVX512F__
    return _mm512_max_ps(a, b);
#else
    integers first = a > b;
    return (vector)(((integers)a & first) | ((integers)b & ~first));
#endif
}

/* The mean or largest of squares of 2 x 2, from two rows. */
static void shrunk_row(float *out, const float *above, const float *below, long width, int average)
{
    for (long x = 0; x < width; x += LANES) {
        vector a = load(above + 2 * x), b = load(above + 2 * x + LANES), result;
        vector c = load(below + 2 * x), d = load(below + 2 * x + LANES);
        a = average ? a + c : larger(a, c);
        b = average ? b + d : larger(b, d);
        c = picked(a, b, 2 * lane);
        d = picked(a, b, 2 * lane + 1);
        result = average ? (c + d) * 0.25f : larger(c, d);
        store(out + x, result);
    }
}

/* Two depthwise 3x3 convolutions, each with bias and PReLU, in place, and the pooling of what comes out. Weights of a
 * channel: 9, bias, slope; twice. */
static void depthwise(const step *s, float *space, const float *weights, const long *table, int threads)
{
    long length = s->stride + LANES, height = s->height;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 2)
    for (long c = 0; c < s->inputs; c++) {
        __attribute__((aligned(4 * LANES))) float between[8][length], zeros[length], none[length];
        float *plane = space + table[s->sources + c];
        const float *w = weights + s->weights + 22 * c;
        memset(zeros, 0, sizeof zeros);
        for (long y = -2; y < height + 2; y += 2) { /* rows y + 2, y + 3 of the first, y, y + 1 of the second */
            const float *first[4], *second[4];
            float *out = plane + y * s->stride;
            for (long r = 0; r < 4; r++) {
                long in = y + 1 + r, mid = y - 1 + r;
                first[r] = in < 0 || in >= height ? zeros : plane + in * s->stride;
                second[r] = mid < 0 || mid >= height ? zeros : between[mid % 8];
            }
            if (y + 2 < height)
                depthwise_rows(between[(y + 2) % 8], between[(y + 3) % 8], first, w, s->width);
            if (y >= 0 && y < height)
                depthwise_rows(out, y + 1 < height ? out + s->stride : none, second, w + 11, s->width);
            if (y >= 2 && s->pooled_stride) { /* the two rows before, which the processor has put away by now */
                float *small = space + s->pooled + c * s->pooled_plane + (y / 2 - 1) * s->pooled_stride;
                shrunk_row(small, out - 2 * s->stride, out - s->stride, s->width / 2, s->average);
                enclose(small, s->width / 2, s->pooled_stride, s->border);
            }
        }
    }
}

/* Planes shrunk to half, or with factor 1 copied. */
static void pool(const step *s, float *space, const long *table, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long c = 0; c < s->inputs; c++)
        for (long y = 0; y < s->height; y++) {
            const float *in = space + table[s->sources + c] + y * s->factor * s->in_stride;
            float *out = space + s->target + c * s->plane + y * s->stride;
            if (s->factor == 1)
                memcpy(out, in, 4 * s->width);
            else
                shrunk_row(out, in, in + s->in_stride, s->width, s->average);
            enclose(out, s->width, s->stride, s->border);
        }
}

/* What the program must know of this compilation. */
void layout(int *lanes, int *most)
{
    *lanes = LANES;
    *most = MOST;
}

/* Input planes lie at `input` of the workspace, the logits at `output`, with rows of `stride` floats. `seconds`, one a
 * step, or none: what the steps of a single image take is added there. */
void forward(const step *steps, long count, const long *table, const float *weights, float *workspace, long size,
             const float *images, float *logits, long batch, long height, long width, long input, long in_plane,
             long in_stride, long in_border, long output, long stride, int threads, double *seconds)
{
    int outer = batch > 1 ? threads : 1, inner = batch > 1 ? 1 : threads;
#pragma omp parallel for num_threads(outer) if (outer > 1) schedule(static, 1)
    for (long worker = 0; worker < outer; worker++) {
        float *space = workspace + worker * size;
        for (long image = worker; image < batch; image += outer) {
            for (long c = 0; c < 3; c++)
                for (long y = 0; y < height; y++) {
                    float *row = space + input + c * in_plane + y * in_stride;
                    memcpy(row, images + ((image * 3 + c) * height + y) * width, 4 * width);
                    enclose(row, width, in_stride, in_border);
                }
            for (const step *s = steps; s < steps + count; s++) {
                double start = seconds ? now() : 0;
                switch (s->kind) {
                case CONVOLUTION: convolution(s, space, weights, table, inner); break;
                case DEPTHWISE: depthwise(s, space, weights, table, inner); break;
                case POOL: pool(s, space, table, inner); break;
                }
                if (seconds)
                    seconds[s - steps] += now() - start;
            }
            for (long y = 0; y < height; y++)
                memcpy(logits + (image * height + y) * width, space + output + y * stride, 4 * width);
        }
    }
}
