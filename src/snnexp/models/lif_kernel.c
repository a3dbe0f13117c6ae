/* Multi-step LIF, forward and backward, one pass over memory each.
 *
 *   charge   h = v + (x - (v - r)) / tau        (decay_input)      or   h = v - (v - r) / tau + x
 *   fire     s = h >= threshold
 *   reset    v = s * r + (1 - s) * h            (hard)             or   v = h - s * threshold   (soft, r = 0 above)
 *
 * x is [T, M]: T frames of M neurons, fp32 or bf16. The membrane lives in fp32 and never leaves the cache, except v0 and
 * v_last at the two ends. The backward computes h again from x, so that x is all that a training step keeps.
 * The order of the arithmetic is SpikingJelly's: built without contraction to FMA, spikes and membranes are equal bit
 * for bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024

typedef struct {
    float tau, threshold, reset, alpha;
    int32_t decay_input, soft_reset, detach_reset, surrogate;
} Lif;

enum { SIGMOID, ATAN, TRIANGLE, PIECEWISE_EXP, SOFT_SIGN, SUPER_SPIKE, ERF };

static void load(float *restrict out, const void *restrict in, int64_t at, int n, int bf16) {
    if (!bf16) {
        memcpy(out, (const float *)in + at, n * sizeof(float));
        return;
    }
    const uint16_t *half = (const uint16_t *)in + at;
    for (int i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(out + i, &bits, 4);
    }
}

static void store(void *restrict out, const float *restrict in, int64_t at, int n, int bf16) {
    if (!bf16) {
        memcpy((float *)out + at, in, n * sizeof(float));
        return;
    }
    uint16_t *half = (uint16_t *)out + at;
    for (int i = 0; i < n; i++) { /* round to nearest even; a NaN stays one */
        uint32_t bits;
        memcpy(&bits, in + i, 4);
        uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        half[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
    }
}

/* A product with 1 / tau equals the quotient exactly when tau is a power of two, and is several times faster. */
static int power_of_two(float tau) {
    int exponent;
    return frexpf(tau, &exponent) == 0.5f;
}

static void charge(const Lif *p, float *restrict h, const float *restrict x, const float *restrict v, int n) {
    const float r = p->soft_reset ? 0.0f : p->reset, tau = p->tau, inverse = 1.0f / p->tau;
    if (power_of_two(tau)) {
        if (p->decay_input)
            for (int i = 0; i < n; i++) h[i] = v[i] + (x[i] - (v[i] - r)) * inverse;
        else
            for (int i = 0; i < n; i++) h[i] = v[i] - (v[i] - r) * inverse + x[i];
    } else {
        if (p->decay_input)
            for (int i = 0; i < n; i++) h[i] = v[i] + (x[i] - (v[i] - r)) / tau;
        else
            for (int i = 0; i < n; i++) h[i] = v[i] - (v[i] - r) / tau + x[i];
    }
}

static void fire_and_reset(const Lif *p, float *restrict s, float *restrict v, const float *restrict h, int n) {
    const float threshold = p->threshold, r = p->reset;
    for (int i = 0; i < n; i++) s[i] = h[i] >= threshold ? 1.0f : 0.0f;
    if (p->soft_reset)
        for (int i = 0; i < n; i++) v[i] = h[i] - s[i] * threshold;
    else
        for (int i = 0; i < n; i++) v[i] = s[i] * r + (1.0f - s[i]) * h[i];
}

/* exp for x <= 0, within 2 ulp; a loop over it vectorises where a call of libm's expf would not. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the rounded quotient sits in the low bits */
    float k = shifted - 12582912.0f;
    float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float poly = 1.9875691500e-4f;
    poly = poly * r + 1.3981999507e-3f;
    poly = poly * r + 8.3334519073e-3f;
    poly = poly * r + 4.1665795894e-2f;
    poly = poly * r + 1.6666665459e-1f;
    poly = poly * r + 5.0000001201e-1f;
    poly = poly * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return poly * scale;
}

/* The surrogate's derivative at h - threshold, in SpikingJelly's parametrisation of alpha. */
static void derivative(const Lif *p, float *restrict g, const float *restrict h, int n) {
    const float a = p->alpha, threshold = p->threshold;
    const float pi = 3.14159265358979f;
    switch (p->surrogate) {
    case SIGMOID:
        for (int i = 0; i < n; i++) {
            float e = exp_negative(-fabsf(a * (h[i] - threshold))), one_e = 1.0f + e;
            g[i] = a * e / (one_e * one_e);
        }
        break;
    case ATAN:
        for (int i = 0; i < n; i++) {
            float z = (h[i] - threshold) * (pi / 2 * a);
            g[i] = a / 2 / (1.0f + z * z);
        }
        break;
    case TRIANGLE:
        for (int i = 0; i < n; i++) {
            float z = a - a * a * fabsf(h[i] - threshold);
            g[i] = z > 0.0f ? z : 0.0f;
        }
        break;
    case PIECEWISE_EXP:
        for (int i = 0; i < n; i++) g[i] = a / 2 * exp_negative(-a * fabsf(h[i] - threshold));
        break;
    case SOFT_SIGN:
        for (int i = 0; i < n; i++) {
            float z = 1.0f / a + fabsf(h[i] - threshold);
            g[i] = 1.0f / (2.0f * a * z * z);
        }
        break;
    case SUPER_SPIKE:
        for (int i = 0; i < n; i++) {
            float z = 1.0f + fabsf(h[i] - threshold);
            g[i] = a / (z * z);
        }
        break;
    case ERF:
        for (int i = 0; i < n; i++) {
            float z = a * (h[i] - threshold);
            g[i] = a / sqrtf(pi) * exp_negative(-z * z);
        }
        break;
    }
}

