// Products with few rows and attention to cached keys, for any CPU that g++ vectorizes for.
//
// Every number is one sum in one order, whatever else is computed beside it: lane l of a register adds up the products
// l, l + LANES, l + 2 LANES ..., and the lanes are added in pairs. So a row's result is the same bits alone and in any batch.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BF16__
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
typedef uint16_t Halves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

using half = uint16_t;  // a bf16

static inline Lanes load(const float* x) { return *(const Unaligned*)x; }
static inline Lanes load(const half* x) {
    const Integers wide = __builtin_convertvector(*(const Halves*)x, Integers) << 16;
    return (Lanes)wide;
}
typedef float Four __attribute__((vector_size(16)));
template <typename V> struct As;  // the same vector in other types
template <> struct As<Lanes> { typedef uint32_t Bits __attribute__((vector_size(LANES * 4))); typedef Halves Upper; };
template <> struct As<Four> {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    typedef half Upper __attribute__((vector_size(8)));
};

// Vectors of any length, in the precision of what they are stored as.
template <typename V> static inline V rounded(const float*, V x) { return x; }
template <typename V> static inline V rounded(const half*, V x) {
    typedef typename As<V>::Bits Bits;
    const Bits bits = (Bits)x, nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    return (V)(x == x ? nearest : Bits{} + 0x7fc00000);
}
template <typename V> static inline void store(float* to, V x) { memcpy(to, &x, sizeof x); }
template <typename V> static inline void store(half* to, V x) {
    const auto y = __builtin_convertvector((typename As<V>::Bits)rounded(to, x) >> 16, typename As<V>::Upper);
    memcpy(to, &y, sizeof y);
}
// The first numbers, at most LANES; those after them are 0.
template <typename T> static inline Lanes load_first(const T* x, long count) {
    if (count >= LANES)
        return load(x);
    T first[LANES] = {};
    memcpy(first, x, count * sizeof(T));
    return load(first);
}
template <typename T, typename V> static inline void store_first(T* to, V x, long count) {
    constexpr long MOST = sizeof(V) / sizeof(float);
    if (count >= MOST)
        return store(to, x);
    T first[MOST];
    store(first, x);
    memcpy(to, first, count * sizeof(T));
}

