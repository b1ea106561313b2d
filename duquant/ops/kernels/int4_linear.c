/* A linear layer of small unsigned integers with packed 4-bit weights; products are exact in 32 bits.

   product[m][n] = sum over k of x[m][k] * (w[n][k] - 8)        x: 0 ... 127, w: 0 ... 15

   A byte of a weight row holds two neighbouring columns, the even one in its low half. So a row of
   activations is first dealt into its even and its odd columns; then 32 bytes of weights meet 32
   even and 32 odd activations without any shuffling:

       acc += (w & 15) * even + (w >> 4) * odd

   With AVX512 VNNI four products are summed in 32 bits at once. On AVX2 pairs of them are summed in
   16 bits, which hold so many (a `chunk`) before they must be widened. Weights are read as they lie
   in the file: half a byte each, which is what decoding one token at a time waits for.

   Tokens and weight rows are taken a few at a time, as many as their sums fit the registers. The
   integers of some more tokens stay in the second-level cache while all weights pass by. */

#define _GNU_SOURCE /* for syscall */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bfloat16.h"

#define LARGE_PAGE (1 << 21)
#define AHEAD 4         /* rows of weights that one token asks memory for in advance */
#define FEWEST_TOKENS 4 /* that are multiplied by tiles, where there are some */

#define OFFSET 8
#define STRIP 64    /* rows of weights that one thread multiplies before it looks for more */
#define AT_ONCE 120 /* tokens it multiplies them with, at most */
#define UNROLLED _Pragma("GCC unroll 8") /* or sums would live in memory */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define WIDTH 64 /* bytes of a vector */
#define TOKENS 5 /* rows of activations of a tile */
#define ROWS 4   /* rows of weights */
#define CACHE (512 * 1024)
typedef __m512i Vector;

