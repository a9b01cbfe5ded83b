// Products with few rows and attention to cached keys, for any CPU that g++ vectorizes for.
//
// Every number is one sum in one order, whatever else is computed beside it: lane l of a register adds up the products
// l, l + LANES, l + 2 LANES ..., and the lanes are added in pairs. So a row's result is the same bits alone and in any batch.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef float Pair __attribute__((vector_size(8)));

using half = uint16_t;  // a bf16

static inline Lanes load(const float* x) { return *(const Unaligned*)x; }
static inline Lanes load(const half* x) {
    const Integers wide = __builtin_convertvector(*(const Halves*)x, Integers) << 16;
    return (Lanes)wide;
}
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
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
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
// the last numbers of a row, fewer than LANES, and zeros
template <typename T> static inline Lanes load_first(const T* x, long count) {
    Lanes y = {};
    for (long i = 0; i < count; i++)
        y[i] = number(x[i]);
    return y;
}

// y[m, n] = sum_k x[m, k] w[n, k] + bias[n] for M rows of x and N of w.
//
// FETCH: the next N rows of w are fetched meanwhile, which takes as long as the sums where x has few rows.
template <int M, int N, bool FETCH, typename T>
static inline void product_of(const T* x, const T* w, const T* bias, T* y, long width, long columns) {
    Lanes sums[M][N] = {};
    long k = 0;
    for (; k + LANES <= width; k += LANES) {
        Lanes ws[N];
        for (int n = 0; n < N; n++) {
            ws[n] = load(w + n * width + k);
            if (FETCH)
                __builtin_prefetch(w + (n + N) * width + k);
        }
        for (int m = 0; m < M; m++) {
            const Lanes xs = load(x + m * width + k);
            for (int n = 0; n < N; n++)
                sums[m][n] += xs * ws[n];
        }
    }
    if (k < width)
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++)
                sums[m][n] += load_first(x + m * width + k, width - k) * load_first(w + n * width + k, width - k);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
            store(y + m * columns + n, total(sums[m][n]) + (bias ? number(bias[n]) : 0.0f));
}

template <int N, typename T>
static void rows_of(const T* x, const T* w, const T* bias, T* y, long rows, long width, long columns) {
    long m = 0;
    for (; m + 4 <= rows; m += 4)
        if (m == 0)
            product_of<4, N, true>(x, w, bias, y, width, columns);
        else
            product_of<4, N, false>(x + m * width, w, bias, y + m * columns, width, columns);
    x += m * width, y += m * columns;
    switch (rows - m) {
    case 3: product_of<3, N, true>(x, w, bias, y, width, columns); break;
    case 2: product_of<2, N, true>(x, w, bias, y, width, columns); break;
    case 1: product_of<1, N, true>(x, w, bias, y, width, columns); break;
    }
}

constexpr long TILE_ROWS = 8;      // of x, which stay in the first cache
constexpr long TILE_COLUMNS = 96;  // rows of w, which stay in the second
constexpr long SMALL = 1 << 16;    // products, which are not worth waking other threads for

template <typename T> static void product(const T* x, const T* w, const T* bias, T* y, long rows, long width, long columns) {
    const long tiles = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    // dynamic: where another program takes a core for a while, the other threads go on with its tiles
#pragma omp parallel for schedule(dynamic) if (rows * width * columns > SMALL)
    for (long tile = 0; tile < tiles; tile++) {
        const long last = (tile + 1) * TILE_COLUMNS < columns ? (tile + 1) * TILE_COLUMNS : columns;
        for (long m = 0; m < rows; m += TILE_ROWS) {
            const long count = rows - m < TILE_ROWS ? rows - m : TILE_ROWS;
            const T* xs = x + m * width;
            T* ys = y + m * columns;
            long n = tile * TILE_COLUMNS;
            if (count == 1)
                for (; n + 8 <= last; n += 8)
                    product_of<1, 8, true>(xs, w + n * width, bias ? bias + n : nullptr, ys + n, width, columns);
            for (; n + 3 <= last; n += 3)
                rows_of<3>(xs, w + n * width, bias ? bias + n : nullptr, ys + n, count, width, columns);
            for (; n < last; n++)
                rows_of<1>(xs, w + n * width, bias ? bias + n : nullptr, ys + n, count, width, columns);
        }
    }
}

