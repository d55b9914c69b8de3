/* Batch norm in training mode, then PReLU with one slope a channel, and each sample's mean of the result: forward and
 * backward on float32 [samples, pixels, channels], which is how torch stores [B, C, H, W] channels last.
 *
 * Few channels leave vector registers half empty, so `fold` neighbouring pixels are taken as one row of `width` =
 * fold * channels numbers, and every constant is repeated `fold` times. Sums run over blocks of rows that stay in the
 * second cache, then in double precision by sample: exact enough, and the same whatever the number of threads. */
#include <math.h>

enum { BLOCK = 16384 };

static void repeat(float *row, const float *values, int width, int channels) {
    for (int first = 0; first < width; first += channels)
        for (int c = 0; c < channels; c++) row[first + c] = values[c];
}

static void flush(double *restrict sums, float *restrict row, int width, int channels) {
    for (int first = 0; first < width; first += channels)
        for (int c = 0; c < channels; c++) sums[c] += row[first + c], row[first + c] = 0;
}

static long block_rows(int width) { return width < BLOCK ? BLOCK / width : 1; }

/* out: mean, inverse of the standard deviation, both [channels]; features; pooled [samples, channels]. */
void forward(const float *x, const float *gamma, const float *beta, const float *slope, float *running_mean,
             float *running_variance, float *mean, float *inverse, float *features, float *pooled, long samples,
             long rows, int width, int channels, double epsilon, double momentum) {
    double sums[samples][channels], squares[samples][channels];
    const double count = (double)samples * rows * (width / channels);
    const long step = block_rows(width);
#pragma omp parallel for schedule(static)
    for (long s = 0; s < samples; s++) {
        float sum[width], centre[width], square[width];
        for (int c = 0; c < channels; c++) sums[s][c] = squares[s][c] = 0;
        for (int j = 0; j < width; j++) sum[j] = square[j] = 0;
        for (long first = 0; first < rows; first += step) {
            const long size = first + step < rows ? step : rows - first;
            const float *restrict block = x + (s * rows + first) * width;
            for (long r = 0; r < size; r++)
                for (int j = 0; j < width; j++) sum[j] += block[r * width + j];
            for (int j = 0; j < width; j++) centre[j] = sum[j] / size;
            for (int first_j = 0; first_j < width; first_j += channels)
                for (int c = 0, j = first_j; c < channels; c++, j++)
                    squares[s][c] += centre[j] * (2.0 * sum[j] - (double)size * centre[j]);
            for (long r = 0; r < size; r++)
                for (int j = 0; j < width; j++) {
                    const float distance = block[r * width + j] - centre[j];
                    square[j] += distance * distance;
                }
            flush(sums[s], sum, width, channels);
            flush(squares[s], square, width, channels);
        }
    }
    float scale[channels], shift[channels];
    for (int c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (long s = 0; s < samples; s++) sum += sums[s][c], square += squares[s][c];
        const double average = sum / count, variance = fmax(square / count - average * average, 0);
        mean[c] = average;
        inverse[c] = 1 / sqrt(variance + epsilon);
        scale[c] = gamma[c] * inverse[c];
        shift[c] = beta[c] - average * scale[c];
        running_mean[c] += momentum * (average - running_mean[c]);
        running_variance[c] += momentum * (variance * count / (count - 1) - running_variance[c]);
    }
#pragma omp parallel for schedule(static)
    for (long s = 0; s < samples; s++) {
        float scales[width], shifts[width], slopes[width], sum[width];
        repeat(scales, scale, width, channels), repeat(shifts, shift, width, channels);
        repeat(slopes, slope, width, channels);
        double total[channels];
        for (int c = 0; c < channels; c++) total[c] = 0;
        for (int j = 0; j < width; j++) sum[j] = 0;
        for (long first = 0; first < rows; first += step) {
            const long size = first + step < rows ? step : rows - first;
            const float *restrict block = x + (s * rows + first) * width;
            float *restrict out = features + (s * rows + first) * width;
            for (long r = 0; r < size; r++)
                for (int j = 0; j < width; j++) {
                    const float z = block[r * width + j] * scales[j] + shifts[j], y = z > 0 ? z : z * slopes[j];
                    out[r * width + j] = y;
                    sum[j] += y;
                }
            flush(total, sum, width, channels);
        }
        for (int c = 0; c < channels; c++) pooled[s * channels + c] = total[c] / (rows * (width / channels));
    }
}

