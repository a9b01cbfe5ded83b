// Attention of one row and one key head, by blocks of queries [n, d] with the keys [t, d] that one of them sees:
//
//     forward     S = scale q k'       P = softmax(S)    y = P v
//     backward    S and P again        dP = g v'         dS = P (dP - rowsum(P dP)) scale
//                                      dq = dS k         dk += dS' q        dv += P' g
//
// Matrix products multiply pairs of bf16 numbers and add up in fp32 (vdpbf16ps); their right operand is first rearranged into
// pairs. Scores, P and sums are fp32, as in model/layers/attention_cpu.py, the same computation by matrix products, with which
// the tests compare this file.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "lanes.h"

using pair = uint32_t;  // two bf16

namespace {

constexpr int PANEL = 64;              // columns of a right operand that are stored together
constexpr int MAX_BLOCK = 48;          // queries at a time, at most
constexpr int TILE = 6;                // rows of a product at a time
constexpr long MAX_SCORES = 96 << 10;  // at a time, about: what stays in a core's cache

// c [M, 16 N] (+)= a b; a [M, k pairs] with strides `row` and `step`, b [k pairs, 16 N] with stride `next`, c with `across`.
template <int M, int N>
inline void tile(const pair* a, long row, long step, const pair* b, long next, long k, float* c, long across, bool add) {
    __m512 sum[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sum[i][j] = add ? _mm512_loadu_ps(c + i * across + WIDE * j) : _mm512_setzero_ps();
    for (long p = 0; p < k; p++) {
        __m512bh right[N];
        for (int j = 0; j < N; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + p * next + WIDE * j);
        for (int i = 0; i < M; i++) {
            const __m512bh left = (__m512bh)_mm512_set1_epi32(a[i * row + p * step]);
            for (int j = 0; j < N; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) _mm512_storeu_ps(c + i * across + WIDE * j, sum[i][j]);
}

struct Left {  // the left operand of a product: pairs of bf16, and their strides
    const pair* data;
    long row, step;
};

template <int N>
void product_panel(Left a, long m, const pair* b, long next, long k, float* c, long across, bool add) {
    long i = 0;
    for (; i + TILE <= m; i += TILE) tile<TILE, N>(a.data + i * a.row, a.row, a.step, b, next, k, c + i * across, across, add);
    const pair* from = a.data + i * a.row;
    float* to = c + i * across;
    switch (m - i) {  // the rows that do not fill a tile
        case 5: return tile<5, N>(from, a.row, a.step, b, next, k, to, across, add);
        case 4: return tile<4, N>(from, a.row, a.step, b, next, k, to, across, add);
        case 3: return tile<3, N>(from, a.row, a.step, b, next, k, to, across, add);
        case 2: return tile<2, N>(from, a.row, a.step, b, next, k, to, across, add);
        case 1: return tile<1, N>(from, a.row, a.step, b, next, k, to, across, add);
    }
}

// c [m, n] (+)= a b; n a multiple of 16.
void product(Left a, long m, const pair* b, long next, long k, long n, float* c, long across, bool add) {
    for (long j = 0; j < n; j += PANEL) switch (std::min<long>(PANEL, n - j) / WIDE) {
            case 4: product_panel<4>(a, m, b + j, next, k, c + j, across, add); break;
            case 3: product_panel<3>(a, m, b + j, next, k, c + j, across, add); break;
            case 2: product_panel<2>(a, m, b + j, next, k, c + j, across, add); break;
            case 1: product_panel<1>(a, m, b + j, next, k, c + j, across, add); break;
        }
}

struct Rows {  // some rows of a bf16 matrix
    const half* data;
    long row;          // stride
    const int* index;  // their numbers; nullptr: consecutive rows
    const half* operator[](long i) const { return data + (index ? index[i] : i) * row; }
};

// x [n, d] -> pairs of rows [n / 2, d]
void pair_rows(Rows x, long n, long d, pair* to) {
    for (long i = 0; i < n; i += 2, to += d)
        for (long j = 0; j < d; j += WIDE) {
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x[i] + j)));
            const __m512i high = i + 1 < n
                ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x[i + 1] + j))), 16)
                : _mm512_setzero_si512();
            _mm512_storeu_si512(to + j, _mm512_or_si512(low, high));
        }
}