// e^x for x <= 0: 2^n 2^f with f in [-1/2, 1/2], and the Taylor series of 2^f, with a remainder below 2e-8.
static inline Lanes exponential(Lanes x) {
    constexpr float SERIES[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
    x *= 1.44269504f;
    x = x < -126.0f ? Lanes{} - 126.0f : x;
    const Lanes n = (x + 12582912.0f) - 12582912.0f, f = x - n;  // 1.5 * 2^23: rounds to a whole number
    Lanes y = Lanes{} + 1.5252734e-5f;
    for (float c : SERIES)
        y = y * f + c;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return y * (Lanes)power;
}

struct Cached {
    const void *q, *k, *v;  // new tokens: [tokens, heads, width], [tokens, groups, width], [tokens, groups, value_width]
    void *keys, *values, *y;  // [slots, groups, length, width]; ...; [tokens, heads, value_width]
    long tokens, heads, groups, width, value_width, length, window;
    float scale, softcap;
    const int32_t *slots, *positions, *attends;  // of each token: its slot, its place there, whether y is computed here
};

template <typename T> static float dot(const T* a, const T* b, long width) {
    Lanes sum = {};
    long k = 0;
    for (; k + LANES <= width; k += LANES)
        sum += load(a + k) * load(b + k);
    if (k < width)
        sum += load_first(a + k, width - k) * load_first(b + k, width - k);
    return total(sum);
}

// y = sum_t p[t] v[t] / sum_t p[t], BLOCK registers of the width at a time.
template <typename T> static void weighted_sum(const float* p, const T* v, T* y, long count, long width, float factor) {
    constexpr int BLOCK = 8;
    long k = 0;
    for (; k + BLOCK * LANES <= width; k += BLOCK * LANES) {
        Lanes sums[BLOCK] = {};
        for (long t = 0; t < count; t++)
            for (int i = 0; i < BLOCK; i++)
                sums[i] += p[t] * load(v + t * width + k + i * LANES);
        for (int i = 0; i < BLOCK; i++)
            for (long j = 0; j < LANES; j++)
                store(y + k + i * LANES + j, sums[i][j] * factor);
    }
    for (; k + LANES <= width; k += LANES) {
        Lanes sum = {};
        for (long t = 0; t < count; t++)
            sum += p[t] * load(v + t * width + k);
        for (long j = 0; j < LANES; j++)
            store(y + k + j, sum[j] * factor);
    }
    for (; k < width; k++) {
        float sum = 0;
        for (long t = 0; t < count; t++)
            sum += p[t] * number(v[t * width + k]);
        store(y + k, sum * factor);
    }
}

template <typename T> static void attend_token(const Cached& c, long token, long group, std::vector<float>& p) {
    const long ratio = c.heads / c.groups, end = c.positions[token] + 1;
    const long start = c.window && end > c.window ? end - c.window : 0, count = end - start;
    const long cell = (c.slots[token] * c.groups + group) * c.length + start;
    const T *keys = (const T*)c.keys + cell * c.width, *values = (const T*)c.values + cell * c.value_width;
    p.resize(count + LANES);
    for (long h = group * ratio; h < (group + 1) * ratio; h++) {
        const T* q = (const T*)c.q + (token * c.heads + h) * c.width;
        float most = -INFINITY, sum = 0;
        for (long t = 0; t < count; t++) {
            p[t] = dot(q, keys + t * c.width, c.width) * c.scale;
            if (c.softcap)
                p[t] = c.softcap * std::tanh(p[t] / c.softcap);
            most = p[t] > most ? p[t] : most;
        }
        for (long t = 0; t < count; t += LANES) {
            const Lanes e = exponential(load(p.data() + t) - most);
            memcpy(p.data() + t, &e, sizeof e);
        }
        for (long t = 0; t < count; t++)
            sum += p[t];
        weighted_sum(p.data(), values, (T*)c.y + (token * c.heads + h) * c.value_width, count, c.value_width, 1 / sum);
    }
}

template <typename T> static void attend(const Cached& c) {
    const long heads = c.tokens * c.groups;
#pragma omp parallel if (heads * c.length * c.width > SMALL)
    {
        std::vector<float> p;
#pragma omp for
        for (long i = 0; i < heads; i++) {
            const long token = i / c.groups, group = i % c.groups;
            const long cell = (c.slots[token] * c.groups + group) * c.length + c.positions[token];
            memcpy((T*)c.keys + cell * c.width, (const T*)c.k + i * c.width, c.width * sizeof(T));
            memcpy((T*)c.values + cell * c.value_width, (const T*)c.v + i * c.value_width, c.value_width * sizeof(T));
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < heads; i++)
            if (c.attends[i / c.groups])
                attend_token<T>(c, i / c.groups, i % c.groups, p);
    }
}

template <typename T> static void rms_norm(const T* x, const T* w, T* y, long rows, long width, float eps, float offset) {
    for (long row = 0; row < rows; row++, x += width, y += width) {
        Lanes squares = {};
        long k = 0;
        for (; k + LANES <= width; k += LANES)
            squares += load(x + k) * load(x + k);
        if (k < width)
            squares += load_first(x + k, width - k) * load_first(x + k, width - k);
        const float factor = 1 / std::sqrt(total(squares) / width + eps);
        for (k = 0; k < width; k++) {
            T rounded;  // Llama rounds before it multiplies by the weight, Gemma (offset 1) after it
            store(&rounded, number(x[k]) * factor);
            store(y + k, (offset ? number(x[k]) * factor : number(rounded)) * (number(w[k]) + offset));
        }
    }
}

// y = silu(a) b, or gelu(a) b with gelu by tanh.
template <typename T> static void gated(const T* a, const T* b, T* y, long count, long gelu) {
    for (long i = 0; i < count; i += LANES) {
        const long n = count - i < LANES ? count - i : LANES;
        const Lanes x = n == LANES ? load(a + i) : load_first(a + i, n), other = n == LANES ? load(b + i) : load_first(b + i, n);
        const Lanes u = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;  // gelu(x) = x sigmoid(2 sqrt(2 / pi) (x + ...))
        const Lanes e = exponential(u < 0 ? u : -u), sigmoid = (u < 0 ? e : Lanes{} + 1.0f) / (1.0f + e);
        const Lanes active = x * sigmoid;
        for (long j = 0; j < n; j++) {
            T rounded;
            store(&rounded, active[j]);
            store(y + i + j, number(rounded) * other[j]);
        }
    }
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the halves of each head; cos and sin [tokens, width / 2].
template <typename T>
static void rotate(const T* x, const T* cosines, const T* sines, T* y, long tokens, long heads, long width, long stride) {
    const long half_width = width / 2;
    for (long t = 0; t < tokens; t++)
        for (long h = 0; h < heads; h++) {
            const T *from = x + t * stride + h * width, *c = cosines + t * half_width, *s = sines + t * half_width;
            T* to = y + (t * heads + h) * width;
            for (long i = 0; i < half_width; i++) {
                const float x1 = number(from[i]), x2 = number(from[i + half_width]), co = number(c[i]), si = number(s[i]);
                store(to + i, x1 * co - x2 * si);
                store(to + i + half_width, x2 * co + x1 * si);
            }
        }
}

#define EXPORT(T, NAME) \
    void linear_##NAME(const T* x, const T* w, const T* bias, T* y, long rows, long width, long columns) { \
        product(x, w, bias, y, rows, width, columns); \
    } \
    void attend_cached_##NAME(const Cached* c) { attend<T>(*c); } \
    void rms_norm_##NAME(const T* x, const T* w, T* y, long rows, long width, float eps, float offset) { \
        rms_norm(x, w, y, rows, width, eps, offset); \
    } \
    void gated_##NAME(const T* a, const T* b, T* y, long count, long gelu) { gated(a, b, y, count, gelu); } \
    void rotate_##NAME(const T* x, const T* c, const T* s, T* y, long tokens, long heads, long width, long stride) { \
        rotate(x, c, s, y, tokens, heads, width, stride); \
    }

extern "C" {
EXPORT(float, fp32)
EXPORT(half, bf16)
}
