/* The rotations of transform.c by AMX, which multiplies bfloat16 and adds up floats.

   A float is the sum of three numbers in bfloat16, each the rest that the one before leaves. An entry of a
   rotation is taken as three of them, an activation in bfloat16 as itself: their products are those of
   floats. Behind the first rotation an activation is taken as two; of the products of its parts with those
   of a rotation the three largest are added up, which leaves an error of at most 1.5 * 2^-17 of a product.
   Of 2048 x 4096 random integers of 4 bits about 1 in 100,000 differed from those that sums in floats give.
   A row with an infinite entry becomes NaN. */

#include "tiles.h"

#define FEWEST_ROWS 64 /* that are transformed by tiles */
#define PARTS 3        /* of a rotation's entry */

/* Some rows at a time go through a block's matrix: more where each block has its own, which waits in memory. */
static int64_t rows_at_once(const Transform *f) { return f->matrices == 1 ? PAIR : 4 * PAIR; }

static inline float as_float(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Matrices cut into tiles of 32 rows and 16 columns, two rows side by side, the parts one after the other. */
static void cut_matrices(const Transform *f, uint16_t *tiles) {
    const int64_t size = f->size, across = size / SIDE;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < f->steps * f->matrices; m++)
        for (int64_t k = 0; k < size; k++)
            for (int64_t n = 0; n < size; n++) {
                float rest = f->rotations[(m * size + k) * size + n];
                uint16_t *to = tiles + m * size * size * PARTS;
                to += (k / 32 * across + n / SIDE) * PARTS * TILE / 2 + k % 32 / 2 * 32 + n % SIDE * 2 + k % 2;
                for (int part = 0; part < PARTS; part++, to += TILE / 2) {
                    *to = to_bfloat16(rest);
                    rest -= as_float(*to);
                }
            }
}

/* Sixteen floats in two parts. */
static inline __attribute__((always_inline)) void cut(__m512 x, uint16_t *first, uint16_t *second) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    _mm256_storeu_si256((__m256i *)first, bits);
    _mm256_storeu_si256((__m256i *)second, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, back)));
}

/* 32 rows of one block by its matrix. x: bfloat16, rows `stride` entries apart; `rest`: their second parts,
   likewise, or null. */
static void multiply_block(const uint16_t *x, const uint16_t *rest, int64_t stride, const uint16_t *tiles,
                           float *to, int64_t width, int64_t size) {
    const int64_t across = size / SIDE, part = TILE / 2, tile = PARTS * part;
    for (int64_t n = 0; n < across; n += 2) {
        float *out = to + n * SIDE;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < size; k += 32) {
            const uint16_t *matrix = tiles + (k / 32 * across + n) * tile;
            if (rest) {
                _tile_loadd(4, rest + k, stride * 2);
                _tile_loadd(5, rest + k + SIDE * stride, stride * 2);
                _tile_loadd(6, matrix, 64);
                _tile_loadd(7, matrix + tile, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_loadd(4, x + k, stride * 2);
            _tile_loadd(5, x + k + SIDE * stride, stride * 2);
            for (int p = rest ? 1 : 2; p >= 0; p--) {
                _tile_loadd(6, matrix + p * part, 64);
                _tile_loadd(7, matrix + p * part + tile, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, out, width * 4);
        _tile_stored(1, out + SIDE, width * 4);
        _tile_stored(2, out + SIDE * width, width * 4);
        _tile_stored(3, out + SIDE * width + SIDE, width * 4);
    }
}

/* Rows in bfloat16, in whole groups of 32 (those from `count` on hold anything), through all steps.
   Returns where the result is: in the first or the second half of `done`. `cuts`: memory for a block. */
static const float *transform_pairs(const Transform *f, const uint16_t *x, const float *mean,
                                    const uint16_t *matrices, float *done, uint16_t *cuts, int64_t rows) {
    const int64_t width = f->width, size = f->size;
    uint16_t *first = cuts, *second = cuts + PAIR * size;
    const float *from = NULL;
    for (int64_t step = 0; step < f->steps; step++) {
        float *to = done + step % 2 * rows_at_once(f) * width;
        for (int64_t start = 0; start < width; start += size) {
            const int64_t index = f->matrices == 1 ? step : step * f->matrices + start / size;
            const uint16_t *matrix = matrices + index * size * size * PARTS;
            const int32_t *order = f->orders + step * width + start;
            for (int64_t row = 0; row < rows; row += PAIR) {
                const int is_whole = step == 0 && !mean;
                for (int64_t r = 0; !is_whole && r < PAIR; r++)
                    for (int64_t c = 0; c < size; c += SIDE) {
                        const int64_t at = (row + r) * width + start + c;
                        __m512 v;
                        if (step) {
                            v = _mm512_i32gather_ps(_mm512_loadu_si512(order + c), from + (row + r) * width, 4);
                        } else {
                            const __m256i bits = _mm256_loadu_si256((const __m256i *)(x + at));
                            v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
                            v = _mm512_sub_ps(v, _mm512_loadu_ps(mean + start + c));
                        }
                        cut(v, first + r * size + c, second + r * size + c);
                    }
                finish_writing();
                float *out = to + row * width + start;
                if (is_whole)
                    multiply_block(x + row * width + start, NULL, width, matrix, out, width, size);
                else
                    multiply_block(first, second, size, matrix, out, width, size);
            }
        }
        from = to;
    }
    return from;
}

/* As `quantize_transformed` of bfloat16, whose arguments these are. */
static int quantize_by_tiles(const Transform *f, const uint16_t *x, const float *mean, const Sink *sink,
                             int64_t rows, int threads) {
    const int64_t width = f->width, at_once = rows_at_once(f);
    const size_t cut_entries = (size_t)(f->steps * f->matrices * f->size * f->size * PARTS);
    uint16_t *matrices = aligned_alloc(64, cut_entries * 2);
    int failed = !matrices;
#pragma omp parallel num_threads(threads) reduction(| : failed) if (matrices)
    {
        const size_t floats = (size_t)(2 * at_once * width), entries = (size_t)(2 * PAIR * f->size);
        float *done = aligned_alloc(64, floats * 4 + entries * 2 + (size_t)(at_once * width) * 2);
        uint16_t *cuts = (uint16_t *)(done + floats), *last = cuts + entries;
        failed |= !done;
        begin_tiles();
        if (matrices) cut_matrices(f, matrices);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row += at_once) {
            const int64_t count = rows - row < at_once ? rows - row : at_once;
            const int64_t rounded = (count + PAIR - 1) / PAIR * PAIR;
            const uint16_t *from = x + row * width;
            if (!matrices || !done) continue;
            if (count < rounded) { /* the last rows: no more may be read than there are */
                memcpy(last, from, (size_t)(count * width) * 2);
                memset(last + count * width, 0, (size_t)((rounded - count) * width) * 2);
                from = last;
            }
            float *found = (float *)transform_pairs(f, from, mean, matrices, done, cuts, rounded);
            for (int64_t r = 0; r < count; r++) finish_row(sink, found + r * width, width, row + r);
        }
        _tile_release();
        free(done);
    }
    free(matrices);
    return failed;
}
