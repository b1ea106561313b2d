/* Screening rows for the largest entries of their product with a matrix, in small integers.

   A search wants the largest entry of x P, for many rows x and an orthogonal P of a few columns. Both
   are rounded to integers, x row by row and P as a whole, and multiplied exactly. What rounding can
   have changed is known (Cauchy and Schwarz), p being a column of P:

       |x p - x' p'| <= |x - x'| |p| + |x'| |p - p'|

   so entries that stay further below the best than their errors are out. Integers multiply four times
   as fast as floats where the processor has AVX512 VNNI, and only the ends of every row are written.
   The few rows whose ends are near are multiplied again to see which entries it were. Without these
   instructions pairs of products are summed in 16 bits: P has a bit less then. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define UNROLLED _Pragma("GCC unroll 8") /* or sums would live in memory */
#define ROW_LEVELS 127
#define ROUNDING 0x1p-23f /* error of a float32 sum of products, per channel, in norms of the row */
#define TINIEST 1e-30f /* a row without a larger entry is taken as zero; callers' largest are near 1 */
#define STRIP 256      /* rows that a thread takes at once */
#define WORTH_A_THREAD (1 << 22) /* products */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define LANES 16
#define TOKENS 6  /* rows of a tile */
#define VECTORS 4 /* vectors of columns */
#define LEVELS 127
#define LARGEST_SIZE 256
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
#define LARGEST_SIZE 128
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

/* A step spreads one channel: a column of its matrix has an entry near 1, which leaves the others of
   large blocks too few levels to tell entries apart. */
int largest_size(void) { return LARGEST_SIZE; }

static int threads_for(int64_t products, int threads) { return products < WORTH_A_THREAD ? 1 : threads; }

/* Rounded rows: `integers` times `scale`; sums begin with `start`, which undoes the matrix's offset.
   All are laid out as the ranking is: searches x all rows. */
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

/* Round rows number `first` to `last` of every search's ranking. x: searches x all x size, of which
   searches and rows lie `search_stride` and `row_stride` floats apart. */
