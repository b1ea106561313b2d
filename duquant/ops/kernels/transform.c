/* Block rotations with permutations between them, y = x R_1 P_1 R_2 ... of every row of x.

   A row of activations is cut into blocks of `size` channels, and every block is multiplied by its
   matrix. A few rows (`TOKENS`) go through all steps together and stay in the cache meanwhile. The
   innermost work is one panel: the rows' products with a few vectors of a matrix's columns, summed in
   registers over the channels of a block in their order. A permutation costs nothing, because the
   next rotation reads channel `order[k]` where it would read k. */

#define _GNU_SOURCE /* for syscall */
#include <immintrin.h>
#include <stdlib.h>

#include "bfloat16.h"
#include "row_codes.h"

#define VECTORS 8 /* of a matrix's columns, at once, of a single row */
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

/* Between two steps the entries of a channel lie side by side, `ACROSS` of them, one of every row; of a
   single row they lie as in it. So a permuted channel is one place in memory. */
#define ACROSS 8
#define APART(tokens) ((tokens) == 1 ? 1 : ACROSS)

/* Eight channels of `tokens` rows, `width` apart, side by side. */
static inline __attribute__((always_inline)) void lay_across(const float *from, int64_t width, float *to,
                                                             const int tokens) {
    __m256 r[8], t[8];
    UNROLLED for (int i = 0; i < 8; i++) r[i] = i < tokens ? _mm256_loadu_ps(from + i * width) : _mm256_setzero_ps();
    UNROLLED for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLLED for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLLED for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * ACROSS, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * ACROSS, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}

/* Of `tokens` rows one block, `vectors` of its columns; both are constants at every call. Rows of `to` are
   `width` apart. */
static inline __attribute__((always_inline)) void panel(const float *from, const int32_t *order,
                                                        const float *matrix, float *to, int64_t width,
                                                        int64_t size, const int tokens,
                                                        const int vectors) {
    Vector sums[TOKENS][VECTORS];
    UNROLLED for (int t = 0; t < tokens; t++)
        UNROLLED for (int v = 0; v < vectors; v++) sums[t][v] = nothing();
    for (int64_t k = 0; k < size; k++) {
        Vector row[VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) {
            row[v] = load(matrix + k * size + v * LANES);
            __asm__("" : "+v"(row[v])); /* loaded once, not again for every row */
        }
        const float *channel = from + order[k] * APART(tokens);
        UNROLLED for (int t = 0; t < tokens; t++) {
            const Vector x = everywhere(channel[t]);
            UNROLLED for (int v = 0; v < vectors; v++) sums[t][v] = add_product(sums[t][v], x, row[v]);
        }
    }
    UNROLLED for (int t = 0; t < tokens; t++)
        UNROLLED for (int v = 0; v < vectors; v++) store(to + t * width + v * LANES, sums[t][v]);
}

typedef struct {
    const float *rotations; /* (steps, matrices, size, size); matrices is 1 or the number of blocks */
    const int32_t *orders;  /* (steps, width), the first is 0, 1, 2, ... */
    int64_t steps, matrices, size, width;
} Transform;

/* One block: from channels as `order` says to rows `apart` from each other. */
static inline __attribute__((always_inline)) void rotate(const float *from, const int32_t *order,
                                                         const float *matrix, float *to, int64_t apart,
                                                         int64_t size, const int tokens) {
    int64_t column = 0;
    if (tokens == 1)
        for (; column + VECTORS * LANES <= size; column += VECTORS * LANES)
            panel(from, order, matrix + column, to + column, apart, size, 1, VECTORS);
    for (; column < size; column += 2 * LANES)
        panel(from, order, matrix + column, to + column, apart, size, tokens, 2);
}

/* All steps; `spare` holds two times all channels of the rows, since no step may write what it still reads,
   and one block of channels and one of rows. */
static inline __attribute__((always_inline)) void transform(const Transform *f, const float *x, float *y,
                                                            float *spare, const int tokens) {
    const int64_t size = f->size, width = f->width;
    float *channels = spare + 2 * ACROSS * width, *rows = channels + ACROSS * size;
    const float *from = x;
    for (int64_t step = 0; step < f->steps; step++) {
        const int is_last = step == f->steps - 1;
        float *next = spare + step % 2 * ACROSS * width;
        for (int64_t start = 0; start < width; start += size) {
            const int64_t index = f->matrices == 1 ? step : step * f->matrices + start / size;
            const float *matrix = f->rotations + index * size * size, *block = from;
            const int32_t *order = f->orders + step * width + start;
            if (step == 0 && tokens > 1) {
                for (int64_t c = 0; c < size; c += 8)
                    lay_across(x + start + c, width, channels + c * ACROSS, tokens);
                block = channels;
                order = f->orders; /* 0, 1, 2, ... */
            }
            if (is_last || tokens == 1) {
                rotate(block, order, matrix, (is_last ? y : next) + start, width, size, tokens);
                continue;
            }
            rotate(block, order, matrix, rows, size, size, tokens);
            for (int64_t c = 0; c < size; c += 8)
                lay_across(rows + c, size, next + (start + c) * ACROSS, tokens);
        }
        from = next;
    }
}

