/* A row of floats to integers: its extremes, its grid and its codes. Arithmetic and its order are those of
   duquant/ops/affine.py, so values are equal to the last bit. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define GRID_BYTES ((int64_t)(sizeof(float) + sizeof(int16_t)))

/* Written so that it compiles to a maximum and a minimum, without branches, and keeps NaN. */
static inline float clamp(float level, float largest) {
    level = 0 > level ? 0 : level;
    return largest < level ? largest : level;
}

/* For the integers of a row, which are 0 where they are not a number. */
static inline float clamp_to_number(float level, float largest) {
    level = level > 0 ? level : 0;
    return level < largest ? level : largest;
}

/* The largest and the smallest entry of a row, NaN where one is NaN. */
static inline void extremes_of_row(const float *row, int64_t columns, float *high, float *low) {
    float h = row[0], l = row[0];
    int undefined = 0;
#pragma omp simd reduction(max : h) reduction(min : l) reduction(| : undefined)
    for (int64_t c = 0; c < columns; c++) {
        h = row[c] > h ? row[c] : h;
        l = row[c] < l ? row[c] : l;
        undefined |= row[c] != row[c];
    }
    *high = undefined ? NAN : h;
    *low = undefined ? NAN : l;
}

/* A row's integers q, a byte each, then s (float) and z (int16). */
static inline void encode_row(const float *row, int64_t columns, float s, float z, float largest,
                              uint8_t *to) {
    const int16_t integer_zero = (int16_t)z;
#pragma omp simd
    for (int64_t c = 0; c < columns; c++)
        to[c] = (uint8_t)(int32_t)clamp_to_number(rintf(row[c] / s) + z, largest);
    memcpy(to + columns, &s, sizeof s);
    memcpy(to + columns + sizeof s, &integer_zero, sizeof integer_zero);
}

/* The values that a row's integers stand for, in its place. */
static inline void round_row(float *row, int64_t columns, float s, float z, float largest) {
#pragma omp simd
    for (int64_t c = 0; c < columns; c++) row[c] = (clamp(rintf(row[c] / s) + z, largest) - z) * s;
}

/* How a row's range becomes its grid. */
typedef struct {
    float of_high, of_low; /* factors on the extremes */
    float largest;         /* integer */
    float middle;          /* integer of a symmetric grid's zero, or 0 where the grid fits both ends */
    float smallest_scale, largest_scale, largest_zero;
} Range;

/* Keeps NaN. */
static inline float between(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}

static inline void grid_of_row(const Range *range, float high, float low, float *s, float *z) {
    high *= range->of_high;
    low *= range->of_low;
    if (range->middle != 0) {
        const float h = fabsf(high), l = fabsf(low), most = h != h || l != l ? NAN : h > l ? h : l;
        *s = between(most / range->middle, range->smallest_scale, range->largest_scale);
        *z = range->middle;
    } else {
        *s = between((high - low) / range->largest, range->smallest_scale, range->largest_scale);
        *z = rintf(between(-low / *s, -range->largest_zero, range->largest_zero));
    }
}
