// The elementwise layers between the matrix products: each number is read once, computed in fp32 and rounded once
// (model/layers/fused.py).

#include <cmath>

#include "lanes.h"

namespace {

constexpr long MIN_PARALLEL = 4096;  // numbers; fewer run on one thread

// gate(a) = a s with s = sigmoid(z): z is a itself (SiLU), or twice the argument of GELU's tanh. slope = dz / da.
struct Gate {
    __m512 s, slope;
};

inline Gate gate(__m512 a, bool gelu) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 z = a, slope = one;
    if (gelu) {  // z = 2 sqrt(2 / pi) (a + 0.044715 a^3)
        const __m512 square = _mm512_mul_ps(a, a);
        z = _mm512_mul_ps(a, _mm512_fmadd_ps(square, _mm512_set1_ps(0.07135482f), _mm512_set1_ps(1.59576912f)));
        slope = _mm512_fmadd_ps(square, _mm512_set1_ps(0.21406445f), _mm512_set1_ps(1.59576912f));
    }
    const __m512 e = power_of_two(_mm512_mul_ps(z, _mm512_set1_ps(-LOG2_E)));
    return {_mm512_div_ps(one, _mm512_add_ps(one, e)), slope};
}

// sum over j of x y w; w may be null
inline float sum_of_products(const half* x, const half* y, const float* w, long d) {
    __m512 sum = _mm512_setzero_ps();
    for (long j = 0; j < d; j += WIDE) {
        const __m512 xy = _mm512_mul_ps(wide(x + j), wide(y + j));
        sum = w ? _mm512_fmadd_ps(xy, _mm512_loadu_ps(w + j), sum) : _mm512_add_ps(xy, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// The logits of a row: factor * (z + bias); lanes beyond the vocabulary are minus infinity.
struct Logits {
    const half* z;
    const float* bias;
    __m512 factor;

    __m512 at(long j, __mmask16 valid) const {
        __m512 x = wide(_mm256_maskz_loadu_epi16(valid, z + j));
        if (bias) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(valid, bias + j));
        return _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), valid, x, factor);
    }
};

}  // namespace

extern "C" {

// For each row of logits [n, v]: log p(target) and log sum exp.
void log_probability(const half* z, const float* bias, const long* target, float* logp, float* logsum, long n, long v, float scale) {
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        const Logits row = {z + i * v, bias, _mm512_set1_ps(scale * LOG2_E)};  // powers of two from here on, not of e
        __m512 lane_max = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (long j = 0; j < v; j += WIDE) lane_max = _mm512_max_ps(lane_max, row.at(j, first(v - j)));
        const float max = _mm512_reduce_max_ps(lane_max);
        const __m512 all_max = _mm512_set1_ps(max);  // subtracted before the power, so that it cannot overflow
        for (long j = 0; j < v; j += WIDE)
            sum = _mm512_add_ps(sum, power_of_two(_mm512_sub_ps(row.at(j, first(v - j)), all_max)));
        const float log2 = max + std::log2(_mm512_reduce_add_ps(sum));
        logsum[i] = log2 / LOG2_E;
        logp[i] = (_mm512_cvtss_f32(row.at(target[i], 1)) - log2) / LOG2_E;
    }
}

// z = g (onehot(target) - softmax), in place; g may be null, which means 1
void log_probability_backward(half* z, const float* bias, const long* target, const float* logsum, const float* g, long n, long v, float scale) {
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        const Logits row = {z + i * v, bias, _mm512_set1_ps(scale * LOG2_E)};
        const __m512 log2_sum = _mm512_set1_ps(logsum[i] * LOG2_E), factor = _mm512_set1_ps(g ? g[i] : 1.0f);
        for (long j = 0; j < v; j += WIDE) {
            const __mmask16 valid = first(v - j);
            const __mmask16 is_target = (unsigned long)(target[i] - j) < WIDE ? 1u << (target[i] - j) : 0;
            const __m512 p = power_of_two(_mm512_sub_ps(row.at(j, valid), log2_sum));
            const __m512 x = _mm512_sub_ps(_mm512_maskz_mov_ps(is_target, _mm512_set1_ps(1.0f)), p);
            _mm256_mask_storeu_epi16(z + i * v + j, valid, narrow(_mm512_mul_ps(x, factor)));
        }
    }
}

