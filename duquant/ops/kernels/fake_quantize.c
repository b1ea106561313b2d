/* Quantization of rows, fake and real, and its gradient, one pass over memory each.

   Every row has a scale s and a zero point z; n is the largest integer:

       level = round(x / s) + z        q = clamp(level, 0, n)        x^ = (q - z) * s

   An entry is inside when the clamp did not touch it. Arithmetic and its order are PyTorch's, so
   values are equal to the last bit; only sums over a row are added in another order. An entry that is
   NaN makes the row's scale NaN, and so all its values and their gradients; an infinite one is
   clamped like any other. What is not inside is left out of sums, not multiplied by 0. */

#include "row_codes.h"

#define SMALL 16384 /* entries that one thread finishes before others have begun */
#define STRIDE 64   /* entries looked at together */

static int useful(int threads, int64_t rows, int64_t columns) {
    return rows * columns < SMALL ? 1 : threads;
}

/* high, low: the largest and the smallest entry of every row, NaN where one is NaN. */
void row_extremes(const float *x, float *high, float *low, int64_t rows, int64_t columns,
                  int threads) {
#pragma omp parallel for num_threads(useful(threads, rows, columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        extremes_of_row(x + r * columns, columns, high + r, low + r);
}

/* out: x^. */
void quantize_rows(const float *x, const float *scale, const float *zero, float *out, int64_t rows,
                   int64_t columns, float largest, int threads) {
#pragma omp parallel for num_threads(useful(threads, rows, columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * columns, s = scale[r], z = zero[r];
        float *to = out + r * columns;
#pragma omp simd
        for (int64_t c = 0; c < columns; c++)
            to[c] = (clamp(rintf(row[c] / s) + z, largest) - z) * s;
    }
}

/* out: of every row the integers q, a byte each, then s (float) and z (int16). */
void encode_rows(const float *x, const float *scale, const float *zero, uint8_t *out, int64_t rows,
                 int64_t columns, float largest, int threads) {
#pragma omp parallel for num_threads(useful(threads, rows, columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        encode_row(x + r * columns, columns, scale[r], zero[r], largest, out + r * (columns + GRID_BYTES));
}

static __attribute__((noinline)) void row_sums(const float *restrict row, const float *restrict g,
                                               float s, float z, float largest, int64_t columns,
                                               float *to_scale, float *clamped) {
    float of_scale = 0, of_clamped = 0;
#pragma omp simd reduction(+ : of_scale, of_clamped)
    for (int64_t c = 0; c < columns; c++) {
        const float level = rintf(row[c] / s) + z, q = clamp(level, largest);
        const float inside = level == q ? row[c] : 0.0f, outside = level == q ? 0.0f : g[c];
        of_scale += ((q - z) * s - inside) * g[c];
        of_clamped += outside;
    }
    *to_scale = of_scale;
    *clamped = of_clamped;
}

static __attribute__((noinline)) void row_inside(const float *restrict row, const float *restrict g,
                                                 float s, float z, float largest, int64_t columns,
                                                 float *restrict to) {
    const float nothing = 0 * s; /* NaN for a row of NaN */
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) {
        const float level = rintf(row[c] / s) + z;
        to[c] = level == clamp(level, largest) ? g[c] : nothing;
    }
}

/* With g the gradient that arrives at x^:
   to_scale: sum of (x^ - [inside] x) g        clamped: sum of [outside] g
   to_x: [inside] g, if it is not null. */
void quantize_rows_gradient(const float *x, const float *gradient, const float *scale,
                            const float *zero, float *to_scale, float *clamped, float *to_x,
                            int64_t rows, int64_t columns, float largest, int threads) {
#pragma omp parallel for num_threads(useful(threads, rows, columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * columns, *g = gradient + r * columns;
        row_sums(row, g, scale[r], zero[r], largest, columns, to_scale + r, clamped + r);
        if (to_x) row_inside(row, g, scale[r], zero[r], largest, columns, to_x + r * columns);
    }
}

static inline int holds(const float *entries, float value) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int i = 0; i < STRIDE; i++) found |= entries[i] == value;
    return found;
}

/* at: the first column of every row that holds `value`, or 0 where none does. */
void find_in_rows(const float *x, const float *value, int64_t *at, int64_t rows, int64_t columns,
                  int threads) {
#pragma omp parallel for num_threads(useful(threads, rows, columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * columns;
        int64_t c = 0;
        while (c + STRIDE <= columns && !holds(row + c, value[r])) c += STRIDE;
        while (c < columns && row[c] != value[r]) c++;
        at[r] = c < columns ? c : 0;
    }
}
