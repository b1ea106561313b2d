/* The products of int4_linear.c by AMX, whose instructions multiply whole tiles of 16 x 64 bytes.

   A tile of weights holds 64 packed bytes of 16 rows, their low or their high halves. A tile of tokens
   holds, of 16 tokens, the 64 even or odd columns that meet them, four columns of every token side by side.
   So weights are only cut into halves, and tokens are laid out once. A tile of sums is weight rows x tokens,
   and is turned before it is finished.

   Some tokens stay in the second-level cache while all weights pass by. Of a strip of 32 weight rows as many
   columns as stay in the first-level cache are cut and meet all these tokens, whose sums wait in memory. */

#include "tiles.h"

#define TOKEN_CACHE (1000 * 1024) /* bytes of tokens */
#define CHUNK 256        /* bytes of a weight row that are cut at once */
#define ASKED 128        /* bytes of the next strip that memory is asked for with every product */
#define MOST_STRIPS 32   /* that one thread takes at once: neighbours write to the same pages */

/* A matrix of 16 x 16 numbers of 32 bits, turned. */
static inline __attribute__((always_inline)) void turn(__m512i r[SIDE]) {
    __m512i t[SIDE];
    UNROLLED for (int i = 0; i < SIDE; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLLED for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLLED for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLLED for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Tiles of 16 tokens, or of `count` and zeros: two of every 128 columns, the even and the odd ones.
   Sums and grids of the tokens are kept as `deal` keeps them. */
static void lay_out(const Problem *p, uint8_t *tiles, const uint8_t *x, int64_t stride, int64_t columns,
                    int64_t first, int64_t count, int has_grid) {
    uint8_t indices[64];
    for (int i = 0; i < 64; i++) indices[i] = (uint8_t)(2 * i);
    const __m512i at_even = load(indices), ones = _mm512_set1_epi8(1);
    const __m512i at_odd = _mm512_or_si512(at_even, ones);
    __m512i sums[SIDE];
    for (int t = 0; t < SIDE; t++) sums[t] = nothing();
    for (int64_t at = 0; at < columns; at += 128, tiles += 4 * TILE) {
        const int64_t here = columns - at < 64 ? columns - at : 64, more = columns - at - here;
        __m512i even[SIDE], odd[SIDE];
        for (int t = 0; t < SIDE; t++) {
            const uint8_t *row = x + (first + t) * stride + at;
            const __m512i a = t < count ? load_part(row, here) : nothing();
            const __m512i b = t < count && more ? load_part(row + 64, more) : nothing();
            even[t] = _mm512_permutex2var_epi8(a, at_even, b);
            odd[t] = _mm512_permutex2var_epi8(a, at_odd, b);
            sums[t] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[t], even[t], ones), odd[t], ones);
        }
        turn(even);
        turn(odd);
        for (int k = 0; k < SIDE; k++) {
            _mm512_store_si512(tiles + 64 * k, even[k]);
            _mm512_store_si512(tiles + 2 * TILE + 64 * k, odd[k]);
        }
    }
    for (int t = 0; t < count; t++) {
        p->token_sums[first + t] = _mm512_reduce_add_epi32(sums[t]);
        if (has_grid) keep_grid(p, x + (first + t) * stride + columns, first + t);
    }
}

/* Tiles of a strip of weight rows, the low and the high halves of every 64 of `CHUNK` bytes from `start`;
   the tiles of both times 16 rows lie side by side. What is not there is zeros. */
static void cut_strip(const Problem *p, uint8_t *tiles, int64_t first, int64_t count, int64_t start) {
    const int64_t end = start + CHUNK < p->half ? start + CHUNK : p->half;
    for (int64_t r = 0; r < PAIR; r++) {
        const uint8_t *row = p->weights + (first + r) * p->half;
        uint8_t *to = tiles + r * 64;
        for (int64_t at = start; at < end; at += 64, to += 4 * TILE) {
            const __m512i w = r < count ? load_part(row + at, p->half - at) : nothing();
            _mm512_store_si512(to, low_half(w));
            _mm512_store_si512(to + 2 * TILE, high_half(w));
        }
    }
}