static inline Vector nothing(void) { return _mm512_setzero_si512(); }
static inline Vector load(const uint8_t *from) { return _mm512_loadu_si512(from); }
static inline Vector load_part(const uint8_t *from, int64_t count) { /* the end of a row may be short */
    return count >= WIDTH ? load(from) : _mm512_maskz_loadu_epi8(((__mmask64)1 << count) - 1, from);
}
static inline Vector low_half(Vector w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline Vector high_half(Vector w) { return low_half(_mm512_srli_epi16(w, 4)); }
static inline Vector add_products(Vector sum, Vector low, Vector even, Vector high, Vector odd) {
    /* around the intrinsic GCC 12 copies sums */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(low), "v"(even));
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(high), "v"(odd));
    return sum;
}
static inline int32_t sum_of_lanes(Vector v) { return _mm512_reduce_add_epi32(v); }
static inline Vector add_neighbours(Vector a, Vector b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
#define FOUR_AT_ONCE
/* The sums of four vectors' lanes. */
static inline __m128i sums_of_lanes(Vector a, Vector b, Vector c, Vector d) {
    const Vector ab = add_neighbours(a, b), cd = add_neighbours(c, d);
    const Vector all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
static int64_t chunk_of(int64_t largest, int64_t bytes) { return bytes; }
#else
#define WIDTH 32
#define TOKENS 4
#define ROWS 2
#define CACHE (192 * 1024)
typedef __m256i Vector;

static inline Vector nothing(void) { return _mm256_setzero_si256(); }
static inline Vector load(const uint8_t *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}
static inline Vector load_part(const uint8_t *from, int64_t count) { /* the end of a row may be short */
    if (count >= WIDTH) return load(from);
    uint8_t rest[WIDTH] = {0};
    memcpy(rest, from, (size_t)count);
    return load(rest);
}
static inline Vector low_half(Vector w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline Vector high_half(Vector w) { return low_half(_mm256_srli_epi16(w, 4)); }
static inline Vector add_products(Vector sum, Vector low, Vector even, Vector high, Vector odd) {
    Vector both = _mm256_add_epi16(_mm256_maddubs_epi16(low, even), _mm256_maddubs_epi16(high, odd));
    return _mm256_add_epi16(sum, both);
}
static inline int32_t sum_of_lanes(Vector v) {
    v = _mm256_madd_epi16(v, _mm256_set1_epi16(1));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
static int64_t chunk_of(int64_t largest, int64_t bytes) { return 32767 / (4 * 15 * largest) * WIDTH; }
#endif

typedef struct {
    uint8_t *even, *odd;    /* dealt activations, `bytes` per token, zero padded */
    const uint8_t *weights; /* `half` bytes per row */
    int64_t half, bytes, chunk;
    int32_t *token_sums; /* of a token's integers */
    float *token_scale, *token_zero;
} Problem;

/* Where results go and what they are multiplied by; all but `to` has an entry per weight row.
   Without `scale` the products themselves are wanted. */
typedef struct {
    const float *scale, *zero, *sums; /* `sums`: of a weight row's integers minus its zero point */
    const float *bias;                /* may be null */
    void *to;                         /* tokens x rows */
    int64_t rows, is_bfloat16;
} Output;

/* `tokens` x `rows` sums; both are constants at every call, so the loops unroll. */
static inline __attribute__((always_inline)) void tile(const Problem *p, int64_t token, int64_t row,
                                                       const int tokens, const int rows,
                                                       int32_t sums[TOKENS][ROWS]) {
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) sums[t][r] = 0;
    for (int64_t start = 0; start < p->half; start += p->chunk) {
        int64_t end = start + p->chunk < p->half ? start + p->chunk : p->half;
        Vector part[TOKENS][ROWS];
        UNROLLED for (int t = 0; t < tokens; t++)
            UNROLLED for (int r = 0; r < rows; r++) part[t][r] = nothing();
        for (int64_t at = start; at < end; at += WIDTH) {
            Vector low[ROWS], high[ROWS];
            UNROLLED for (int r = 0; r < rows; r++) {
                const uint8_t *from = p->weights + (row + r) * p->half + at;
                Vector w = load_part(from, p->half - at);
                if (tokens == 1) _mm_prefetch((const char *)from + AHEAD * p->half, _MM_HINT_T0);
                low[r] = low_half(w);
                high[r] = high_half(w);
            }
            UNROLLED for (int t = 0; t < tokens; t++) {
                const int64_t x = (token + t) * p->bytes + at;
                Vector even = load(p->even + x), odd = load(p->odd + x);
                UNROLLED for (int r = 0; r < rows; r++)
                    part[t][r] = add_products(part[t][r], low[r], even, high[r], odd);
            }
        }
        UNROLLED for (int t = 0; t < tokens; t++) {
#ifdef FOUR_AT_ONCE
            if (rows == 4) {
                __m128i *to = (__m128i *)sums[t];
                const __m128i more = sums_of_lanes(part[t][0], part[t][1], part[t][2], part[t][3]);
                _mm_storeu_si128(to, _mm_add_epi32(_mm_loadu_si128(to), more));
                continue;
            }
#endif
            UNROLLED for (int r = 0; r < rows; r++) sums[t][r] += sum_of_lanes(part[t][r]);
        }
    }
}

static void any_tile(const Problem *p, int64_t token, int64_t row, int64_t tokens, int64_t rows,
                     int32_t sums[TOKENS][ROWS]) {
    if (tokens == TOKENS && rows == ROWS) {
        tile(p, token, row, TOKENS, ROWS, sums);
    } else if (rows == ROWS) {
        for (int64_t t = 0; t < tokens; t++) tile(p, token + t, row, 1, ROWS, sums + t);
    } else {
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t r = 0; r < rows; r++) {
                int32_t one[TOKENS][ROWS];
                tile(p, token + t, row + r, 1, 1, one);
                sums[t][r] = one[0][0];
            }
    }
}

/* What becomes of the sums of one token with `count` rows of weights, beginning with `row`. */
static void finish(const Problem *p, const Output *out, int64_t token, int64_t row, int64_t count,
                   const int32_t *sums) {
    const int32_t of_token = p->token_sums[token];
    float value[STRIP];
    for (int64_t r = 0; r < count; r++) value[r] = (float)(sums[r] - OFFSET * of_token);
    if (out->scale) {
        const float zero = p->token_zero[token], scale = p->token_scale[token];
        for (int64_t r = 0; r < count; r++) {
            const float correction = zero * out->sums[row + r] + (float)of_token * out->zero[row + r];
            value[r] = (value[r] - correction) * out->scale[row + r] * scale;
        }
    }
    if (out->bias)
        for (int64_t r = 0; r < count; r++) value[r] += out->bias[row + r];
    if (out->is_bfloat16) {
        uint16_t *to = (uint16_t *)out->to + token * out->rows + row;
        for (int64_t r = 0; r < count; r++) to[r] = to_bfloat16(value[r]);
    } else {
        memcpy((float *)out->to + token * out->rows + row, value, (size_t)count * sizeof(float));
    }
}

/* A token's scale and zero point, which follow its integers. */
static void keep_grid(const Problem *p, const uint8_t *grid, int64_t token) {
    int16_t zero;
    memcpy(p->token_scale + token, grid, sizeof(float));
    memcpy(&zero, grid + sizeof(float), sizeof zero);
    p->token_zero[token] = zero;
}

/* Deal one token into its even and odd columns; keep its sum, its scale and its zero point. */
static void deal(const Problem *p, const uint8_t *x, int64_t columns, int64_t token, int has_grid) {
    uint8_t *even = p->even + token * p->bytes, *odd = p->odd + token * p->bytes;
    const size_t rest = (size_t)(p->bytes - p->half);
    int32_t sum = 0;
    for (int64_t k = 0; k < p->half; k++) {
        even[k] = x[2 * k];
        odd[k] = x[2 * k + 1];
        sum += x[2 * k] + x[2 * k + 1];
    }
    memset(even + p->half, 0, rest);
    memset(odd + p->half, 0, rest);
    p->token_sums[token] = sum;
    if (has_grid) keep_grid(p, x + columns, token);
}

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VBMI__)
#define HAS_TILES
#include "int4_tiles.h"
#endif

/* A few tokens with a strip of weight rows. */
static void multiply(const Problem *p, const Output *out, int64_t first_token, int64_t last_token,
                     int64_t first_row, int64_t last_row) {
    int32_t all[AT_ONCE][STRIP];
    for (int64_t row = first_row; row < last_row; row += ROWS)
        for (int64_t token = first_token; token < last_token; token += TOKENS) {
            const int64_t m = last_token - token < TOKENS ? last_token - token : TOKENS;
            const int64_t n = last_row - row < ROWS ? last_row - row : ROWS;
            int32_t sums[TOKENS][ROWS];
            any_tile(p, token, row, m, n, sums);
            for (int64_t t = 0; t < m; t++)
                for (int64_t r = 0; r < n; r++)
                    all[token + t - first_token][row + r - first_row] = sums[t][r];
        }
    for (int64_t token = first_token; token < last_token; token++)
        finish(p, out, token, first_row, last_row - first_row, all[token - first_token]);
}

/* Memory that comes fresh from the system is cleared page by page when it is first written to; large pages
   are fewer. This is a wish, and changes nothing else. */
static void prefer_large_pages(void *memory, int64_t bytes) {
    const uintptr_t first = ((uintptr_t)memory + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    const uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) / LARGE_PAGE * LARGE_PAGE;
    if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
}

/* x: tokens of `columns` integers, `stride` bytes apart; weights: rows x (columns / 2).
   With out->scale every token has a scale and a zero point behind its integers (float, int16).
   `largest` is the largest activation. Returns 0, or 1 if memory ran out. */
int int4_linear(const uint8_t *x, int64_t stride, const uint8_t *weights, const Output *out,
                int64_t tokens, int64_t columns, int64_t largest, int threads) {
    const int64_t half = columns / 2, bytes = (half + WIDTH - 1) / WIDTH * WIDTH;
    const int64_t rounded = tokens < FEWEST_TOKENS ? tokens : (tokens + 31) / 32 * 32; /* whole tiles */
    const int64_t size = (2 * rounded * bytes + 63) / 64 * 64;
    uint8_t *dealt = aligned_alloc(64, (size_t)size);
    if (dealt) prefer_large_pages(dealt, size);
    int32_t *of_tokens = malloc((size_t)tokens * (sizeof(int32_t) + 2 * sizeof(float)));
    if (!dealt || !of_tokens) {
        free(dealt);
        free(of_tokens);
        return 1;
    }
    float *scales = (float *)(of_tokens + tokens);
    const Problem p = {dealt, dealt + tokens * bytes, weights, half, bytes, chunk_of(largest, bytes),
                       of_tokens, scales, scales + tokens};
    prefer_large_pages(out->to, tokens * out->rows * (out->is_bfloat16 ? 2 : 4));
#ifdef HAS_TILES
    if (tokens >= FEWEST_TOKENS && has_tiles()) {
        const int failed = by_tiles(&p, out, x, stride, tokens, columns, threads);
        free(dealt);
        free(of_tokens);
        return failed;
    }
#endif
    int64_t at_once = CACHE / (2 * bytes) / TOKENS * TOKENS;
    at_once = at_once < TOKENS ? TOKENS : at_once > AT_ONCE ? AT_ONCE : at_once;
    const int64_t blocks = (tokens + at_once - 1) / at_once;
    const int64_t strips = (out->rows + STRIP - 1) / STRIP;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) deal(&p, x + t * stride, columns, t, !!out->scale);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t strip = 0; strip < strips; strip++) {
                const int64_t token = block * at_once, row = strip * STRIP;
                multiply(&p, out, token, token + at_once < tokens ? token + at_once : tokens, row,
                         row + STRIP < out->rows ? row + STRIP : out->rows);
            }
    }
    free(dealt);
    free(of_tokens);
    return 0;
}
