/* Multi-step LIF, forward and backward, one pass over memory each.
 *
 *   charge   h = v + (x - (v - r)) / tau        (decay_input)      or   h = v - (v - r) / tau + x
 *   fire     s = h >= threshold                 or (strict)   s = h > threshold
 *   reset    v = s * r + (1 - s) * h            (hard)             or   v = h - s * threshold   (soft, r = 0 above)
 *
 * x is [T, M]: T frames of M neurons, fp32 or bf16. The membrane lives in fp32 and never leaves the cache, except v0 and
 * v_last at the two ends. The backward computes h again from x, so that x is all that a training step keeps.
 * If counts are wanted, spikes are counted while they are still in the cache.
 * Loops read and write the tensors themselves, without a copy in fp32 in between. A block lies in T places of each tensor,
 * which hardware prefetchers do not foresee, so the next part is prefetched while the present one is computed.
 * The order of the arithmetic is SpikingJelly's. Built without contraction to FMA, spikes and membranes equal its own bit
 * for bit.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 256 /* neurons computed at a time: their data of 10 steps stay in the level 1 cache */
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    float tau, threshold, reset, alpha;
    int32_t decay_input, soft_reset, detach_reset, strict, surrogate;
} Lif;

enum { SIGMOID, ATAN, TRIANGLE, PIECEWISE_EXP, SOFT_SIGN, SUPER_SPIKE, ERF };

static int64_t bytes(int bf16) { return bf16 ? 2 : 4; }

/* The address of element `at` of a tensor of fp32 or bf16. */
static void *place(const void *tensor, int64_t at, int bf16) { return (char *)tensor + at * bytes(bf16); }

#define LINE 64 /* bytes of a cache line */

/* Prefetch n elements of a tensor from `at` on, which will soon be read or written. */
static void prefetch_read(const void *tensor, int64_t at, int n, int bf16) {
    const char *const from = place(tensor, at, bf16);
    for (int64_t i = 0; i < n * bytes(bf16); i += LINE) __builtin_prefetch(from + i);
}

static void prefetch_write(void *tensor, int64_t at, int n, int bf16) {
    char *const from = place(tensor, at, bf16);
    for (int64_t i = 0; i < n * bytes(bf16); i += LINE) __builtin_prefetch(from + i, 1);
}