/* sums[t][r] of 16 tokens and 16 weight rows, turned; a row of `to` has PAIR numbers. */
static inline __attribute__((always_inline)) void turned(const int32_t *from, int32_t *to) {
    __m512i r[SIDE];
    UNROLLED for (int i = 0; i < SIDE; i++) r[i] = _mm512_load_si512(from + i * SIDE);
    turn(r);
    UNROLLED for (int i = 0; i < SIDE; i++) _mm512_store_si512(to + i * PAIR, r[i]);
}

/* Add the products of a strip's tiles with those of `groups` (1 or 2) times 16 tokens to four tiles of sums,
   two of the first tokens and two of the others. Meanwhile ask memory for what lies at `next`. */
static inline __attribute__((always_inline)) void add_tiles(const uint8_t *w, const uint8_t *x,
                                                            int64_t bytes, int is_first, const int groups,
                                                            int32_t *sums, const uint8_t *next) {
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        if (groups == 2) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + SIDE * SIDE, 64);
        if (groups == 2) {
            _tile_loadd(2, sums + 2 * SIDE * SIDE, 64);
            _tile_loadd(3, sums + 3 * SIDE * SIDE, 64);
        }
    }
    for (int64_t at = 0; at < bytes; at += 2 * TILE, next += ASKED) {
        for (int line = 0; line < ASKED; line += 64) _mm_prefetch((const char *)next + line, _MM_HINT_T1);
        _tile_loadd(4, w + at, 64);
        _tile_loadd(6, x + at, 64);
        _tile_loadd(5, w + TILE + at, 64);
        _tile_dpbuud(0, 4, 6);
        _tile_dpbuud(1, 5, 6);
        if (groups == 2) {
            _tile_loadd(7, x + TILE + at, 64);
            _tile_dpbuud(2, 4, 7);
            _tile_dpbuud(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + SIDE * SIDE, 64);
    if (groups == 2) {
        _tile_stored(2, sums + 2 * SIDE * SIDE, 64);
        _tile_stored(3, sums + 3 * SIDE * SIDE, 64);
    }
}

/* As `finish`, of a strip of at most PAIR weight rows. */
static inline void finish_strip(const Problem *p, const Output *out, int64_t token, int64_t row,
                                int64_t count, const int32_t *sums) {
    const int32_t of_token = p->token_sums[token];
    const __m512i offset = _mm512_set1_epi32(OFFSET * of_token);
    for (int64_t r = 0; r < count; r += SIDE) {
        const __mmask16 there = count - r < SIDE ? (__mmask16)((1 << (count - r)) - 1) : (__mmask16)-1;
        const int64_t at = row + r;
        __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(sums + r), offset));
        if (out->scale) {
            const __m512 zero = _mm512_set1_ps(p->token_zero[token]);
            const __m512 scale = _mm512_set1_ps(p->token_scale[token]);
            const __m512 of_row = _mm512_mul_ps(zero, _mm512_maskz_loadu_ps(there, out->sums + at));
            const __m512 of_zero = _mm512_maskz_loadu_ps(there, out->zero + at);
            const __m512 weighted = _mm512_mul_ps(_mm512_set1_ps((float)of_token), of_zero);
            value = _mm512_sub_ps(value, _mm512_add_ps(of_row, weighted));
            value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(there, out->scale + at));
            value = _mm512_mul_ps(value, scale);
        }
        if (out->bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(there, out->bias + at));
        if (out->is_bfloat16) {
            const __m512i bits = _mm512_castps_si512(value), one = _mm512_set1_epi32(1);
            const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
            const __m512i half = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
            const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
            const __mmask16 is_number = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
            const __m512i kept = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc0), is_number, rounded);
            uint16_t *to = (uint16_t *)out->to + token * out->rows + at;
            _mm256_mask_storeu_epi16(to, there, _mm512_cvtepi32_epi16(kept));
        } else {
            _mm512_mask_storeu_ps((float *)out->to + token * out->rows + at, there, value);
        }
    }
}

