/* The sums of a linear layer of integers, corrected, scaled and converted in one pass.

   y[m][n] = (product[m][n] - (z[m] * sums[n] + t[m] * zero[n])) * scale[n] * s[m] + bias[n]

   with t[m] the sum of a token's integers, s[m] and z[m] its scale and its zero point. Operations
   are those of the operator's definition, in their order. */

#include <stdint.h>
#include <string.h>

#include "bfloat16.h"

#define STRIP 1024 /* columns at once: their values stay in the first-level cache */

typedef struct {
    const float *scale, *zero, *sums, *bias; /* an entry per column; `bias` may be null */
    void *to;                                /* tokens x columns */
    int64_t columns, is_bfloat16;
} Output;

static void finish(const float *product, const Output *out, int64_t token, int64_t first, int64_t count,
                   float of_token, float zero, float scale) {
    float value[STRIP];
    const float *sums = out->sums + first, *zeros = out->zero + first, *scales = out->scale + first;
    for (int64_t n = 0; n < count; n++) {
        const float correction = zero * sums[n] + of_token * zeros[n];
        value[n] = (product[n] - correction) * scales[n] * scale;
    }
    if (out->bias)
        for (int64_t n = 0; n < count; n++) value[n] += out->bias[first + n];
    if (out->is_bfloat16) {
        uint16_t *to = (uint16_t *)out->to + token * out->columns + first;
        for (int64_t n = 0; n < count; n++) to[n] = to_bfloat16(value[n]);
    } else {
        memcpy((float *)out->to + token * out->columns + first, value, (size_t)count * sizeof(float));
    }
}

/* product: tokens x out->columns; x: tokens of `inputs` integers, `stride` bytes apart, with a scale
   and a zero point (float, int16) behind them. */
void scale_sums(const float *product, const uint8_t *x, int64_t stride, int64_t inputs,
                const Output *out, int64_t tokens, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        const uint8_t *integers = x + token * stride;
        int32_t sum = 0;
        float scale;
        int16_t zero;
        for (int64_t k = 0; k < inputs; k++) sum += integers[k];
        memcpy(&scale, integers + inputs, sizeof scale);
        memcpy(&zero, integers + inputs + sizeof scale, sizeof zero);
        for (int64_t first = 0; first < out->columns; first += STRIP) {
            const int64_t rest = out->columns - first;
            finish(product + token * out->columns + first, out, token, first,
                   rest < STRIP ? rest : STRIP, (float)sum, zero, scale);
        }
    }
}