INLINE float get(const void *restrict in, int i, const int bf16) {
    if (!bf16) return ((const float *)in)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)in)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void put(void *restrict out, int i, const float value, const int bf16) {
    if (!bf16) {
        ((float *)out)[i] = value;
        return;
    }
    uint32_t bits; /* round to nearest even; a NaN stays one */
    memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    ((uint16_t *)out)[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* A product with 1 / tau equals the quotient exactly when tau is a power of two, and is several times faster. */
static int power_of_two(float tau) {
    int exponent;
    return frexpf(tau, &exponent) == 0.5f;
}

/* The least membrane that fires; with `strict` this is the next number above the threshold. */
INLINE float fires_from(const Lif *p) { return p->strict ? nextafterf(p->threshold, INFINITY) : p->threshold; }

/* One time step: charge and reset. Every flag is a constant in each call, so that each loop is vectorised. */
INLINE void step(const Lif *p, float *restrict h, float *restrict v, const void *restrict x, int n, const int bf16,
                 const int exact, const int decay_input, const int soft_reset) {
    const float r = soft_reset ? 0.0f : p->reset, tau = p->tau, inverse = 1.0f / p->tau, threshold = p->threshold;
    const float least = fires_from(p);
    for (int i = 0; i < n; i++) {
        const float input = get(x, i, bf16), drive = decay_input ? input - (v[i] - r) : v[i] - r;
        const float part = exact ? drive * inverse : drive / tau;
        const float charged = decay_input ? v[i] + part : v[i] - part + input;
        const float spike = charged >= least ? 1.0f : 0.0f;
        h[i] = charged;
        v[i] = soft_reset ? charged - spike * threshold : spike * r + (1.0f - spike) * charged;
    }
}

static void advance(const Lif *p, float *restrict h, float *restrict v, const void *restrict x, int n, int bf16) {
    switch ((bf16 != 0) * 8 + power_of_two(p->tau) * 4 + (p->decay_input != 0) * 2 + (p->soft_reset != 0)) {
    case 0: step(p, h, v, x, n, 0, 0, 0, 0); break;
    case 1: step(p, h, v, x, n, 0, 0, 0, 1); break;
    case 2: step(p, h, v, x, n, 0, 0, 1, 0); break;
    case 3: step(p, h, v, x, n, 0, 0, 1, 1); break;
    case 4: step(p, h, v, x, n, 0, 1, 0, 0); break;
    case 5: step(p, h, v, x, n, 0, 1, 0, 1); break;
    case 6: step(p, h, v, x, n, 0, 1, 1, 0); break;
    case 7: step(p, h, v, x, n, 0, 1, 1, 1); break;
    case 8: step(p, h, v, x, n, 1, 0, 0, 0); break;
    case 9: step(p, h, v, x, n, 1, 0, 0, 1); break;
    case 10: step(p, h, v, x, n, 1, 0, 1, 0); break;
    case 11: step(p, h, v, x, n, 1, 0, 1, 1); break;
    case 12: step(p, h, v, x, n, 1, 1, 0, 0); break;
    case 13: step(p, h, v, x, n, 1, 1, 0, 1); break;
    case 14: step(p, h, v, x, n, 1, 1, 1, 0); break;
    case 15: step(p, h, v, x, n, 1, 1, 1, 1); break;
    }
}

/* Write the spikes of one time step, and return how many there are. */
INLINE int fire(const Lif *p, void *restrict spikes, const float *restrict h, int n, const int bf16) {
    const float least = fires_from(p);
    int count = 0;
    for (int i = 0; i < n; i++) {
        const int spike = h[i] >= least;
        count += spike;
        if (bf16)
            ((uint16_t *)spikes)[i] = spike ? 0x3f80 : 0;
        else
            ((float *)spikes)[i] = spike ? 1.0f : 0.0f;
    }
    return count;
}

/* exp for x <= 0, within 2 ulp; a loop over it is vectorised, over libm's expf it is not. */
INLINE float exp_negative(float x) {
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
    union {
        float f;
        uint32_t u;
    } scale = {.f = shifted};
    scale.u = (scale.u - 0x4b400000 + 127) << 23;
    return poly * scale.f;
}

/* The surrogate's derivative at h - threshold, in SpikingJelly's parametrisation of alpha. */
INLINE float derivative(const int surrogate, const float a, const float z) {
    const float pi = 3.14159265358979f;
    float u;
    switch (surrogate) {
    case SIGMOID:
        u = exp_negative(-fabsf(a * z));
        return a * u / ((1.0f + u) * (1.0f + u));
    case ATAN:
        u = z * (pi / 2 * a);
        return a / 2 / (1.0f + u * u);
    case TRIANGLE:
        u = a - a * a * fabsf(z);
        return u > 0.0f ? u : 0.0f;
    case PIECEWISE_EXP:
        return a / 2 * exp_negative(-a * fabsf(z));
    case SOFT_SIGN:
        u = 1.0f / a + fabsf(z);
        return 1.0f / (2.0f * a * u * u);
    case SUPER_SPIKE:
        u = 1.0f + fabsf(z);
        return a / (u * u);
    default: /* ERF */
        u = a * z;
        return a / sqrtf(pi) * exp_negative(-u * u);
    }
}

INLINE void slopes_of(const Lif *p, float *restrict slope, const float *restrict h, int n, const int surrogate) {
    const float alpha = p->alpha, threshold = p->threshold;
    for (int i = 0; i < n; i++) slope[i] = derivative(surrogate, alpha, h[i] - threshold);
}

static void slopes(const Lif *p, float *restrict slope, const float *restrict h, int n) {
    switch (p->surrogate) {
    case SIGMOID: slopes_of(p, slope, h, n, SIGMOID); break;
    case ATAN: slopes_of(p, slope, h, n, ATAN); break;
    case TRIANGLE: slopes_of(p, slope, h, n, TRIANGLE); break;
    case PIECEWISE_EXP: slopes_of(p, slope, h, n, PIECEWISE_EXP); break;
    case SOFT_SIGN: slopes_of(p, slope, h, n, SOFT_SIGN); break;
    case SUPER_SPIKE: slopes_of(p, slope, h, n, SUPER_SPIKE); break;
    case ERF: slopes_of(p, slope, h, n, ERF); break;
    }
}

/* One time step back: compute the gradient of the input from g, the gradient of the spike; dv, the gradient of the
 * membrane after the reset, becomes that of the membrane before the charge. */
INLINE void step_back(const Lif *p, void *restrict g_x, float *restrict dv, const void *restrict g, const float *restrict h,
                      const float *restrict slope, int n, const int bf16, const int soft_reset, const int detach_reset) {
    const float threshold = p->threshold, least = fires_from(p), reset = p->reset, inverse = 1.0f / p->tau;
    const float input = p->decay_input ? inverse : 1.0f;
    for (int i = 0; i < n; i++) {
        const float charged = h[i], after = dv[i];
        const float through = detach_reset ? 0.0f : after * (soft_reset ? -threshold : reset - charged);
        const float kept = soft_reset || charged < least ? after : 0.0f;
        const float dh = (get(g, i, bf16) + through) * slope[i] + kept;
        put(g_x, i, dh * input, bf16);
        dv[i] = dh - dh * inverse;
    }
}

static void retreat(const Lif *p, void *g_x, float *dv, const void *g, const float *h, const float *slope, int n, int bf16) {
    switch ((bf16 != 0) * 4 + (p->soft_reset != 0) * 2 + (p->detach_reset != 0)) {
    case 0: step_back(p, g_x, dv, g, h, slope, n, 0, 0, 0); break;
    case 1: step_back(p, g_x, dv, g, h, slope, n, 0, 0, 1); break;
    case 2: step_back(p, g_x, dv, g, h, slope, n, 0, 1, 0); break;
    case 3: step_back(p, g_x, dv, g, h, slope, n, 0, 1, 1); break;
    case 4: step_back(p, g_x, dv, g, h, slope, n, 1, 0, 0); break;
    case 5: step_back(p, g_x, dv, g, h, slope, n, 1, 0, 1); break;
    case 6: step_back(p, g_x, dv, g, h, slope, n, 1, 1, 0); break;
    case 7: step_back(p, g_x, dv, g, h, slope, n, 1, 1, 1); break;
    }
}

static void start(const Lif *p, float *restrict v, const float *restrict v0, int64_t at, int n) {
    if (v0)
        memcpy(v, v0 + at, n * sizeof(float));
    else
        for (int i = 0; i < n; i++) v[i] = p->soft_reset ? 0.0f : p->reset;
}

/* v0 NULL: the membrane starts at its resting value. counts [T], unless NULL, is increased by the spikes of each step.
 * Returns 0. */
int lif_forward(const Lif *p, int64_t T, int64_t M, int bf16, int threads, const void *x, const float *v0, void *spikes,
                float *v_last, int64_t *counts) {
    const int64_t blocks = (M + BLOCK - 1) / BLOCK, counted = counts ? T : 1;
    int64_t unwanted = 0, *const sums = counts ? counts : &unwanted;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : sums[:counted])
    for (int64_t b = 0; b < blocks; b++) {
        float v[BLOCK], h[BLOCK];
        const int64_t at = b * BLOCK;
        const int n = M - at < BLOCK ? (int)(M - at) : BLOCK, next = M - at - n < BLOCK ? (int)(M - at - n) : BLOCK;
        start(p, v, v0, at, n);
        for (int64_t t = 0; t < T; t++) {
            void *const out = place(spikes, t * M + at, bf16);
            prefetch_read(x, t * M + at + n, next, bf16);
            prefetch_write(spikes, t * M + at, n, bf16);
            advance(p, h, v, place(x, t * M + at, bf16), n, bf16);
            const int fired = bf16 ? fire(p, out, h, n, 1) : fire(p, out, h, n, 0);
            if (counts) sums[t] += fired;
        }
        memcpy(v_last + at, v, n * sizeof(float));
    }
    return 0;
}

/* g_spikes and g_v_last may be NULL (zero), g_v0 may be NULL (not wanted). Returns 1 where memory ran out, else 0. */
int lif_backward(const Lif *p, int64_t T, int64_t M, int bf16, int threads, const void *x, const float *v0,
                 const void *g_spikes, const float *g_v_last, void *g_x, float *g_v0) {
    static const float zeros[BLOCK];
    const int64_t blocks = (M + BLOCK - 1) / BLOCK;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *h = malloc((size_t)T * BLOCK * sizeof(float));
        float v[BLOCK], dv[BLOCK], slope[BLOCK];
        if (!h) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            if (!h) continue;
            const int64_t at = b * BLOCK;
            const int n = M - at < BLOCK ? (int)(M - at) : BLOCK, next = M - at - n < BLOCK ? (int)(M - at - n) : BLOCK;
            start(p, v, v0, at, n);
            for (int64_t t = 0; t < T; t++) {
                if (g_spikes) prefetch_read(g_spikes, t * M + at, n, bf16);
                advance(p, h + t * BLOCK, v, place(x, t * M + at, bf16), n, bf16);
            }
            memcpy(dv, g_v_last ? g_v_last + at : zeros, n * sizeof(float));
            for (int64_t t = T - 1; t >= 0; t--) {
                const void *const g = g_spikes ? place(g_spikes, t * M + at, bf16) : zeros;
                prefetch_read(x, t * M + at + n, next, bf16);
                prefetch_write(g_x, t * M + at, n, bf16);
                slopes(p, slope, h + t * BLOCK, n);
                retreat(p, place(g_x, t * M + at, bf16), dv, g, h + t * BLOCK, slope, n, bf16);
            }
            if (g_v0) memcpy(g_v0 + at, dv, n * sizeof(float));
        }
        free(h);
    }
    return failed;
}