void round_rows(const float *x, int64_t search_stride, int64_t row_stride, const int64_t *ranking,
                const Rows *rows, int64_t searches, int64_t all, int64_t size, int64_t first, int64_t last,
                int threads) {
    const int64_t entries = searches * (last - first) * size;
#pragma omp parallel for collapse(2) num_threads(threads_for(entries * 16, threads))
    for (int64_t search = 0; search < searches; search++)
        for (int64_t row = first; row < last; row++) {
            const int64_t at = search * all + row;
            const float *from = x + search * search_stride + ranking[at] * row_stride;
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
    uint32_t *integers; /* size / 4 x size columns, four channels in each */
    float scale, length, residual; /* `length`: of the longest column; `residual`: the largest */
} Matrix;

/* `spare` holds two floats per column. */
static void round_matrix(const float *p, Matrix *matrix, int64_t size, float *spare) {
    float *restrict squares = spare, *restrict rests = spare + size;
    memset(spare, 0, (size_t)(2 * size) * sizeof(float));
    matrix->scale = fmaxf(largest_of(p, size * size), TINIEST) / LEVELS;
    const float scale = matrix->scale, inverse = 1 / scale;
    for (int64_t k = 0; k < size; k += 4) {
        const float *rows = p + k * size;
        uint32_t *restrict to = matrix->integers + k / 4 * size;
#pragma omp simd
        for (int64_t column = 0; column < size; column++) {
            uint32_t four = 0;
            float square = 0, rest = 0;
            UNROLLED for (int i = 0; i < 4; i++) {
                const float value = rows[i * size + column], integer = rintf(value * inverse);
                const float left = value - integer * scale;
                square += value * value;
                rest += left * left;
                four |= (uint32_t)((int32_t)integer + OFFSET) << 8 * i;
            }
            squares[column] += square;
            rests[column] += rest;
            to[column] = four;
        }
    }
    matrix->length = sqrtf(largest_of(squares, size));
    matrix->residual = sqrtf(largest_of(rests, size));
}

/* Of `tokens` rows, a constant at every call, the products with a few vectors of columns. */
static inline __attribute__((always_inline)) void multiply(const int8_t *rows, const int32_t *start,
                                                           const uint32_t *columns, int64_t size,
                                                           Vector sum[TOKENS][VECTORS], const int tokens) {
    UNROLLED for (int t = 0; t < tokens; t++)
        UNROLLED for (int v = 0; v < VECTORS; v++) sum[t][v] = everywhere(start[t]);
    for (int64_t k = 0; k < size; k += 4) {
        Vector column[VECTORS];
        UNROLLED for (int v = 0; v < VECTORS; v++) column[v] = load(columns + k / 4 * size + v * LANES);
        UNROLLED for (int t = 0; t < tokens; t++) {
            int32_t four;
            memcpy(&four, rows + t * size + k, sizeof four);
            const Vector row = everywhere(four);
            UNROLLED for (int v = 0; v < VECTORS; v++) sum[t][v] = add_products(sum[t][v], column[v], row);
        }
    }
}

/* The largest and the smallest product of each of `tokens` rows. */
static inline __attribute__((always_inline)) void measure(const int8_t *rows, const int32_t *start,
                                                          const Matrix *matrix, int64_t size, int32_t *high,
                                                          int32_t *low, const int tokens) {
    Vector most[TOKENS], least[TOKENS], sum[TOKENS][VECTORS];
    for (int t = 0; t < tokens; t++) {
        most[t] = everywhere(INT32_MIN);
        least[t] = everywhere(INT32_MAX);
    }
    for (int64_t column = 0; column < size; column += VECTORS * LANES) {
        multiply(rows, start, matrix->integers + column, size, sum, tokens);
        UNROLLED for (int t = 0; t < tokens; t++)
            UNROLLED for (int v = 0; v < VECTORS; v++) {
                most[t] = larger(most[t], sum[t][v]);
                least[t] = smaller(least[t], sum[t][v]);
            }
    }
    for (int t = 0; t < tokens; t++) {
        high[t] = largest(most[t]);
        low[t] = smallest(least[t]);
    }
}

/* What is known of a search's largest entry and of its smallest, or of its largest magnitude twice. */
typedef struct {
    float high, low;
} Reach;

typedef struct {
    const Rows *rows;
    const Matrix *matrices;
    Reach *reach;     /* of every search */
    Reach *may_reach; /* of every row at most, searches x count */
    int64_t searches, all, size, count;
    int both; /* ends of the range are wanted, not the largest magnitude */
} Screen;

static float scale_of(const Screen *s, int64_t search, int64_t row) {
    return s->rows->scale[search * s->all + row] * s->matrices[search].scale;
}

static float error_of(const Screen *s, int64_t search, int64_t row) {
    const Matrix *matrix = s->matrices + search;
    const float norm = s->rows->norm[search * s->all + row], rounding = ROUNDING * (float)s->size * norm;
    const float residual = s->rows->residual[search * s->all + row];
    return residual * matrix->length + (norm + residual) * matrix->residual + rounding;
}

/* Measure some rows of a search, and say what they reach for certain. */
static Reach measure_rows(const Screen *s, int64_t search, int64_t first, int64_t last) {
    const int8_t *integers = s->rows->integers + search * s->all * s->size;
    const int32_t *start = s->rows->start + search * s->all;
    const Matrix *matrix = s->matrices + search;
    int32_t high[STRIP], low[STRIP];
    int64_t row = first;
    for (; row + TOKENS <= last; row += TOKENS)
        measure(integers + row * s->size, start + row, matrix, s->size, high + row - first, low + row - first,
                TOKENS);
    for (; row < last; row++)
        measure(integers + row * s->size, start + row, matrix, s->size, high + row - first, low + row - first,
                1);
    Reach reach = {-INFINITY, -INFINITY};
    for (row = first; row < last; row++) {
        const float scale = scale_of(s, search, row), error = error_of(s, search, row);
        const float up = (float)high[row - first] * scale, down = (float)-low[row - first] * scale;
        reach.high = up - error > reach.high ? up - error : reach.high;
        reach.low = down - error > reach.low ? down - error : reach.low;
        s->may_reach[search * s->count + row] = (Reach){up + error, down + error};
    }
    if (!s->both) reach.high = reach.low = fmaxf(reach.high, reach.low);
    return reach;
}

/* Where the entries are; beyond `capacity` they are counted only. */
typedef struct {
    int32_t *places; /* search, row of the ranking, channel */
    int64_t capacity, count;
} Found;

static void add(Found *found, int64_t search, int64_t row, int64_t channel) {
    int64_t number;
#pragma omp atomic capture
    number = found->count++;
    if (number < found->capacity) {
        int32_t *place = found->places + 3 * number;
        place[0] = (int32_t)search, place[1] = (int32_t)row, place[2] = (int32_t)channel;
    }
}

static void find_in_row(const Screen *s, int64_t search, int64_t row, Found *found) {
    const Rows *rows = s->rows;
    const int64_t at = search * s->all + row;
    const float scale = scale_of(s, search, row), error = error_of(s, search, row);
    const float high = s->reach[search].high - error, low = s->reach[search].low - error;
    for (int64_t column = 0; column < s->size; column += VECTORS * LANES) {
        int32_t lanes[VECTORS * LANES];
        Vector sum[TOKENS][VECTORS];
        multiply(rows->integers + at * s->size, rows->start + at, s->matrices[search].integers + column,
                 s->size, sum, 1);
        memcpy(lanes, sum[0], sizeof lanes);
        for (int i = 0; i < VECTORS * LANES; i++) {
            if ((float)lanes[i] * scale >= high || (float)-lanes[i] * scale >= low)
                add(found, search, row, column + i);
        }
    }
}

static void screen(Screen *s, Matrix *rounded, const float *matrices, float *spare, Found *found, int threads) {
    const int64_t size = s->size, products = s->searches * (s->count + 16) * size * size;
#pragma omp parallel num_threads(threads_for(products, threads))
    {
#pragma omp for schedule(static)
        for (int64_t search = 0; search < s->searches; search++) {
            round_matrix(matrices + search * size * size, rounded + search, size, spare + 2 * search * size);
            s->reach[search].high = s->reach[search].low = -INFINITY;
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t search = 0; search < s->searches; search++)
            for (int64_t row = 0; row < s->count; row += STRIP) {
                const int64_t last = row + STRIP < s->count ? row + STRIP : s->count;
                const Reach strip = measure_rows(s, search, row, last);
#pragma omp critical
                {
                    s->reach[search].high = fmaxf(s->reach[search].high, strip.high);
                    s->reach[search].low = fmaxf(s->reach[search].low, strip.low);
                }
            }
#pragma omp for schedule(static) collapse(2)
        for (int64_t search = 0; search < s->searches; search++)
            for (int64_t row = 0; row < s->count; row++) {
                const Reach reach = s->reach[search], at_most = s->may_reach[search * s->count + row];
                const int near = at_most.high >= reach.high || at_most.low >= reach.low;
                if (s->rows->norm[search * s->all] > 0) {
                    if (near) find_in_row(s, search, row, found);
                } else if (!row) {
                    add(found, search, 0, 0);
                }
            }
    }
}

/* Entries of the products of every search's first `count` rows with its matrix that may be the largest
   magnitude of the search or, with `both`, the largest or the smallest entry. A search over zeros has
   one. Returns how many there are, of which `capacity` at most are written to `places` in no order;
   -1 if memory ran out. */
int64_t find_extremes(const Rows *rows, const float *matrices, int64_t searches, int64_t all, int64_t size,
                      int64_t count, int both, int32_t *places, int64_t capacity, int threads) {
    Matrix *rounded = malloc((size_t)searches * sizeof(Matrix));
    uint32_t *integers = malloc((size_t)(searches * size * size));
    float *spare = malloc((size_t)(searches * size * 2) * sizeof(float));
    Reach *reach = malloc((size_t)(searches * (1 + count)) * sizeof(Reach));
    Found found = {places, capacity, -1};
    if (rounded && integers && spare && reach) {
        Screen s = {rows, rounded, reach, reach + searches, searches, all, size, count, both};
        for (int64_t i = 0; i < searches; i++) rounded[i].integers = integers + i * size * size / 4;
        found.count = 0;
        screen(&s, rounded, matrices, spare, &found, threads);
    }
    free(rounded);
    free(integers);
    free(spare);
    free(reach);
    return found.count;
}