// 16 registers of 16 pairs -> their transpose
inline void transpose(__m512i x[WIDE]) {
    __m512i y[WIDE];
    for (int i = 0; i < WIDE; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < WIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < WIDE; i += 8)
        for (int j = 0; j < 4; j++) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

// x [n, d] -> its transpose in pairs, in panels: [n / PANEL][d / 2, PANEL]; zeros after n
void pair_columns(Rows x, long n, long d, pair* to) {
    for (long start = 0; start < n; start += PANEL, to += PANEL * (d / 2))
        for (long i = start; i < start + PANEL; i += WIDE)
            for (long j = 0; j < d / 2; j += WIDE) {
                const __mmask16 valid = first(d / 2 - j);
                __m512i square[WIDE];
                for (long m = 0; m < WIDE; m++)
                    square[m] = i + m < n ? _mm512_maskz_loadu_epi32(valid, (const pair*)x[i + m] + j) : _mm512_setzero_si512();
                transpose(square);
                for (long m = 0; m < std::min<long>(WIDE, d / 2 - j); m++)
                    _mm512_storeu_si512(to + (j + m) * PANEL + i - start, square[m]);
            }
}

// p [n, t] in fp32 -> pairs of rows [n / 2, t]
void pair_floats(const float* p, long n, long across, long t, pair* to) {
    for (long i = 0; i < n; i += 2, p += 2 * across, to += across)
        for (long j = 0; j < t; j += WIDE) {
            const __m512i low = _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(p + j)));
            const __m512i high = i + 1 < n ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(p + across + j))), 16)
                                           : _mm512_setzero_si512();
            _mm512_storeu_si512(to + j, _mm512_or_si512(low, high));
        }
}

struct Span {
    long low, high;  // the keys that a query attends to, [low, high)
};

// The scores of one query -> their softmax; zero outside the span. From `from` to `to`, multiples of 16; scale > 0.
void softmax(float* s, long from, long to, Span visible, float scale) {
    const __m512 factor = _mm512_set1_ps(scale * LOG2_E);  // powers of two, not of e
    __m512 lane_max = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    const auto inside = [&](long j) { return (__mmask16)(first(visible.high - j) & ~first(visible.low - j)); };
    for (long j = from; j < to; j += WIDE)
        lane_max = _mm512_mask_max_ps(lane_max, inside(j), lane_max, _mm512_loadu_ps(s + j));
    const __m512 max = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(lane_max)), factor);
    for (long j = from; j < to; j += WIDE) {
        const __m512 e = _mm512_maskz_mov_ps(inside(j), power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + j), factor, max)));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(s + j, e);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (long j = from; j < to; j += WIDE) _mm512_storeu_ps(s + j, _mm512_mul_ps(_mm512_loadu_ps(s + j), inverse));
}

// dP -> dS = P (dP - sum(P dP)) scale
void softmax_backward(const float* p, float* dp, long from, long to, float scale) {
    __m512 sum = _mm512_setzero_ps();
    for (long j = from; j < to; j += WIDE) sum = _mm512_fmadd_ps(_mm512_loadu_ps(p + j), _mm512_loadu_ps(dp + j), sum);
    const __m512 total = _mm512_set1_ps(_mm512_reduce_add_ps(sum)), factor = _mm512_set1_ps(scale);
    for (long j = from; j < to; j += WIDE) {
        const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(dp + j), total), factor);
        _mm512_storeu_ps(dp + j, _mm512_mul_ps(_mm512_loadu_ps(p + j), x));
    }
}

void round_rows(const float* from, long n, long across, long d, half* to, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < d; j += WIDE) store(to + i * row + j, _mm512_loadu_ps(from + i * across + j));
}

template <class T>
class Buffer {  // working memory, aligned to cache lines; each thread reuses its own, which only grows
    T* data = nullptr;
    long size = 0;

public:
    T* of(long count) {
        if (count > size) {
            std::free(data);
            size = count;
            data = (T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        }
        return data;
    }
    ~Buffer() { std::free(data); }
};

}  // namespace

struct Matrix {  // bf16 [rows, heads, width]
    half* data;
    long row, head;  // strides
};

struct Attention {
    Matrix q, k, v, y, g, dq;
    float *dk, *dv;  // [U, K, width], sums
    long heads, groups, width, value_width, causal, window;  // groups: of heads that share a key head
    float scale;
    long rows;
    const int* query_bounds;     // [rows + 1] where each row's queries begin
    const int* key_bounds;       // [rows + 1] where its keys begin in key_tokens
    const int* key_tokens;       // [.] the tokens that are the keys of each row
    const int* query_positions;  // [N] at which of its row's keys each query is
};

static Span span_of(const Attention& job, long query, long t) {
    const long position = job.query_positions[query], reach = job.window ? job.window : t;
    return {std::max(0L, position - reach + 1), job.causal ? position + 1 : std::min(t, position + reach)};
}