static void start(const Lif *p, float *restrict v, const float *restrict v0, int64_t at, int n) {
    if (v0)
        memcpy(v, v0 + at, n * sizeof(float));
    else
        for (int i = 0; i < n; i++) v[i] = p->soft_reset ? 0.0f : p->reset;
}

/* v0 NULL: the membrane starts at its resting value. Returns 0. */
int lif_forward(const Lif *p, int64_t T, int64_t M, int bf16, int threads, const void *x, const float *v0, void *spikes,
                float *v_last) {
    const int64_t blocks = (M + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        float v[BLOCK], h[BLOCK], s[BLOCK];
        const int64_t at = b * BLOCK;
        const int n = M - at < BLOCK ? (int)(M - at) : BLOCK;
        start(p, v, v0, at, n);
        for (int64_t t = 0; t < T; t++) {
            load(s, x, t * M + at, n, bf16);
            charge(p, h, s, v, n);
            fire_and_reset(p, s, v, h, n);
            store(spikes, s, t * M + at, n, bf16);
        }
        memcpy(v_last + at, v, n * sizeof(float));
    }
    return 0;
}

/* g_spikes and g_v_last may be NULL (zero), g_v0 may be NULL (not wanted). Returns 1 where memory ran out, else 0. */
int lif_backward(const Lif *p, int64_t T, int64_t M, int bf16, int threads, const void *x, const float *v0,
                 const void *g_spikes, const float *g_v_last, void *g_x, float *g_v0) {
    const int64_t blocks = (M + BLOCK - 1) / BLOCK;
    const float threshold = p->threshold, reset = p->reset, tau = p->tau, inverse = 1.0f / p->tau;
    const int exact = power_of_two(tau);
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *h = malloc((size_t)T * BLOCK * sizeof(float));
        float v[BLOCK], s[BLOCK], g[BLOCK], dh[BLOCK], dv[BLOCK];
        if (!h) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            if (!h) continue;
            const int64_t at = b * BLOCK;
            const int n = M - at < BLOCK ? (int)(M - at) : BLOCK;
            start(p, v, v0, at, n);
            for (int64_t t = 0; t < T; t++) {
                load(s, x, t * M + at, n, bf16);
                charge(p, h + t * BLOCK, s, v, n);
                fire_and_reset(p, s, v, h + t * BLOCK, n);
            }
            if (g_v_last)
                memcpy(dv, g_v_last + at, n * sizeof(float));
            else
                memset(dv, 0, sizeof(dv));
            for (int64_t t = T - 1; t >= 0; t--) {
                const float *restrict ht = h + t * BLOCK;
                derivative(p, g, ht, n);
                if (g_spikes)
                    load(s, g_spikes, t * M + at, n, bf16);
                else
                    memset(s, 0, sizeof(s));
                /* dh: gradient with respect to h, through the spike and through the membrane that was reset */
                if (p->soft_reset) {
                    if (p->detach_reset)
                        for (int i = 0; i < n; i++) dh[i] = s[i] * g[i] + dv[i];
                    else
                        for (int i = 0; i < n; i++) dh[i] = (s[i] - dv[i] * threshold) * g[i] + dv[i];
                } else {
                    if (p->detach_reset)
                        for (int i = 0; i < n; i++) dh[i] = s[i] * g[i] + (ht[i] >= threshold ? 0.0f : dv[i]);
                    else
                        for (int i = 0; i < n; i++)
                            dh[i] = (s[i] + dv[i] * (reset - ht[i])) * g[i] + (ht[i] >= threshold ? 0.0f : dv[i]);
                }
                if (exact)
                    for (int i = 0; i < n; i++) s[i] = dh[i] * inverse;
                else
                    for (int i = 0; i < n; i++) s[i] = dh[i] / tau;
                for (int i = 0; i < n; i++) dv[i] = dh[i] - s[i];
                store(g_x, p->decay_input ? s : dh, t * M + at, n, bf16);
            }
            if (g_v0) memcpy(g_v0 + at, dv, n * sizeof(float));
        }
        free(h);
    }
    return failed;
}
