/* Block rotations with permutations between them, y = x R_1 P_1 R_2 ... of every row of x.

   A row of activations is cut into blocks of `size` channels, and every block is multiplied by its
   matrix. A few rows (`TOKENS`) go through all steps together and stay in the cache meanwhile. The
   innermost work is one panel: the rows' products with two vectors of a matrix's columns, summed in
   registers over the channels of a block in their order. A permutation costs nothing, because the
   next rotation reads channel `order[k]` where it would read k. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>

#define UNROLLED _Pragma("GCC unroll 16") /* or sums would live in memory */

#ifdef __AVX512F__
#define LANES 16
#define TOKENS 8
typedef __m512 Vector;
static inline Vector nothing(void) { return _mm512_setzero_ps(); }
static inline Vector load(const float *from) { return _mm512_loadu_ps(from); }
static inline Vector everywhere(float x) { return _mm512_set1_ps(x); }
static inline Vector add_product(Vector sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
static inline void store(float *to, Vector v) { _mm512_storeu_ps(to, v); }
#else
#define LANES 8
#define TOKENS 6
typedef __m256 Vector;
static inline Vector nothing(void) { return _mm256_setzero_ps(); }
static inline Vector load(const float *from) { return _mm256_loadu_ps(from); }
static inline Vector everywhere(float x) { return _mm256_set1_ps(x); }
static inline Vector add_product(Vector sum, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, sum); }
static inline void store(float *to, Vector v) { _mm256_storeu_ps(to, v); }
#endif

/* Block sizes must be multiples of this. */
int panel_width(void) { return 2 * LANES; }

/* Of `tokens` rows, a constant at every call, one block: the columns of a panel. */
static inline __attribute__((always_inline)) void panel(const float *from, const int32_t *order,
                                                        const float *matrix, float *to, int64_t width,
                                                        int64_t size, const int tokens) {
    Vector left[TOKENS], right[TOKENS];
    UNROLLED for (int t = 0; t < tokens; t++) left[t] = right[t] = nothing();
    for (int64_t k = 0; k < size; k++) {
        Vector l = load(matrix + k * size), r = load(matrix + k * size + LANES);
        __asm__("" : "+v"(l), "+v"(r)); /* loaded once, not again for every row */
        const float *channel = from + order[k];
        UNROLLED for (int t = 0; t < tokens; t++) {
            const Vector x = everywhere(channel[t * width]);
            left[t] = add_product(left[t], x, l);
            right[t] = add_product(right[t], x, r);
        }
    }
    UNROLLED for (int t = 0; t < tokens; t++) {
        store(to + t * width, left[t]);
        store(to + t * width + LANES, right[t]);
    }
}

typedef struct {
    const float *rotations; /* (steps, matrices, size, size); matrices is 1 or the number of blocks */
    const int32_t *orders;  /* (steps, width), the first is 0, 1, 2, ... */
    int64_t steps, matrices, size, width;
} Transform;

static inline __attribute__((always_inline)) void rotate(const Transform *f, int64_t step,
                                                         const float *from, float *to,
                                                         const int tokens) {
    for (int64_t start = 0; start < f->width; start += f->size) {
        const int64_t matrix = f->matrices == 1 ? step : step * f->matrices + start / f->size;
        for (int64_t column = 0; column < f->size; column += 2 * LANES)
            panel(from, f->orders + step * f->width + start,
                  f->rotations + matrix * f->size * f->size + column, to + start + column, f->width,
                  f->size, tokens);
    }
}

/* All steps; `spare` holds two times as many rows, since no step may write what it still reads. */
static inline __attribute__((always_inline)) void transform(const Transform *f, const float *x, float *y,
                                                            float *spare, const int tokens) {
    const float *from = x;
    for (int64_t step = 0; step < f->steps; step++) {
        float *to = step == f->steps - 1 ? y : spare + step % 2 * TOKENS * f->width;
        rotate(f, step, from, to, tokens);
        from = to;
    }
}

/* x, y: rows x width. Returns 0, or 1 if memory ran out. */
int transform_rows(const float *x, float *y, const float *rotations, const int32_t *orders, int64_t rows,
                   int64_t width, int64_t steps, int64_t matrices, int64_t size, int threads) {
    const Transform f = {rotations, orders, steps, matrices, size, width};
    int failed = 0;
#pragma omp parallel num_threads(rows <= TOKENS ? 1 : threads) reduction(| : failed)
    {
        float *spare = aligned_alloc(64, (size_t)((2 * TOKENS * width * 4 + 63) / 64 * 64));
        failed = !spare;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row += TOKENS) {
            const float *from = x + row * width;
            float *to = y + row * width;
            int64_t left = rows - row < TOKENS ? rows - row : TOKENS;
            if (!spare) continue;
            if (left == TOKENS) {
                transform(&f, from, to, spare, TOKENS);
                continue;
            }
            for (; left >= 4; left -= 4, from += 4 * width, to += 4 * width)
                transform(&f, from, to, spare, 4);
            for (; left; left--, from += width, to += width) transform(&f, from, to, spare, 1);
        }
        free(spare);
    }
    return failed;
}