// How many queries are computed at a time for a row of t keys: a multiple of TILE.
static long block_size(long t) {
    const long block = std::min<long>(MAX_BLOCK, MAX_SCORES / t);
    return std::max<long>(TILE, block - block % TILE);
}

// Into how many parts each row's blocks are divided, so that all threads have work where there are few rows and heads.
static long num_parts(const Attention& job) {
    const long tasks = std::max(1L, job.rows * job.groups), threads = omp_get_max_threads();
    return std::min(threads, std::max(1L, 4 * threads / tasks));
}

static Rows rows_at(const Matrix& x, long head, const int* index) { return {x.data + head * x.head, x.row, index}; }

// y = softmax(scale q k') v of one row and key head, for every `parts`-th block of its queries
static void forward(const Attention& job, long row, long group, long part, long parts) {
    const long d = job.width, dv = job.value_width, group_size = job.heads / job.groups;
    const int* tokens = job.key_tokens + job.key_bounds[row];
    const long t = job.key_bounds[row + 1] - job.key_bounds[row], padded = (t + PANEL - 1) / PANEL * PANEL;
    const long block = block_size(padded);
    static thread_local Buffer<pair> keys_buffer, values_buffer;
    static thread_local Buffer<float> scores_buffer, out_buffer;
    static thread_local Buffer<half> weights_buffer;
    pair *keys = keys_buffer.of(padded * d / 2), *values = values_buffer.of(padded * dv / 2);
    float *s = scores_buffer.of(block * padded), *out = out_buffer.of(block * dv);
    half* p = weights_buffer.of(block * padded);
    pair_columns(rows_at(job.k, group, tokens), t, d, keys);
    pair_rows(rows_at(job.v, group, tokens), t, dv, values);
    std::memset(values + (t + 1) / 2 * dv, 0, sizeof(pair) * (padded / 2 - (t + 1) / 2) * dv);
    for (long a = job.query_bounds[row] + part * block; a < job.query_bounds[row + 1]; a += parts * block) {
        const long n = std::min<long>(block, job.query_bounds[row + 1] - a);
        const long from = span_of(job, a, t).low / PANEL * PANEL, last = span_of(job, a + n - 1, t).high;
        const long to = (last + PANEL - 1) / PANEL * PANEL;
        for (long head = group * group_size; head < (group + 1) * group_size; head++) {
            const Left q = {(const pair*)(job.q.data + a * job.q.row + head * job.q.head), job.q.row / 2, 1};
            for (long j = from; j < to; j += PANEL)
                product(q, n, keys + j * (d / 2), PANEL, d / 2, PANEL, s + j, padded, false);
            for (long i = 0; i < n; i++) {
                softmax(s + i * padded, from, to, span_of(job, a + i, t), job.scale);
                for (long j = from; j < to; j += WIDE) store(p + i * padded + j, _mm512_loadu_ps(s + i * padded + j));
            }
            const Left weights = {(const pair*)(p + from), padded / 2, 1};
            product(weights, n, values + from / 2 * dv, dv, (to - from) / 2, dv, out, dv, false);
            round_rows(out, n, dv, dv, job.y.data + a * job.y.row + head * job.y.head, job.y.row);
        }
    }
}

