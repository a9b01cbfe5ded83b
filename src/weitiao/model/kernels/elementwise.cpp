// What works element by element between the matrix products: read once, made in fp32, rounded once (model/fused.py).

#include <cmath>

#include "lanes.h"

namespace {

constexpr long AT_ONCE = 4096;  // numbers that a thread takes at least

// s = sigmoid(z), where gate(a) = a s: z is a itself (SiLU), or twice what GELU's tanh is of; and how z grows with a.
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

inline float sum_of_products(const half* x, const half* y, const float* w, long d) {
    __m512 sum = _mm512_setzero_ps();
    for (long j = 0; j < d; j += WIDE) {
        const __m512 some = _mm512_mul_ps(wide(x + j), wide(y + j));
        sum = w ? _mm512_fmadd_ps(some, _mm512_loadu_ps(w + j), sum) : _mm512_add_ps(some, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

// The logits of a row: by * (z + bias), and what lies behind the last word is minus infinity.
struct Words {
    const half* z;
    const float* bias;
    __m512 by;

    __m512 at(long j, __mmask16 there) const {
        __m512 x = wide(_mm256_maskz_loadu_epi16(there, z + j));
        if (bias) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, bias + j));
        return _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), there, x, by);
    }
};

}  // namespace

extern "C" {

// Of each row of logits [n, v]: log p(target) and log sum exp.
void log_probability(const half* z, const float* bias, const long* target, float* logp, float* logsum, long n, long v, float scale) {
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        const Words row = {z + i * v, bias, _mm512_set1_ps(scale * LOG2_E)};  // powers are of two from here on
        __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (long j = 0; j < v; j += WIDE) most = _mm512_max_ps(most, row.at(j, first(v - j)));
        const float top = _mm512_reduce_max_ps(most);
        most = _mm512_set1_ps(top);
        for (long j = 0; j < v; j += WIDE) sum = _mm512_add_ps(sum, power_of_two(_mm512_sub_ps(row.at(j, first(v - j)), most)));
        const float log2 = top + std::log2(_mm512_reduce_add_ps(sum));
        logsum[i] = log2 / LOG2_E;
        logp[i] = (_mm512_cvtss_f32(row.at(target[i], 1)) - log2) / LOG2_E;
    }
}

// z = g (onehot(target) - softmax), in place; g may be missing
void slope_of_words(half* z, const float* bias, const long* target, const float* logsum, const float* g, long n, long v, float scale) {
#pragma omp parallel for
    for (long i = 0; i < n; i++) {
        const Words row = {z + i * v, bias, _mm512_set1_ps(scale * LOG2_E)};
        const __m512 less = _mm512_set1_ps(logsum[i] * LOG2_E), by = _mm512_set1_ps(g ? g[i] : 1.0f);
        for (long j = 0; j < v; j += WIDE) {
            const __mmask16 there = first(v - j);
            const __mmask16 wanted = (unsigned long)(target[i] - j) < WIDE ? 1u << (target[i] - j) : 0;
            const __m512 share = power_of_two(_mm512_sub_ps(row.at(j, there), less));
            const __m512 x = _mm512_sub_ps(_mm512_maskz_mov_ps(wanted, _mm512_set1_ps(1.0f)), share);
            _mm256_mask_storeu_epi16(z + i * v + j, there, narrow(_mm512_mul_ps(x, by)));
        }
    }
}

// y = gate(a) b; n a multiple of 16, as everywhere here
void gated(const half* a, const half* b, half* y, long n, long gelu) {
#pragma omp parallel for if (n > AT_ONCE)
    for (long i = 0; i < n; i += WIDE) {
        const __m512 x = wide(a + i);
        put(y + i, _mm512_mul_ps(_mm512_mul_ps(x, gate(x, gelu).s), wide(b + i)));
    }
}

// da = g b (s + a s (1 - s) z'), db = g a s
void gated_back(const half* a, const half* b, const half* g, half* da, half* db, long n, long gelu) {
#pragma omp parallel for if (n > AT_ONCE)
    for (long i = 0; i < n; i += WIDE) {
        const __m512 x = wide(a + i), up = wide(g + i);
        const Gate made = gate(x, gelu);
        const __m512 y = _mm512_mul_ps(x, made.s);  // and a s (1 - s) = y - y s
        const __m512 grows = _mm512_fmadd_ps(_mm512_fnmadd_ps(y, made.s, y), made.slope, made.s);
        put(da + i, _mm512_mul_ps(_mm512_mul_ps(up, wide(b + i)), grows));
        put(db + i, _mm512_mul_ps(up, y));
    }
}

// y = w x / sqrt(mean(x^2) + eps), x [n, d]; `inverse` [n] is the one over the other. `twice`: rounded before w, too.
void rms_norm(const half* x, const float* w, half* y, float* inverse, long n, long d, float eps, long twice) {
#pragma omp parallel for if (n * d > AT_ONCE)
    for (long i = 0; i < n; i++) {
        const half* from = x + i * d;
        inverse[i] = 1.0f / std::sqrt(sum_of_products(from, from, nullptr, d) / d + eps);
        const __m512 r = _mm512_set1_ps(inverse[i]);
        for (long j = 0; j < d; j += WIDE) {
            __m512 some = _mm512_mul_ps(wide(from + j), r);
            if (twice) some = wide(narrow(some));
            put(y + i * d + j, _mm512_mul_ps(some, _mm512_loadu_ps(w + j)));
        }
    }
}

// dx = r g w - x r^3 sum(g w x) / d
void rms_norm_back(const half* x, const float* w, const half* g, const float* inverse, half* dx, long n, long d) {
#pragma omp parallel for if (n * d > AT_ONCE)
    for (long i = 0; i < n; i++) {
        const half *from = x + i * d, *up = g + i * d;
        const float r = inverse[i], along = sum_of_products(from, up, w, d) * r * r * r / d;
        const __m512 by = _mm512_set1_ps(r), less = _mm512_set1_ps(along);
        for (long j = 0; j < d; j += WIDE) {
            const __m512 some = _mm512_mul_ps(_mm512_mul_ps(wide(up + j), _mm512_loadu_ps(w + j)), by);
            put(dx + i * d + j, _mm512_fnmadd_ps(wide(from + j), less, some));
        }
    }
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x [n, heads, d] by strides, cos and sin [n, d / 2]
void rotate(const half* x, long row, long head, const half* cos, const half* sin, half* y, long n, long heads, long d) {
    const long part = d / 2;
#pragma omp parallel for if (n * heads * d > AT_ONCE)
    for (long i = 0; i < n; i++)
        for (long h = 0; h < heads; h++) {
            const half* from = x + i * row + h * head;
            half* to = y + (i * heads + h) * d;
            for (long j = 0; j < part; j += WIDE) {
                const __m512 c = wide(cos + i * part + j), s = wide(sin + i * part + j);
                const __m512 x1 = wide(from + j), x2 = wide(from + part + j);
                put(to + j, _mm512_fnmadd_ps(x2, s, _mm512_mul_ps(x1, c)));
                put(to + part + j, _mm512_fmadd_ps(x1, s, _mm512_mul_ps(x2, c)));
            }
        }
}
}