/* A few tokens with a strip of weight rows; `strip` and `sums` are memory for tiles. */
static void multiply_tiles(const Problem *p, const Output *out, uint8_t *strip, int32_t *sums,
                           int64_t first_token, int64_t last_token, int64_t row, int64_t rows) {
    const int64_t tokens = last_token - first_token;
    const uint8_t *next = p->weights + (row + PAIR) * p->half; /* the next strip */
    for (int64_t start = 0; start < p->bytes; start += CHUNK) {
        const int64_t end = start + CHUNK < p->bytes ? start + CHUNK : p->bytes;
        cut_strip(p, strip, row, rows, start);
        finish_writing();
        for (int64_t token = 0; token < tokens; token += PAIR) {
            const uint8_t *x = p->even + (first_token + token) * 2 * p->bytes + start * PAIR * 2;
            int32_t *to = sums + token * PAIR;
            const int64_t size = (end - start) * PAIR * 2;
            if (tokens - token > SIDE)
                add_tiles(strip, x, size, !start, 2, to, next);
            else
                add_tiles(strip, x, size, !start, 1, to, next);
            next += size / (2 * TILE) * ASKED;
        }
    }
    for (int64_t token = 0; token < tokens; token += SIDE) {
        _Alignas(64) int32_t of_tokens[SIDE * PAIR];
        turned(sums + token * PAIR, of_tokens);
        turned(sums + token * PAIR + SIDE * SIDE, of_tokens + SIDE);
        for (int64_t t = 0; t < SIDE && token + t < tokens; t++)
            finish_strip(p, out, first_token + token + t, row, rows, of_tokens + t * PAIR);
    }
}

/* As `int4_linear`, whose arguments these are; p->even holds the tokens' tiles. */
static int by_tiles(const Problem *p, const Output *out, const uint8_t *x, int64_t stride, int64_t tokens,
                    int64_t columns, int threads) {
    int64_t at_once = TOKEN_CACHE / (2 * p->bytes) / PAIR * PAIR;
    at_once = at_once < PAIR ? PAIR : at_once;
    const int64_t blocks = (tokens + at_once - 1) / at_once, strips = (out->rows + PAIR - 1) / PAIR;
    const int64_t share = blocks * strips / (4 * threads);
    const int64_t taken = share < 1 ? 1 : share > MOST_STRIPS ? MOST_STRIPS : share;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        uint8_t *strip = aligned_alloc(64, (size_t)(PAIR * (2 * CHUNK + at_once * sizeof(int32_t))));
        int32_t *sums = (int32_t *)(strip + PAIR * 2 * CHUNK);
        failed = !strip;
        begin_tiles();
#pragma omp for schedule(static)
        for (int64_t token = 0; token < tokens; token += SIDE)
            lay_out(p, p->even + token / PAIR * PAIR * 2 * p->bytes + token % PAIR * 64, x, stride, columns, token,
                    tokens - token < SIDE ? tokens - token : SIDE, !!out->scale);
#pragma omp for schedule(dynamic, taken) collapse(2)
        for (int64_t block = 0; block < blocks; block++)
            for (int64_t s = 0; s < strips; s++) {
                const int64_t token = block * at_once, row = s * PAIR;
                const int64_t rows = out->rows - row < PAIR ? out->rows - row : PAIR;
                if (!strip) continue;
                multiply_tiles(p, out, strip, sums, token,
                               token + at_once < tokens ? token + at_once : tokens, row, rows);
            }
        _tile_release();
        free(strip);
    }
    return failed;
}