// dq of the same; dk and dv [t, width] are added to `sums`
static void backward(const Attention& job, long row, long group, long part, long parts, float* sums) {
    const long d = job.width, dv = job.value_width, group_size = job.heads / job.groups;
    const int* tokens = job.key_tokens + job.key_bounds[row];
    const long t = job.key_bounds[row + 1] - job.key_bounds[row], padded = (t + PANEL - 1) / PANEL * PANEL;
    const long block = block_size(padded);
    static thread_local Buffer<pair> keys_buffer, values_buffer, rows_buffer, queries_buffer, grads_buffer, p_pairs_buffer, ds_pairs_buffer;
    static thread_local Buffer<float> p_buffer, ds_buffer, out_buffer;
    static thread_local Buffer<half> ds_half_buffer;
    pair *keys = keys_buffer.of(padded * d / 2), *values = values_buffer.of(padded * dv / 2);
    pair *key_rows = rows_buffer.of(padded * d / 2);
    pair *queries = queries_buffer.of((block + 1) / 2 * d), *grads = grads_buffer.of((block + 1) / 2 * dv);
    pair *p_pairs = p_pairs_buffer.of((block + 1) / 2 * padded), *ds_pairs = ds_pairs_buffer.of((block + 1) / 2 * padded);
    float *p = p_buffer.of(block * padded), *ds = ds_buffer.of(block * padded);
    float* out = out_buffer.of(block * d);
    half* ds_half = ds_half_buffer.of(block * padded);
    float *dk = sums, *dvs = dk + t * d;
    pair_columns(rows_at(job.k, group, tokens), t, d, keys);
    pair_columns(rows_at(job.v, group, tokens), t, dv, values);
    pair_rows(rows_at(job.k, group, tokens), t, d, key_rows);
    std::memset(key_rows + (t + 1) / 2 * d, 0, sizeof(pair) * (padded / 2 - (t + 1) / 2) * d);
    for (long a = job.query_bounds[row] + part * block; a < job.query_bounds[row + 1]; a += parts * block) {
        const long n = std::min<long>(block, job.query_bounds[row + 1] - a), pairs = (n + 1) / 2;
        const long from = span_of(job, a, t).low / PANEL * PANEL, last = span_of(job, a + n - 1, t).high;
        const long to = (last + PANEL - 1) / PANEL * PANEL;
        for (long head = group * group_size; head < (group + 1) * group_size; head++) {
            const half *qs = job.q.data + a * job.q.row + head * job.q.head, *gs = job.g.data + a * job.g.row + head * job.g.head;
            const Left q = {(const pair*)qs, job.q.row / 2, 1}, g = {(const pair*)gs, job.g.row / 2, 1};
            for (long j = from; j < to; j += PANEL) {
                product(q, n, keys + j * (d / 2), PANEL, d / 2, PANEL, p + j, padded, false);
                product(g, n, values + j * (dv / 2), PANEL, dv / 2, PANEL, ds + j, padded, false);
            }
            for (long i = 0; i < n; i++) {
                softmax(p + i * padded, from, to, span_of(job, a + i, t), job.scale);
                softmax_backward(p + i * padded, ds + i * padded, from, to, job.scale);
                for (long j = from; j < to; j += WIDE) store(ds_half + i * padded + j, _mm512_loadu_ps(ds + i * padded + j));
            }
            product({(const pair*)(ds_half + from), padded / 2, 1}, n, key_rows + from / 2 * d, d, (to - from) / 2, d, out, d, false);
            round_rows(out, n, d, d, job.dq.data + a * job.dq.row + head * job.dq.head, job.dq.row);
            pair_floats(p + from, n, padded, to - from, p_pairs);
            pair_floats(ds + from, n, padded, to - from, ds_pairs);
            pair_rows({qs, job.q.row, nullptr}, n, d, queries);
            pair_rows({gs, job.g.row, nullptr}, n, dv, grads);
            product({ds_pairs, 1, padded}, last - from, queries, d, pairs, d, dk + from * d, d, true);
            product({p_pairs, 1, padded}, last - from, grads, dv, pairs, dv, dvs + from * dv, dv, true);
        }
    }
}

extern "C" {

void attend(const Attention* pointer) {
    const Attention& job = *pointer;
    const long parts = num_parts(job);
#pragma omp parallel for schedule(dynamic, 1) collapse(3)
    for (long row = 0; row < job.rows; row++)
        for (long group = 0; group < job.groups; group++)
            for (long part = 0; part < parts; part++) forward(job, row, group, part, parts);
}

// Each row and part has sums of its own, which are added in a fixed order: the result does not depend on which thread is faster.
void attend_backward(const Attention* pointer) {
    const Attention& job = *pointer;
    const long d = job.width, dv = job.value_width, parts = num_parts(job), all = job.key_bounds[job.rows] * job.groups * (d + dv);
    std::vector<float> sums((size_t)all * parts);  // zeros
    const auto sums_of = [&](long row, long group, long part) {
        const long before = job.key_bounds[row] * job.groups + group * (job.key_bounds[row + 1] - job.key_bounds[row]);
        return sums.data() + part * all + before * (d + dv);
    };
#pragma omp parallel for schedule(dynamic, 1) collapse(3)
    for (long row = 0; row < job.rows; row++)
        for (long group = 0; group < job.groups; group++)
            for (long part = 0; part < parts; part++) backward(job, row, group, part, parts, sums_of(row, group, part));
#pragma omp parallel for
    for (long group = 0; group < job.groups; group++)
        for (long row = 0; row < job.rows; row++)
            for (long part = 0; part < parts; part++) {
                const long t = job.key_bounds[row + 1] - job.key_bounds[row];
                const float *dk = sums_of(row, group, part), *dvs = dk + t * d;
                for (long i = 0; i < t; i++) {
                    const long token = job.key_tokens[job.key_bounds[row] + i];
                    float *k = job.dk + (token * job.groups + group) * d, *v = job.dv + (token * job.groups + group) * dv;
                    for (long j = 0; j < d; j++) k[j] += dk[i * d + j];
                    for (long j = 0; j < dv; j++) v[j] += dvs[i * dv + j];
                }
            }
}
}