// The sum of each register: first its halves, then their halves, down to one number.
static inline Four totals(Lanes a, Lanes b, Lanes c, Lanes d) {
#ifdef __AVX512F__
#define HALVES(x, y) \
    __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) + \
        __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define QUARTERS(x, y) \
    __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) + \
        __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
    const Lanes ab = HALVES(a, b), cd = HALVES(c, d), abcd = QUARTERS(ab, cd);  // four numbers of each
    const Lanes two = abcd + __builtin_shufflevector(abcd, abcd, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    const Lanes one = two + __builtin_shufflevector(two, two, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return __builtin_shufflevector(one, one, 0, 4, 8, 12);
#else
#define QUARTERS(x) __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7)
    const Four p = QUARTERS(a), q = QUARTERS(b), r = QUARTERS(c), s = QUARTERS(d);
    const Four pq = __builtin_shufflevector(p, q, 0, 1, 4, 5) + __builtin_shufflevector(p, q, 2, 3, 6, 7);
    const Four rs = __builtin_shufflevector(r, s, 0, 1, 4, 5) + __builtin_shufflevector(r, s, 2, 3, 6, 7);
    return __builtin_shufflevector(pq, rs, 0, 2, 4, 6) + __builtin_shufflevector(pq, rs, 1, 3, 5, 7);
#endif
}
static inline float total(Lanes x) { return totals(x, x, x, x)[0]; }

// What one instruction multiplies: a register of numbers, or of pairs of bf16 where the CPU adds up their products in fp32.
template <typename T> static inline Lanes factors(const T* x) { return load(x); }
static inline Lanes add_products(Lanes sum, Lanes a, Lanes b) { return sum + a * b; }
#ifdef __AVX512BF16__
template <typename T> constexpr long STEP = LANES * sizeof(float) / sizeof(T);
static inline __m512bh factors(const half* x) { return (__m512bh)_mm512_loadu_si512(x); }
static inline Lanes add_products(Lanes sum, __m512bh a, __m512bh b) { return (Lanes)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
template <typename T> constexpr long STEP = LANES;
#endif
// The last numbers of a row, fewer than STEP, and zeros.
template <typename T> static inline auto last_factors(const T* x, long count) {
    T rest[STEP<T>] = {};
    memcpy(rest, x, count * sizeof(T));
    return factors(rest);
}

// y[m, n] = sum_k x[m, k] w[n, k] + bias[n] for M rows of x and N of w.
//
// FETCH: the next N rows of w are fetched meanwhile, which takes as long as the sums where x has few rows.
template <int M, int N, bool FETCH, typename T, typename Y>
static inline void product_of(const T* x, const T* w, const T* bias, Y* y, long width, long columns) {
    Lanes sums[M][N] = {};
    long k = 0;
    for (; k + STEP<T> <= width; k += STEP<T>) {
        decltype(factors(w)) ws[N];
        for (int n = 0; n < N; n++) {
            ws[n] = factors(w + n * width + k);
            if (FETCH)
                __builtin_prefetch(w + (n + N) * width + k);
        }
        for (int m = 0; m < M; m++) {
            const auto xs = factors(x + m * width + k);
            for (int n = 0; n < N; n++)
                sums[m][n] = add_products(sums[m][n], xs, ws[n]);
        }
    }
    if (k < width)
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++)
                sums[m][n] = add_products(sums[m][n], last_factors(x + m * width + k, width - k),
                                          last_factors(w + n * width + k, width - k));
    for (int m = 0; m < M; m++)
        if constexpr (N % 4)
            for (int n = 0; n < N; n++)
                store_first(y + m * columns + n, Four{} + total(sums[m][n]) + (bias ? load_first(bias + n, 1)[0] : 0.0f), 1);
        else
            for (int n = 0; n < N; n += 4) {
                Four sum = totals(sums[m][n], sums[m][n + 1], sums[m][n + 2], sums[m][n + 3]);
                if (const Lanes b = bias ? load_first(bias + n, 4) : Lanes{}; bias)
                    sum += __builtin_shufflevector(b, b, 0, 1, 2, 3);
                store(y + m * columns + n, sum);
            }
}

#ifdef __AVX512F__
constexpr int TILE = 6;  // rows at a time, of four registers each: as many sums as there are registers for
#else
constexpr int TILE = 3;
#endif
// f(integral_constant<rows>), for the rows that do not fill a tile; nothing for 0.
template <int M = TILE - 1, typename F> static inline void with_rows(long rows, F f) {
    if (rows == M)
        return f(std::integral_constant<int, M>{});
    if constexpr (M > 1)
        with_rows<M - 1>(rows, f);
}

// N columns of y, for all rows of x.
template <int N, typename T, typename Y>
static void columns_of(const T* x, const T* w, const T* bias, Y* y, long rows, long width, long columns) {
    long m = 0;
    for (; m + TILE <= rows; m += TILE)
        if (m == 0)
            product_of<TILE, N, true>(x, w, bias, y, width, columns);
        else
            product_of<TILE, N, false>(x + m * width, w, bias, y + m * columns, width, columns);
    x += m * width, y += m * columns;
    with_rows(rows - m, [&](auto count) { product_of<count(), N, true>(x, w, bias, y, width, columns); });
}

// Columns first to last of y [rows, columns] = x [rows, width] w' + bias.
template <typename T, typename Y>
static void some_columns(const T* x, const T* w, const T* bias, Y* y, long rows, long width, long columns, long first, long last) {
    long n = first;
    const auto bias_at = [&](long n) { return bias ? bias + n : nullptr; };
    if (rows == 1)
        for (; n + 8 <= last; n += 8)
            product_of<1, 8, true>(x, w + n * width, bias_at(n), y + n, width, columns);
    for (; n + 4 <= last; n += 4)
        columns_of<4>(x, w + n * width, bias_at(n), y + n, rows, width, columns);
    for (; n < last; n++)
        columns_of<1>(x, w + n * width, bias_at(n), y + n, rows, width, columns);
}

constexpr long COLUMNS = 96;     // that a thread takes at a time
constexpr long SMALL = 1 << 20;  // products, which take no longer than to wake other threads

template <typename T> static void product(const T* x, const T* w, const T* bias, T* y, long rows, long width, long columns) {
    // dynamic: where another program takes a core for a while, the other threads go on with its columns
#pragma omp parallel for schedule(dynamic) if (rows * width * columns > SMALL)
    for (long n = 0; n < columns; n += COLUMNS)
        some_columns(x, w, bias, y, rows, width, columns, n, n + COLUMNS < columns ? n + COLUMNS : columns);
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
    const int32_t *slots, *positions;  // of each token: its slot, and its place there
};

// p[t] = e^(s[t] - max s) for first <= t < last, 0 before and after it; returns their sum. p has room for whole registers.
static float softmax(float* p, long first, long last, long count, const Cached& c) {
    Integers lane;
    for (long i = 0; i < LANES; i++)
        lane[i] = i;
    Lanes most = Lanes{} - INFINITY, sum = {};
    for (long t = 0; t < count; t += LANES) {
        Lanes s = load(p + t) * c.scale;
        if (c.softcap)
            for (long i = 0; i < LANES; i++)
                s[i] = c.softcap * std::tanh(s[i] / c.softcap);
        const Integers place = lane + (int32_t)t;
        s = (place >= (int32_t)first) & (place < (int32_t)last) ? s : Lanes{} - INFINITY;
        most = s > most ? s : most;
        memcpy(p + t, &s, sizeof s);
    }
    float largest = most[0];
    for (long i = 1; i < LANES; i++)
        largest = most[i] > largest ? most[i] : largest;
    for (long t = 0; t < count; t += LANES) {
        const Lanes s = load(p + t), e = s == -INFINITY ? Lanes{} : exponential(s - largest);
        memcpy(p + t, &e, sizeof e);
        sum += e;
    }
    return total(sum);
}

template <typename T> struct WeightedSum {  // y[m] = factor[m] sum_t p[m, t] v[t]
    const float* p;  // [rows, stride]
    const T* v;      // [count, width]
    long stride, count, width;
    std::vector<T*> y;
    std::vector<float> factor;
};

// M rows from m on, N registers from k on; or only the `rest` last numbers, where that is not 0.
template <int M, int N, typename T> static void weighted_sum(const WeightedSum<T>& w, long m, long k, long rest) {
    Lanes sums[M][N] = {};
    const float* p = w.p + m * w.stride;
    for (long t = 0; t < w.count; t++) {
        Lanes v[N];
        for (int n = 0; n < N; n++)
            v[n] = load_first(w.v + t * w.width + k + n * LANES, rest ? rest : LANES);
        for (int i = 0; i < M; i++)
            for (int n = 0; n < N; n++)
                sums[i][n] += p[i * w.stride + t] * v[n];
    }
    for (int i = 0; i < M; i++)
        for (int n = 0; n < N; n++)
            store_first(w.y[m + i] + k + n * LANES, sums[i][n] * w.factor[m + i], rest ? rest : LANES);
}

template <int M, typename T> static void weighted_rows(const WeightedSum<T>& w, long m) {
    long k = 0;
    for (; k + 4 * LANES <= w.width; k += 4 * LANES)
        weighted_sum<M, 4>(w, m, k, 0);
    for (; k + LANES <= w.width; k += LANES)
        weighted_sum<M, 1>(w, m, k, 0);
    if (k < w.width)
        weighted_sum<M, 1>(w, m, k, w.width - k);
}

constexpr long QUERIES = 32;  // of one group of heads, about, that share the loads of their keys

struct Block {  // adjacent new tokens of a row
    long first, count;
};

// A block's queries of one group of heads.
template <typename T>
static void attend_block(const Cached& c, Block block, long group, std::vector<T>& queries, std::vector<float>& p) {
    const long ratio = c.heads / c.groups, rows = block.count * ratio, position = c.positions[block.first];
    long start = c.window && position >= c.window ? position + 1 - c.window : 0;
    start -= start % LANES;  // so a key is in the same lane, whatever else is computed
    const long count = position + block.count - start, stride = (count + LANES - 1) / LANES * LANES;
    const long cell = (c.slots[block.first] * c.groups + group) * c.length + start;
    WeightedSum<T> sum = {nullptr, (const T*)c.values + cell * c.value_width, stride, count, c.value_width, {}, {}};
    queries.resize(rows * c.width), p.resize(rows * stride);
    for (long i = 0; i < block.count; i++) {
        const long head = (block.first + i) * c.heads + group * ratio;
        memcpy(queries.data() + i * ratio * c.width, (const T*)c.q + head * c.width, ratio * c.width * sizeof(T));
        for (long j = 0; j < ratio; j++)
            sum.y.push_back((T*)c.y + (head + j) * c.value_width);
    }
    const T *keys = (const T*)c.keys + cell * c.width, *no_bias = nullptr;
    some_columns(queries.data(), keys, no_bias, p.data(), rows, c.width, stride, 0, count);
    for (long row = 0; row < rows; row++) {
        const long last = position + row / ratio + 1 - start, first = c.window && last > c.window ? last - c.window : 0;
        sum.factor.push_back(1 / softmax(p.data() + row * stride, first, last, stride, c));
    }
    sum.p = p.data();
    long m = 0;
    for (; m + TILE <= rows; m += TILE)
        weighted_rows<TILE>(sum, m);
    with_rows(rows - m, [&](auto count) { weighted_rows<count()>(sum, m); });
}

template <typename T> static void attend(const Cached& c) {
    const long most = QUERIES * c.groups > c.heads ? QUERIES * c.groups / c.heads : 1;
    std::vector<Block> blocks;
    for (long i = 0; i < c.tokens; i++) {
        const bool goes_on = i && c.slots[i] == c.slots[i - 1] && c.positions[i] == c.positions[i - 1] + 1;
        if (goes_on && blocks.back().count < most)
            blocks.back().count++;
        else
            blocks.push_back({i, 1});
    }
#pragma omp parallel if (2 * c.tokens * c.heads * c.length * c.width > SMALL)
    {
        std::vector<T> queries;
        std::vector<float> p;
#pragma omp for
        for (long i = 0; i < c.tokens * c.groups; i++) {
            const long token = i / c.groups, group = i % c.groups;
            const long cell = (c.slots[token] * c.groups + group) * c.length + c.positions[token];
            memcpy((T*)c.keys + cell * c.width, (const T*)c.k + i * c.width, c.width * sizeof(T));
            memcpy((T*)c.values + cell * c.value_width, (const T*)c.v + i * c.value_width, c.value_width * sizeof(T));
        }
#pragma omp for schedule(dynamic)
        for (long i = 0; i < (long)blocks.size() * c.groups; i++)
            attend_block<T>(c, blocks[i / c.groups], i % c.groups, queries, p);
    }
}

template <typename T> static void rms_norm(const T* x, const T* w, T* y, long rows, long width, float eps, float offset) {
    for (long row = 0; row < rows; row++, x += width, y += width) {
        Lanes squares = {};
        for (long k = 0; k < width; k += LANES)
            squares += load_first(x + k, width - k) * load_first(x + k, width - k);
        const float factor = 1 / std::sqrt(total(squares) / width + eps);
        for (long k = 0; k < width; k += LANES) {  // Llama rounds before it multiplies by the weight, Gemma (offset 1) after it
            const Lanes normed = load_first(x + k, width - k) * factor, weight = load_first(w + k, width - k) + offset;
            store_first(y + k, (offset ? normed : rounded(y, normed)) * weight, width - k);
        }
    }
}

// y = silu(a) b, or gelu(a) b with gelu by tanh.
template <typename T> static void gated(const T* a, const T* b, T* y, long count, long gelu) {
    for (long i = 0; i < count; i += LANES) {
        const Lanes x = load_first(a + i, count - i);
        const Lanes u = gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x;  // gelu(x) = x sigmoid(2 sqrt(2 / pi) (x + ...))
        const Lanes e = exponential(u < 0 ? u : -u), sigmoid = (u < 0 ? e : Lanes{} + 1.0f) / (1.0f + e);
        store_first(y + i, rounded(y, x * sigmoid) * load_first(b + i, count - i), count - i);
    }
}

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the halves of each head; cos and sin [tokens, width / 2].
template <typename T>
static void rotate(const T* x, const T* cosines, const T* sines, T* y, long tokens, long heads, long width, long stride) {
    const long n = width / 2;
    for (long t = 0; t < tokens; t++)
        for (long h = 0; h < heads; h++)
            for (long i = 0; i < n; i += LANES) {
                const T* from = x + t * stride + h * width + i;
                T* to = y + (t * heads + h) * width + i;
                const Lanes x1 = load_first(from, n - i), x2 = load_first(from + n, n - i);
                const Lanes c = load_first(cosines + t * n + i, n - i), s = load_first(sines + t * n + i, n - i);
                store_first(to, x1 * c - x2 * s, n - i);
                store_first(to + n, x2 * c + x1 * s, n - i);
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
