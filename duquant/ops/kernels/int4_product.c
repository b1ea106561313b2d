/* Products of small unsigned integers with packed 4-bit weights, exact in 32 bits.

   out[m][n] = sum over k of x[m][k] * (w[n][k] - 8)        x: 0 ... 127, w: 0 ... 15

   A byte of a weight row holds two neighbouring columns, the even one in its low half. So a row of
   activations is first dealt into its even and its odd columns; then 32 bytes of weights meet 32
   even and 32 odd activations without any shuffling:

       acc += (w & 15) * even + (w >> 4) * odd

   On AVX2 pairs of products are summed in 16 bits, which hold `steps` of them before they must be
   widened; with VNNI four products are summed in 32 bits at once. Weights are read as they lie in
   the file: half a byte each, which is what decoding one token at a time waits for.

   Tokens are taken a few at a time (their integers stay in the second-level cache while all weights
   pass by), weights two rows at a time. */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH 32        /* bytes of a vector */
#define TOKENS 4        /* rows of a tile */
#define ROWS 2          /* weight rows of a tile */
#define CACHE (192 * 1024)
#define OFFSET 8

typedef struct {
    const uint8_t *even, *odd; /* dealt activations, `bytes` per token, zero padded */
    const uint8_t *weights;    /* `half` bytes per row */
    int64_t half, bytes, steps;
} Problem;

static inline int32_t sum_of_lanes(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* One vector of a weight row; the last one of a row may be short. */
static inline __m256i load(const uint8_t *row, int64_t at, int64_t half) {
    if (at + WIDTH <= half) return _mm256_loadu_si256((const __m256i *)(row + at));
    uint8_t rest[WIDTH] = {0};
    memcpy(rest, row + at, (size_t)(half - at));
    return _mm256_loadu_si256((const __m256i *)rest);
}

/* `tokens` x `rows` sums; both are constants at every call, so the loops unroll. */
static inline __attribute__((always_inline)) void tile(const Problem *p, int64_t token, int64_t row,
                                                       const int tokens, const int rows,
                                                       int32_t sums[TOKENS][ROWS]) {
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i total[TOKENS][ROWS];
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) total[t][r] = _mm256_setzero_si256();
#ifndef __AVX512VNNI__
    const __m256i ones = _mm256_set1_epi16(1);
#endif
    for (int64_t start = 0; start < p->half; start += p->steps * WIDTH) {
        int64_t end = start + p->steps * WIDTH < p->half ? start + p->steps * WIDTH : p->half;
#ifndef __AVX512VNNI__
        __m256i part[TOKENS][ROWS];
        for (int t = 0; t < tokens; t++)
            for (int r = 0; r < rows; r++) part[t][r] = _mm256_setzero_si256();
#endif
        for (int64_t at = start; at < end; at += WIDTH) {
            __m256i low[ROWS], high[ROWS];
            for (int r = 0; r < rows; r++) {
                __m256i w = load(p->weights + (row + r) * p->half, at, p->half);
                low[r] = _mm256_and_si256(w, low_half);
                high[r] = _mm256_and_si256(_mm256_srli_epi16(w, 4), low_half);
            }
            for (int t = 0; t < tokens; t++) {
                const int64_t x = (token + t) * p->bytes + at;
                __m256i even = _mm256_load_si256((const __m256i *)(p->even + x));
                __m256i odd = _mm256_load_si256((const __m256i *)(p->odd + x));
                for (int r = 0; r < rows; r++) {
#ifdef __AVX512VNNI__
                    total[t][r] = _mm256_dpbusd_epi32(total[t][r], low[r], even);
                    total[t][r] = _mm256_dpbusd_epi32(total[t][r], high[r], odd);
#else
                    __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(low[r], even),
                                                    _mm256_maddubs_epi16(high[r], odd));
                    part[t][r] = _mm256_add_epi16(part[t][r], both);
#endif
                }
            }
        }
#ifndef __AVX512VNNI__
        for (int t = 0; t < tokens; t++)
            for (int r = 0; r < rows; r++)
                total[t][r] = _mm256_add_epi32(total[t][r], _mm256_madd_epi16(part[t][r], ones));
#endif
    }
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) sums[t][r] = sum_of_lanes(total[t][r]);
}

static void any_tile(const Problem *p, int64_t token, int64_t row, int64_t tokens, int64_t rows,
                     int32_t sums[TOKENS][ROWS]) {
    if (tokens == TOKENS && rows == ROWS) {
        tile(p, token, row, TOKENS, ROWS, sums);
    } else if (rows == ROWS) {
        for (int64_t t = 0; t < tokens; t++) tile(p, token + t, row, 1, ROWS, sums + t);
    } else {
        for (int64_t t = 0; t < tokens; t++) tile(p, token + t, row, 1, 1, sums + t);
    }
}

/* x: tokens x columns; weights: rows x (columns / 2); out: tokens x rows.
   `largest` is the largest activation. Returns 0, or 1 if memory ran out. */
int int4_product(const uint8_t *x, const uint8_t *weights, float *out, int64_t tokens, int64_t rows,
                 int64_t columns, int64_t largest, int threads) {
    const int64_t half = columns / 2, bytes = (half + WIDTH - 1) / WIDTH * WIDTH;
    uint8_t *even = aligned_alloc(64, (size_t)((2 * tokens * bytes + 63) / 64 * 64));
    int32_t *offsets = malloc((size_t)tokens * sizeof(int32_t));
    if (!even || !offsets) {
        free(even);
        free(offsets);
        return 1;
    }
    uint8_t *odd = even + tokens * bytes;
    const Problem p = {even, odd, weights, half, bytes, 32767 / (4 * 15 * largest)};
    int64_t at_once = CACHE / (2 * bytes) / TOKENS * TOKENS;
    if (at_once < TOKENS) at_once = TOKENS;
    const int64_t blocks = (tokens + at_once - 1) / at_once, strip = 64;
    const int64_t strips = (rows + strip - 1) / strip;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            int32_t sum = 0;
            for (int64_t k = 0; k < half; k++) {
                even[t * bytes + k] = x[t * columns + 2 * k];
                odd[t * bytes + k] = x[t * columns + 2 * k + 1];
                sum += x[t * columns + 2 * k] + x[t * columns + 2 * k + 1];
            }
            memset(even + t * bytes + half, 0, (size_t)(bytes - half));
            memset(odd + t * bytes + half, 0, (size_t)(bytes - half));
            offsets[t] = OFFSET * sum;
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t s = 0; s < strips; s++) {
                const int64_t last_token = (block + 1) * at_once < tokens ? (block + 1) * at_once : tokens;
                const int64_t last_row = (s + 1) * strip < rows ? (s + 1) * strip : rows;
                for (int64_t row = s * strip; row < last_row; row += ROWS)
                    for (int64_t token = block * at_once; token < last_token; token += TOKENS) {
                        const int64_t m = last_token - token < TOKENS ? last_token - token : TOKENS;
                        const int64_t n = last_row - row < ROWS ? last_row - row : ROWS;
                        int32_t sums[TOKENS][ROWS];
                        any_tile(&p, token, row, m, n, sums);
                        for (int64_t t = 0; t < m; t++)
                            for (int64_t r = 0; r < n; r++)
                                out[(token + t) * rows + row + r] = (float)(sums[t][r] - offsets[token + t]);
                    }
            }
    }
    free(even);
    free(offsets);
    return 0;
}
