// Products with weights of 4 or 8 bits, for any CPU that g++ vectorizes for.
//
//   8 bits   int8 [N, K]                                            w = (q - zero) scale
//   4 bits   uint8 [N, K / 2], two neighbouring weights in a byte   w = (table[q] - zero) scale
//
// A scale, and a zero where there is one, belong to `group` neighbouring inputs of an output; K and group are multiples of
// BLOCK. Weights become fp32 in registers, so a token reads a half to an eighth of the bytes. Sums are fp32: lane l of a
// register adds up every LANES-th product, and the lanes are added in pairs. So a row's result is the same bits alone and in
// any batch.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef int16_t Shorts __attribute__((vector_size(LANES * 2)));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

using half = uint16_t;  // a bf16

static inline Lanes load(const float* x) { return *(const Unaligned*)x; }
static inline float number(float x) { return x; }
static inline float number(half x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
static inline void store(float* to, float x) { *to = x; }
static inline void store(half* to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *to = std::isnan(x) ? 0x7fc0 : (half)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline float total(Eight x) {
    Four a = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
    a += __builtin_shufflevector(a, a, 2, 3, 0, 1);
    return a[0] + a[1];
}
#ifdef __AVX512F__
static inline float total(Lanes x) {
    return total(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif
// g++ 12 converts bytes to four times their width one by one
static inline Integers widen(const int8_t* x) {
#if defined(__AVX512F__)
    return (Integers)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)x));
#else
    return __builtin_convertvector(__builtin_convertvector(*(const Bytes*)x, Shorts), Integers);
#endif
}
// of a table of 16 numbers: one register, or two
static inline Lanes look_up(const float* table, Integers index) {
#ifdef __AVX512F__
    return __builtin_shuffle(load(table), index);
#else
    return __builtin_shuffle(load(table), load(table + 8), index);
#endif
}

constexpr long BLOCK = 32;  // weights that are unpacked together
constexpr int REGISTERS = BLOCK / LANES;
constexpr long NESTED = 256;  // scales in 8 bits that share a scale

struct Weight {
    const int8_t* codes;
    const void* scale;                          // [N, K / group]
    const int8_t* zero;                         // the same, or null
    const float *table, *nested_table, *nested;  // 16 values of 4 bits; of scales in 8 bits: 256 values, and their scales
    long columns, width, group;                 // N, K
    long scale_bits;                            // 32: fp32; 16: bf16; 8: nested_table[q] nested[i / 256] + nested_mean
    long high_first;                            // 4 bits: the first of two weights is in the higher bits
    float nested_mean;
};

static inline float scale_of(const Weight& w, long i) {
    if (w.scale_bits == 32)
        return ((const float*)w.scale)[i];
    if (w.scale_bits == 16)
        return number(((const half*)w.scale)[i]);
    return w.nested_table[((const uint8_t*)w.scale)[i]] * w.nested[i / NESTED] + w.nested_mean;
}

// BLOCK weights without zero and scale; of 4 bits, those in the lower bits come first.
template <int BITS> static inline void unpack(const int8_t* codes, const float* table, Lanes* w) {
    if (BITS == 8)
        for (int i = 0; i < REGISTERS; i++)
            w[i] = __builtin_convertvector(widen(codes + i * LANES), Lanes);
    else
        for (int i = 0; i < REGISTERS / 2; i++) {
            const Integers both = widen(codes + i * LANES);
            w[i] = look_up(table, both & 15);
            w[i + REGISTERS / 2] = look_up(table, (both >> 4) & 15);
        }
}

// Where `unpack` puts the weight of input i.
template <int BITS> static inline long place(const Weight& w, long i) {
    if (BITS == 8)
        return i;
    const bool in_higher_bits = (i & 1) != w.high_first;
    return i / BLOCK * BLOCK + (i % BLOCK) / 2 + (in_higher_bits ? BLOCK / 2 : 0);
}

// y[m, n] = sum_k x[m, k] w[n, k] + bias[n] for M rows of x, in the order of `place`, and N of w.
template <int BITS, int M, int N, typename T>
static inline void product_of(const Weight& w, long n0, const float* x, const T* bias, T* y) {
    const long stride = w.width * BITS / 8, groups = w.width / w.group;
    const int8_t* codes = w.codes + n0 * stride;
    Lanes sums[M][N] = {};
    for (long g = 0; g < groups; g++) {
        float scale[N], zero[N];
        for (int n = 0; n < N; n++) {
            const long i = (n0 + n) * groups + g;
            scale[n] = scale_of(w, i);
            zero[n] = w.zero ? -w.zero[i] * scale[n] : 0.0f;
        }
        for (long k = g * w.group; k < (g + 1) * w.group; k += BLOCK) {
            Lanes ws[N][REGISTERS];
            for (int n = 0; n < N; n++) {
                unpack<BITS>(codes + n * stride + k * BITS / 8, w.table, ws[n]);
                for (int i = 0; i < REGISTERS; i++)
                    ws[n][i] = ws[n][i] * scale[n] + zero[n];
                __builtin_prefetch(codes + (n + N) * stride + k * BITS / 8);
            }
            for (int i = 0; i < REGISTERS; i++)
                for (int m = 0; m < M; m++) {
                    const Lanes xs = load(x + m * w.width + k + i * LANES);
                    for (int n = 0; n < N; n++)
                        sums[m][n] += xs * ws[n][i];
                }
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            store(y + m * w.columns + n0 + n, total(sums[m][n]) + (bias ? number(bias[n0 + n]) : 0.0f));
}

constexpr long TILE_ROWS = LANES == 16 ? 8 : 4;  // of x, for which a weight is unpacked once: their sums fill the registers
constexpr long TILE_COLUMNS = 96;                // rows of w, for a thread
constexpr long SMALL = 1 << 16;                  // products, which are not worth waking other threads for

template <int BITS, int N, typename T>
static void rows_of(const Weight& w, long n, const float* x, const T* bias, T* y, long rows) {
    switch (rows) {
    case 8: product_of<BITS, 8, N>(w, n, x, bias, y); break;
    case 7: product_of<BITS, 7, N>(w, n, x, bias, y); break;
    case 6: product_of<BITS, 6, N>(w, n, x, bias, y); break;
    case 5: product_of<BITS, 5, N>(w, n, x, bias, y); break;
    case 4: product_of<BITS, 4, N>(w, n, x, bias, y); break;
    case 3: product_of<BITS, 3, N>(w, n, x, bias, y); break;
    case 2: product_of<BITS, 2, N>(w, n, x, bias, y); break;
    case 1: product_of<BITS, 1, N>(w, n, x, bias, y); break;
    }
}

template <int BITS, typename T> static void product(const Weight& w, const T* x, const T* bias, T* y, long rows) {
    std::vector<float> placed(rows * w.width);
    for (long m = 0; m < rows; m++)
        for (long k = 0; k < w.width; k++)
            placed[m * w.width + place<BITS>(w, k)] = number(x[m * w.width + k]);
    const long tiles = (w.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    // dynamic: where another program takes a core for a while, the other threads go on with its tiles
#pragma omp parallel for schedule(dynamic) if (rows * w.width * w.columns > SMALL)
    for (long tile = 0; tile < tiles; tile++) {
        const long last = (tile + 1) * TILE_COLUMNS < w.columns ? (tile + 1) * TILE_COLUMNS : w.columns;
        for (long m = 0; m < rows; m += TILE_ROWS) {
            const long count = rows - m < TILE_ROWS ? rows - m : TILE_ROWS;
            const float* xs = placed.data() + m * w.width;
            long n = tile * TILE_COLUMNS;
            if (count == 1)
                for (; n + 4 <= last; n += 4)
                    rows_of<BITS, 4>(w, n, xs, bias, y + m * w.columns, 1);
            for (; n + 2 <= last; n += 2)
                rows_of<BITS, 2>(w, n, xs, bias, y + m * w.columns, count);
            for (; n < last; n++)
                rows_of<BITS, 1>(w, n, xs, bias, y + m * w.columns, count);
        }
    }
}

// y[n, k] = w[n, k]
template <int BITS, typename T> static void dequantized(const Weight& w, T* y) {
    const long groups = w.width / w.group, stride = w.width * BITS / 8;
#pragma omp parallel for if (w.width * w.columns > SMALL)
    for (long n = 0; n < w.columns; n++)
        for (long k = 0; k < w.width; k += BLOCK) {
            const long g = n * groups + k / w.group;
            const float scale = scale_of(w, g), zero = w.zero ? -w.zero[g] * scale : 0.0f;
            Lanes ws[REGISTERS];
            unpack<BITS>(w.codes + n * stride + k * BITS / 8, w.table, ws);
            float values[BLOCK];
            for (int i = 0; i < REGISTERS; i++) {
                ws[i] = ws[i] * scale + zero;
                memcpy(values + i * LANES, &ws[i], sizeof ws[i]);
            }
            for (long i = 0; i < BLOCK; i++)
                store(y + n * w.width + k + i, values[place<BITS>(w, i)]);
        }
}

#define EXPORT(BITS, T, NAME) \
    void linear_##BITS##_##NAME(const Weight* w, const T* x, const T* bias, T* y, long rows) { \
        product<BITS>(*w, x, bias, y, rows); \
    } \
    void dequantized_##BITS##_##NAME(const Weight* w, T* y) { dequantized<BITS>(*w, y); }

extern "C" {
EXPORT(8, float, fp32)
EXPORT(8, half, bf16)
EXPORT(4, float, fp32)
EXPORT(4, half, bf16)
}
