/* Screening rows for the largest entries of their product with a matrix, in small integers.

   A search wants the largest entry of x P, for many rows x and an orthogonal P of a few columns. Both
   are rounded to integers, x row by row and P as a whole, and multiplied exactly. What rounding can
   have changed is known (Cauchy and Schwarz), p being a column of P:

       |x p - x' p'| <= |x - x'| |p| + |x'| |p - p'|

   so rows that stay further below the best than their errors are out. Integers multiply four times
   as fast as floats where the processor has AVX512 VNNI, and nothing is written but three numbers a
   row. Without these instructions pairs of products are summed in 16 bits: P has a bit less then. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define UNROLLED _Pragma("GCC unroll 8") /* or sums would live in memory */
#define ROW_LEVELS 127
#define ROUNDING 0x1p-23f /* error of a float32 sum of products, per channel, in norms of the row */
#define TINIEST 1e-30f /* a row without a larger entry is taken as zero, its norm as its error */
#define STRIP 256      /* rows that a thread takes at once */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LANES 16
#define TOKENS 6  /* rows of a tile */
#define VECTORS 4 /* vectors of columns */
#define LEVELS 127
typedef __m512i Vector;
static inline Vector load(const void *from) { return _mm512_loadu_si512(from); }
static inline Vector everywhere(int32_t x) { return _mm512_set1_epi32(x); }
static inline Vector add_products(Vector sum, Vector matrix, Vector row) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(matrix), "v"(row)); /* around the intrinsic GCC 12 copies sums */
    return sum;
}
static inline Vector larger(Vector a, Vector b) { return _mm512_max_epi32(a, b); }
static inline Vector smaller(Vector a, Vector b) { return _mm512_min_epi32(a, b); }
static inline int32_t largest(Vector v) { return _mm512_reduce_max_epi32(v); }
static inline int32_t smallest(Vector v) { return _mm512_reduce_min_epi32(v); }
#else
#define LANES 8
#define TOKENS 4
#define VECTORS 2
#define LEVELS 63
typedef __m256i Vector;
static inline Vector load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
static inline Vector everywhere(int32_t x) { return _mm256_set1_epi32(x); }
static inline Vector add_products(Vector sum, Vector matrix, Vector row) {
    const Vector pairs = _mm256_maddubs_epi16(matrix, row); /* 2 * 127 * 127 at most */
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static inline Vector larger(Vector a, Vector b) { return _mm256_max_epi32(a, b); }
static inline Vector smaller(Vector a, Vector b) { return _mm256_min_epi32(a, b); }
static inline int32_t largest(Vector v) {
    int32_t lanes[LANES];
    memcpy(lanes, &v, sizeof lanes);
    int32_t most = lanes[0];
    for (int i = 1; i < LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
}
static inline int32_t smallest(Vector v) { return -largest(_mm256_sub_epi32(_mm256_setzero_si256(), v)); }
#endif
#define OFFSET (LEVELS + 1) /* makes the matrix unsigned */

/* Block sizes must be multiples of this. */
int columns_at_once(void) { return VECTORS * LANES; }

/* Rounded rows: `integers` times `scale`; `start` undoes the matrix's offset. All are laid out as the
   ranking is: searches x all rows. */
typedef struct {
    int8_t *integers;
    float *scale, *residual, *norm;
    int32_t *start;
} Rows;

static float largest_of(const float *x, int64_t count) {
    float most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < count; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* Round rows number `first` to `last` of every search's ranking. x: searches x all x size. */
void round_rows(const float *x, const int64_t *ranking, const Rows *rows, int64_t searches, int64_t all,
                int64_t size, int64_t first, int64_t last, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t search = 0; search < searches; search++)
        for (int64_t row = first; row < last; row++) {
            const int64_t at = search * all + row;
            const float *from = x + (search * all + ranking[at]) * size;
            int8_t *to = rows->integers + at * size;
            float peak = largest_of(from, size), norm = 0, residual = 0;
            int32_t sum = 0;
            const float scale = peak > TINIEST ? peak / ROW_LEVELS : 0;
            const float inverse = peak > TINIEST ? ROW_LEVELS / peak : 0;
#pragma omp simd reduction(+ : norm, residual, sum)
            for (int64_t k = 0; k < size; k++) {
                const int32_t integer = (int32_t)rintf(from[k] * inverse);
                const float rest = from[k] - (float)integer * scale;
                to[k] = (int8_t)integer;
                sum += integer;
                norm += from[k] * from[k];
                residual += rest * rest;
            }
            rows->scale[at] = scale;
            rows->norm[at] = sqrtf(norm);
            rows->residual[at] = sqrtf(residual);
            rows->start[at] = -OFFSET * sum;
        }
}

typedef struct {
    uint8_t *integers; /* size / 4 x size columns x 4 */
    float scale, length, residual; /* `length`: of the longest column; `residual`: the largest */
} Matrix;

/* `spare` holds two floats per column. */
static void round_matrix(const float *p, Matrix *matrix, int64_t size, float *spare) {
    float *squares = spare, *rests = spare + size;
    memset(spare, 0, (size_t)(2 * size) * sizeof(float));
    matrix->scale = fmaxf(largest_of(p, size * size), TINIEST) / LEVELS;
    const float scale = matrix->scale, inverse = 1 / scale;
    for (int64_t k = 0; k < size; k++) {
        const float *row = p + k * size;
        uint8_t *to = matrix->integers + k / 4 * 4 * size + k % 4;
        for (int64_t column = 0; column < size; column++) {
            const float integer = rintf(row[column] * inverse), rest = row[column] - integer * scale;
            squares[column] += row[column] * row[column];
            rests[column] += rest * rest;
            to[4 * column] = (uint8_t)((int32_t)integer + OFFSET);
        }
    }
    matrix->length = sqrtf(largest_of(squares, size));
    matrix->residual = sqrtf(largest_of(rests, size));
}

/* `tokens` rows, a constant at every call: the largest and smallest of their products with all columns. */
static inline __attribute__((always_inline)) void tile(const int8_t *rows, const int32_t *start,
                                                       const uint8_t *matrix, int64_t size, int32_t *high,
                                                       int32_t *low, const int tokens) {
    Vector most[TOKENS], least[TOKENS];
    for (int t = 0; t < tokens; t++) {
        most[t] = everywhere(INT32_MIN);
        least[t] = everywhere(INT32_MAX);
    }
    for (int64_t column = 0; column < size; column += VECTORS * LANES) {
        Vector sum[TOKENS][VECTORS];
        UNROLLED for (int t = 0; t < tokens; t++)
            UNROLLED for (int v = 0; v < VECTORS; v++) sum[t][v] = everywhere(start[t]);
        for (int64_t k = 0; k < size; k += 4) {
            Vector columns[VECTORS];
            UNROLLED for (int v = 0; v < VECTORS; v++)
                columns[v] = load(matrix + k * size + (column + v * LANES) * 4);
            UNROLLED for (int t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, rows + t * size + k, sizeof four);
                const Vector row = everywhere(four);
                UNROLLED for (int v = 0; v < VECTORS; v++)
                    sum[t][v] = add_products(sum[t][v], columns[v], row);
            }
        }
        UNROLLED for (int t = 0; t < tokens; t++) {
            UNROLLED for (int v = 0; v < VECTORS; v++) {
                most[t] = larger(most[t], sum[t][v]);
                least[t] = smaller(least[t], sum[t][v]);
            }
        }
    }
    for (int t = 0; t < tokens; t++) {
        high[t] = largest(most[t]);
        low[t] = smallest(least[t]);
    }
}

static void screen(const Rows *rows, const Matrix *matrix, int64_t from, int64_t to, int64_t size,
                   float *high, float *low, float *error) {
    int32_t highest[STRIP], lowest[STRIP];
    int64_t at = from;
    for (; at + TOKENS <= to; at += TOKENS)
        tile(rows->integers + at * size, rows->start + at, matrix->integers, size, highest + at - from,
             lowest + at - from, TOKENS);
    for (; at < to; at++)
        tile(rows->integers + at * size, rows->start + at, matrix->integers, size, highest + at - from,
             lowest + at - from, 1);
    for (int64_t i = 0; i < to - from; i++) {
        const float scale = rows->scale[from + i] * matrix->scale, norm = rows->norm[from + i];
        const float residual = rows->residual[from + i], rounding = ROUNDING * (float)size * norm;
        high[i] = (float)highest[i] * scale;
        low[i] = (float)lowest[i] * scale;
        error[i] = residual * matrix->length + (norm + residual) * matrix->residual + rounding;
    }
}

/* The first `count` rows of every search against its matrix. high, low, error: searches x count.
   Returns 0, or 1 if memory ran out. */
int screen_rows(const Rows *rows, const float *matrices, float *high, float *low, float *error,
                int64_t searches, int64_t all, int64_t size, int64_t count, int threads) {
    Matrix *rounded = malloc((size_t)searches * sizeof(Matrix));
    uint8_t *integers = malloc((size_t)(searches * size * size));
    float *spare = malloc((size_t)(searches * size * 2) * sizeof(float));
    const int failed = !rounded || !integers || !spare;
    if (failed) goto end;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t search = 0; search < searches; search++) {
            rounded[search].integers = integers + search * size * size;
            round_matrix(matrices + search * size * size, rounded + search, size, spare + 2 * search * size);
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t search = 0; search < searches; search++)
            for (int64_t row = 0; row < count; row += STRIP) {
                const int64_t at = search * count + row, last = row + STRIP < count ? row + STRIP : count;
                screen(rows, rounded + search, search * all + row, search * all + last, size, high + at,
                       low + at, error + at);
            }
    }
end:
    free(rounded);
    free(integers);
    free(spare);
    return failed;
}