/* At most TOKENS rows. */
static void transform_some(const Transform *f, const float *x, float *y, float *spare, int64_t rows) {
    if (rows == TOKENS) {
        transform(f, x, y, spare, TOKENS);
        return;
    }
    for (; rows >= 4; rows -= 4, x += 4 * f->width, y += 4 * f->width) transform(f, x, y, spare, 4);
    for (; rows; rows--, x += f->width, y += f->width) transform(f, x, y, spare, 1);
}

static size_t spare_bytes(int64_t width, int64_t size) {
    return (size_t)((width + size) * 2 * ACROSS) * sizeof(float);
}

/* x, y: rows x width. Returns 0, or 1 if memory ran out. */
int transform_rows(const float *x, float *y, const float *rotations, const int32_t *orders, int64_t rows,
                   int64_t width, int64_t steps, int64_t matrices, int64_t size, int threads) {
    const Transform f = {rotations, orders, steps, matrices, size, width};
    int failed = 0;
#pragma omp parallel num_threads(rows <= TOKENS ? 1 : threads) reduction(| : failed)
    {
        float *spare = aligned_alloc(64, spare_bytes(width, size));
        failed = !spare;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row += TOKENS)
            if (spare)
                transform_some(&f, x + row * width, y + row * width, spare,
                               rows - row < TOKENS ? rows - row : TOKENS);
        free(spare);
    }
    return failed;
}

/* Rows of floats, or of bfloat16, as floats, minus `mean` if there is one. */
static void widen(const void *x, int is_bfloat16, const float *mean, float *to, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++, to += width) {
        if (is_bfloat16) {
            const uint16_t *from = (const uint16_t *)x + r * width;
            for (int64_t c = 0; c < width; c++) {
                const uint32_t bits = (uint32_t)from[c] << 16;
                memcpy(to + c, &bits, sizeof bits);
            }
        } else {
            memcpy(to, (const float *)x + r * width, (size_t)width * sizeof(float));
        }
        if (mean)
            for (int64_t c = 0; c < width; c++) to[c] -= mean[c];
    }
}

/* Values of a row, as floats or as bfloat16. */
static void narrow(const float *row, int64_t width, int is_bfloat16, void *to) {
    if (is_bfloat16)
        for (int64_t c = 0; c < width; c++) ((uint16_t *)to)[c] = to_bfloat16(row[c]);
    else
        memcpy(to, row, (size_t)width * sizeof(float));
}

/* What becomes of transformed rows. */
typedef struct {
    const Range *range;
    void *to;
    int is_bfloat16, wants_values;
    int64_t bytes; /* of a row */
} Sink;

/* Quantize a transformed row, which is overwritten. */
static void finish_row(const Sink *sink, float *values, int64_t width, int64_t row) {
    uint8_t *to = (uint8_t *)sink->to + row * sink->bytes;
    float high, low, s, z;
    extremes_of_row(values, width, &high, &low);
    grid_of_row(sink->range, high, low, &s, &z);
    if (sink->wants_values) {
        round_row(values, width, s, z, sink->range->largest);
        narrow(values, width, sink->is_bfloat16, to);
    } else {
        encode_row(values, width, s, z, sink->range->largest, to);
    }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VL__)
#define HAS_TILES
#include "transform_tiles.h"
#endif

/* Transform rows and quantize each by itself; x: rows x width, floats or bfloat16. `rotations` may be null.
   out: the integers of every row, its scale and its zero point; or, with `wants_values`, the values that
   they stand for, in the dtype of x. Returns as above. */
int quantize_transformed(const void *x, int is_bfloat16, const float *mean, void *out, int wants_values,
                         const float *rotations, const int32_t *orders, int64_t rows, int64_t width,
                         int64_t steps, int64_t matrices, int64_t size, const Range *range, int threads) {
    const Transform f = {rotations, orders, steps, matrices, size, width};
    const int64_t entry = is_bfloat16 ? 2 : 4, bytes = wants_values ? width * entry : width + GRID_BYTES;
    const Sink sink = {range, out, is_bfloat16, wants_values, bytes};
#ifdef HAS_TILES
    if (is_bfloat16 && rotations && rows >= FEWEST_ROWS && has_tiles())
        return quantize_by_tiles(&f, x, mean, &sink, rows, threads);
#endif
    int failed = 0;
#pragma omp parallel num_threads(rows <= TOKENS ? 1 : threads) reduction(| : failed)
    {
        const size_t floats = (size_t)(TOKENS * width) * sizeof(float);
        float *wide = aligned_alloc(64, (2 * floats + spare_bytes(width, size) + 63) / 64 * 64);
        float *done = rotations ? wide + TOKENS * width : wide, *spare = wide + 2 * TOKENS * width;
        failed = !wide;
#pragma omp for schedule(dynamic, rows / (8 * threads * TOKENS) + 1)
        for (int64_t row = 0; row < rows; row += TOKENS) {
            const int64_t count = rows - row < TOKENS ? rows - row : TOKENS;
            if (!wide) continue;
            widen((const char *)x + row * width * entry, is_bfloat16, mean, wide, count, width);
            if (rotations) transform_some(&f, wide, done, spare, count);
            for (int64_t r = 0; r < count; r++) finish_row(&sink, done + r * width, width, row + r);
        }
        free(wide);
    }
    return failed;
}
