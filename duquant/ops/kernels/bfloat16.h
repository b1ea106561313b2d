/* Rounding to bfloat16, to the nearest and to even as PyTorch does; every NaN becomes the same. */

#include <stdint.h>
#include <string.h>

static inline uint16_t to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x == x ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}