// y = gate(a) b; n a multiple of 16, as in all functions below
void gated(const half* a, const half* b, half* y, long n, long gelu) {
#pragma omp parallel for if (n > MIN_PARALLEL)
    for (long i = 0; i < n; i += WIDE) {
        const __m512 x = wide(a + i);
        store(y + i, _mm512_mul_ps(_mm512_mul_ps(x, gate(x, gelu).s), wide(b + i)));
    }
}

// da = g b (s + a s (1 - s) z'), db = g a s
void gated_backward(const half* a, const half* b, const half* g, half* da, half* db, long n, long gelu) {
#pragma omp parallel for if (n > MIN_PARALLEL)
    for (long i = 0; i < n; i += WIDE) {
        const __m512 x = wide(a + i), grad = wide(g + i);
        const Gate sigmoid = gate(x, gelu);
        const __m512 y = _mm512_mul_ps(x, sigmoid.s);  // so a s (1 - s) = y - y s
        const __m512 derivative = _mm512_fmadd_ps(_mm512_fnmadd_ps(y, sigmoid.s, y), sigmoid.slope, sigmoid.s);
        store(da + i, _mm512_mul_ps(_mm512_mul_ps(grad, wide(b + i)), derivative));
        store(db + i, _mm512_mul_ps(grad, y));
    }
}

// y = w x / sqrt(mean(x^2) + eps), x [n, d]; inverse [n] = 1 / sqrt(...). round_twice: also round before multiplying by w.
void rms_norm(const half* x, const float* w, half* y, float* inverse, long n, long d, float eps, long round_twice) {
#pragma omp parallel for if (n * d > MIN_PARALLEL)
    for (long i = 0; i < n; i++) {
        const half* from = x + i * d;
        inverse[i] = 1.0f / std::sqrt(sum_of_products(from, from, nullptr, d) / d + eps);
        const __m512 r = _mm512_set1_ps(inverse[i]);
        for (long j = 0; j < d; j += WIDE) {
            __m512 normed = _mm512_mul_ps(wide(from + j), r);
            if (round_twice) normed = wide(narrow(normed));
            store(y + i * d + j, _mm512_mul_ps(normed, _mm512_loadu_ps(w + j)));
        }
    }
}

// dx = r g w - x r^3 sum(g w x) / d
void rms_norm_backward(const half* x, const float* w, const half* g, const float* inverse, half* dx, long n, long d) {
#pragma omp parallel for if (n * d > MIN_PARALLEL)
    for (long i = 0; i < n; i++) {
        const half *from = x + i * d, *grad = g + i * d;
        const float r = inverse[i], factor = sum_of_products(from, grad, w, d) * r * r * r / d;
        const __m512 rs = _mm512_set1_ps(r), factors = _mm512_set1_ps(factor);
        for (long j = 0; j < d; j += WIDE) {
            const __m512 rgw = _mm512_mul_ps(_mm512_mul_ps(wide(grad + j), _mm512_loadu_ps(w + j)), rs);
            store(dx + i * d + j, _mm512_fnmadd_ps(wide(from + j), factors, rgw));
        }
    }
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x [n, heads, d] by strides, cos and sin [n, d / 2]
void rotate(const half* x, long row, long head, const half* cos, const half* sin, half* y, long n, long heads, long d) {
    const long half_width = d / 2;
#pragma omp parallel for if (n * heads * d > MIN_PARALLEL)
    for (long i = 0; i < n; i++)
        for (long h = 0; h < heads; h++) {
            const half* from = x + i * row + h * head;
            half* to = y + (i * heads + h) * d;
            for (long j = 0; j < half_width; j += WIDE) {
                const __m512 c = wide(cos + i * half_width + j), s = wide(sin + i * half_width + j);
                const __m512 x1 = wide(from + j), x2 = wide(from + half_width + j);
                store(to + j, _mm512_fnmadd_ps(x2, s, _mm512_mul_ps(x1, c)));
                store(to + half_width + j, _mm512_fmadd_ps(x1, s, _mm512_mul_ps(x2, c)));
            }
        }
}
}