/* gradient: of the features; out: the gradients of x, gamma, beta and slope. */
void backward(const float *gradient, const float *x, const float *gamma, const float *beta, const float *slope,
              const float *mean, const float *inverse, float *x_gradient, float *gamma_gradient, float *beta_gradient,
              float *slope_gradient, long samples, long rows, int width, int channels) {
    double of_gamma[samples][channels], of_beta[samples][channels], of_slope[samples][channels];
    const double count = (double)samples * rows * (width / channels);
    const long step = block_rows(width);
    float scale[channels], shift[channels];
    for (int c = 0; c < channels; c++) {
        scale[c] = gamma[c] * inverse[c];
        shift[c] = beta[c] - (double)mean[c] * scale[c];
    }
#pragma omp parallel for schedule(static)
    for (long s = 0; s < samples; s++) {
        float scales[width], shifts[width], slopes[width], means[width], by_gamma[width], by_beta[width],
            by_slope[width];
        repeat(scales, scale, width, channels), repeat(shifts, shift, width, channels);
        repeat(slopes, slope, width, channels), repeat(means, mean, width, channels);
        for (int c = 0; c < channels; c++) of_gamma[s][c] = of_beta[s][c] = of_slope[s][c] = 0;
        for (int j = 0; j < width; j++) by_gamma[j] = by_beta[j] = by_slope[j] = 0;
        for (long first = 0; first < rows; first += step) {
            const long size = first + step < rows ? step : rows - first;
            const float *restrict block = x + (s * rows + first) * width, *restrict g = gradient + (s * rows + first) * width;
            for (long r = 0; r < size; r++)
                for (int j = 0; j < width; j++) {
                    const float v = block[r * width + j], d = g[r * width + j], z = v * scales[j] + shifts[j];
                    const float inner = z > 0 ? d : d * slopes[j];
                    by_slope[j] += z > 0 ? 0 : d * z;
                    by_beta[j] += inner;
                    by_gamma[j] += inner * (v - means[j]);
                }
            flush(of_gamma[s], by_gamma, width, channels);
            flush(of_beta[s], by_beta, width, channels);
            flush(of_slope[s], by_slope, width, channels);
        }
    }
    float linear[channels], constant[channels];
    for (int c = 0; c < channels; c++) {
        double g = 0, b = 0, a = 0;
        for (long s = 0; s < samples; s++) g += of_gamma[s][c], b += of_beta[s][c], a += of_slope[s][c];
        gamma_gradient[c] = g * inverse[c];
        beta_gradient[c] = b;
        slope_gradient[c] = a;
        linear[c] = scale[c] * g * inverse[c] * inverse[c] / count;
        constant[c] = scale[c] * b / count;
    }
#pragma omp parallel for schedule(static)
    for (long s = 0; s < samples; s++) {
        float scales[width], shifts[width], slopes[width], means[width], linears[width], constants[width];
        repeat(scales, scale, width, channels), repeat(shifts, shift, width, channels);
        repeat(slopes, slope, width, channels), repeat(means, mean, width, channels);
        repeat(linears, linear, width, channels), repeat(constants, constant, width, channels);
        for (long r = s * rows; r < (s + 1) * rows; r++)
            for (int j = 0; j < width; j++) {
                const float v = x[r * width + j], d = gradient[r * width + j], z = v * scales[j] + shifts[j];
                x_gradient[r * width + j] =
                    scales[j] * (z > 0 ? d : d * slopes[j]) - linears[j] * (v - means[j]) - constants[j];
            }
    }
}
