// 16 numbers at a time: bf16 to fp32 and back, and 2^x.

#pragma once

#include <immintrin.h>

#include <cstdint>

using half = uint16_t;  // a bf16

constexpr long WIDE = 16;  // floats per register
constexpr float LOG2_E = 1.44269504f;

inline __m512 wide(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline __m512 wide(const half* x) { return wide(_mm256_loadu_si256((const __m256i*)x)); }
inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
inline void store(half* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, narrow(x)); }
// a mask of the first `count` lanes
inline __mmask16 first(long count) { return count >= WIDE ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

constexpr float TAYLOR[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};

// 2^x: x = n + f, f in [-1/2, 1/2]; the Taylor series of 2^f, with a remainder below 2e-8.
inline __m512 power_of_two(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(1.5252734e-5f);
    for (float c : TAYLOR)
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(y, n);
}
