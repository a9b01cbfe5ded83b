// Attention of one row and one key head, by blocks of queries [n, d] with the keys [t, d] that one of them sees:
//
//     forward     S = scale q k'       P = softmax(S)    y = P v
//     backward    S and P once more    dP = g v'         dS = P (dP - rowsum(P dP)) scale
//                                      dq = dS k         dk += dS' q        dv += P' g
//
// Products multiply bf16 in pairs and add up in fp32 (vdpbf16ps); their right side is laid out in pairs first. Scores, P and
// sums are fp32, as in model/cpu_attention.py, which says the same in matrix products and is what this is held to.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "lanes.h"

using pair = uint32_t;  // two bf16

namespace {

constexpr int PANEL = 64;        // columns of a right side that lie together
constexpr int BLOCK = 48;        // queries at once, at most
constexpr int TILE = 6;          // rows of a product at once
constexpr long SCORES = 96 << 10;  // at once, about: what stays in a core's cache

// c [M, 16 N] (+)= a b, a [M, k pairs] by strides, b [k pairs, 16 N] by a stride.
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

struct Left {
    const pair* at;
    long row, step;
};

template <int N>
void rows_of(Left a, long m, const pair* b, long next, long k, float* c, long across, bool add) {
    long i = 0;
    for (; i + TILE <= m; i += TILE) tile<TILE, N>(a.at + i * a.row, a.row, a.step, b, next, k, c + i * across, across, add);
    const pair* at = a.at + i * a.row;
    float* to = c + i * across;
    switch (m - i) {
        case 5: return tile<5, N>(at, a.row, a.step, b, next, k, to, across, add);
        case 4: return tile<4, N>(at, a.row, a.step, b, next, k, to, across, add);
        case 3: return tile<3, N>(at, a.row, a.step, b, next, k, to, across, add);
        case 2: return tile<2, N>(at, a.row, a.step, b, next, k, to, across, add);
        case 1: return tile<1, N>(at, a.row, a.step, b, next, k, to, across, add);
    }
}

// c [m, n] (+)= a b; n a multiple of 16.
void product(Left a, long m, const pair* b, long next, long k, long n, float* c, long across, bool add) {
    for (long j = 0; j < n; j += PANEL) switch (std::min<long>(PANEL, n - j) / WIDE) {
            case 4: rows_of<4>(a, m, b + j, next, k, c + j, across, add); break;
            case 3: rows_of<3>(a, m, b + j, next, k, c + j, across, add); break;
            case 2: rows_of<2>(a, m, b + j, next, k, c + j, across, add); break;
            case 1: rows_of<1>(a, m, b + j, next, k, c + j, across, add); break;
        }
}

struct Rows {  // of a matrix of bf16, wherever they are
    const half* at;
    long row;
    const int* which;  // nullptr: one after another
    const half* operator[](long i) const { return at + (which ? which[i] : i) * row; }
};

// x [n, d] -> pairs of rows [n / 2, d]
void by_rows(Rows x, long n, long d, pair* to) {
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

// x [n, d] -> its transpose in pairs, in panels: [n / PANEL][d / 2, PANEL]; noughts behind n
void by_columns(Rows x, long n, long d, pair* to) {
    for (long start = 0; start < n; start += PANEL, to += PANEL * (d / 2))
        for (long i = start; i < start + PANEL; i += WIDE)
            for (long j = 0; j < d / 2; j += WIDE) {
                const __mmask16 there = first(d / 2 - j);
                __m512i some[WIDE];
                for (long m = 0; m < WIDE; m++)
                    some[m] = i + m < n ? _mm512_maskz_loadu_epi32(there, (const pair*)x[i + m] + j) : _mm512_setzero_si512();
                transpose(some);
                for (long m = 0; m < std::min<long>(WIDE, d / 2 - j); m++)
                    _mm512_storeu_si512(to + (j + m) * PANEL + i - start, some[m]);
            }
}

// p [n, t] in fp32 -> pairs of rows [n / 2, t]
void pair_up(const float* p, long n, long across, long t, pair* to) {
    for (long i = 0; i < n; i += 2, p += 2 * across, to += across)
        for (long j = 0; j < t; j += WIDE) {
            const __m512i low = _mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(p + j)));
            const __m512i high = i + 1 < n ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(_mm512_loadu_ps(p + across + j))), 16)
                                           : _mm512_setzero_si512();
            _mm512_storeu_si512(to + j, _mm512_or_si512(low, high));
        }
}

struct Span {
    long low, high;  // keys that a query sees
};

// Scores of one query -> their softmax; nought outside the span. From `from` to `to`, multiples of 16; scale > 0.
void softmax(float* s, long from, long to, Span seen, float scale) {
    const __m512 by = _mm512_set1_ps(scale * LOG2_E);
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    const auto inside = [&](long j) { return (__mmask16)(first(seen.high - j) & ~first(seen.low - j)); };
    for (long j = from; j < to; j += WIDE) most = _mm512_mask_max_ps(most, inside(j), most, _mm512_loadu_ps(s + j));
    const __m512 top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), by);
    for (long j = from; j < to; j += WIDE) {
        const __m512 e = _mm512_maskz_mov_ps(inside(j), power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + j), by, top)));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(s + j, e);
    }
    const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (long j = from; j < to; j += WIDE) _mm512_storeu_ps(s + j, _mm512_mul_ps(_mm512_loadu_ps(s + j), share));
}

// dP -> dS = P (dP - sum(P dP)) scale
void softmax_back(const float* p, float* dp, long from, long to, float scale) {
    __m512 sum = _mm512_setzero_ps();
    for (long j = from; j < to; j += WIDE) sum = _mm512_fmadd_ps(_mm512_loadu_ps(p + j), _mm512_loadu_ps(dp + j), sum);
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum)), by = _mm512_set1_ps(scale);
    for (long j = from; j < to; j += WIDE) {
        const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(dp + j), mean), by);
        _mm512_storeu_ps(dp + j, _mm512_mul_ps(_mm512_loadu_ps(p + j), x));
    }
}

void round_rows(const float* from, long n, long across, long d, half* to, long row) {
    for (long i = 0; i < n; i++)
        for (long j = 0; j < d; j += WIDE) put(to + i * row + j, _mm512_loadu_ps(from + i * across + j));
}

template <class T>
class Room {  // to work in, at the edge of a cache line; each thread keeps its own, which grows
    T* at = nullptr;
    long size = 0;

public:
    T* of(long many) {
        if (many > size) {
            std::free(at);
            size = many;
            at = (T*)std::aligned_alloc(64, (many * sizeof(T) + 63) / 64 * 64);
        }
        return at;
    }
    ~Room() { std::free(at); }
};

}  // namespace

struct Matrix {  // [rows, heads, width]
    half* at;
    long row, head;
};

struct Attention {
    Matrix q, k, v, y, g, dq;
    float *dk, *dv;  // [U, K, width], sums
    long heads, groups, width, value_width, causal, window;
    float scale;
    long pieces;
    const int* asks;      // [pieces + 1] where each piece's queries begin
    const int* begins;    // [pieces + 1] where its keys begin in `tokens`
    const int* tokens;    // [.] the keys of each piece
    const int* position;  // [N] at which of its piece's keys each query stands
};

static Span span_of(const Attention& job, long query, long t) {
    const long at = job.position[query], reach = job.window ? job.window : t;
    return {std::max(0L, at - reach + 1), job.causal ? at + 1 : std::min(t, at + reach)};
}

static long block_of(long t) {
    const long many = std::min<long>(BLOCK, SCORES / t);
    return std::max<long>(TILE, many - many % TILE);
}

// In how many parts each piece's blocks of queries are dealt out, where there are few pieces and heads.
static long parts_of(const Attention& job) {
    const long tasks = std::max(1L, job.pieces * job.groups), threads = omp_get_max_threads();
    return std::min(threads, std::max(1L, 4 * threads / tasks));
}

static Rows rows_at(const Matrix& x, long head, const int* which) { return {x.at + head * x.head, x.row, which}; }

// y = softmax(scale q k') v, of one piece and key head, every `parts`-th block of queries
static void forward(const Attention& job, long piece, long group, long part, long parts) {
    const long d = job.width, dv = job.value_width, each = job.heads / job.groups;
    const int* which = job.tokens + job.begins[piece];
    const long t = job.begins[piece + 1] - job.begins[piece], room = (t + PANEL - 1) / PANEL * PANEL;
    const long many = block_of(room);
    static thread_local Room<pair> keys_room, values_room;
    static thread_local Room<float> scores_room, out_room;
    static thread_local Room<half> weights_room;
    pair *keys = keys_room.of(room * d / 2), *values = values_room.of(room * dv / 2);
    float *s = scores_room.of(many * room), *out = out_room.of(many * dv);
    half* p = weights_room.of(many * room);
    by_columns(rows_at(job.k, group, which), t, d, keys);
    by_rows(rows_at(job.v, group, which), t, dv, values);
    std::memset(values + (t + 1) / 2 * dv, 0, sizeof(pair) * (room / 2 - (t + 1) / 2) * dv);
    for (long a = job.asks[piece] + part * many; a < job.asks[piece + 1]; a += parts * many) {
        const long n = std::min<long>(many, job.asks[piece + 1] - a);
        const long from = span_of(job, a, t).low / PANEL * PANEL, last = span_of(job, a + n - 1, t).high;
        const long to = (last + PANEL - 1) / PANEL * PANEL;
        for (long head = group * each; head < (group + 1) * each; head++) {
            const Left q = {(const pair*)(job.q.at + a * job.q.row + head * job.q.head), job.q.row / 2, 1};
            for (long j = from; j < to; j += PANEL)
                product(q, n, keys + j * (d / 2), PANEL, d / 2, PANEL, s + j, room, false);
            for (long i = 0; i < n; i++) {
                softmax(s + i * room, from, to, span_of(job, a + i, t), job.scale);
                for (long j = from; j < to; j += WIDE) put(p + i * room + j, _mm512_loadu_ps(s + i * room + j));
            }
            const Left weights = {(const pair*)(p + from), room / 2, 1};
            product(weights, n, values + from / 2 * dv, dv, (to - from) / 2, dv, out, dv, false);
            round_rows(out, n, dv, dv, job.y.at + a * job.y.row + head * job.y.head, job.y.row);
        }
    }
}

// dq of the same, and dk and dv [t, width], which are added to `sums`
static void backward(const Attention& job, long piece, long group, long part, long parts, float* sums) {
    const long d = job.width, dv = job.value_width, each = job.heads / job.groups;
    const int* which = job.tokens + job.begins[piece];
    const long t = job.begins[piece + 1] - job.begins[piece], room = (t + PANEL - 1) / PANEL * PANEL;
    const long many = block_of(room);
    static thread_local Room<pair> keys_room, values_room, rows_room, asked_room, given_room, p_room, ds_room;
    static thread_local Room<float> p_floats, ds_floats, out_room;
    static thread_local Room<half> ds_halves;
    pair *keys = keys_room.of(room * d / 2), *values = values_room.of(room * dv / 2);
    pair *rows = rows_room.of(room * d / 2);
    pair *asked = asked_room.of((many + 1) / 2 * d), *grads = given_room.of((many + 1) / 2 * dv);
    pair *p2 = p_room.of((many + 1) / 2 * room), *ds2 = ds_room.of((many + 1) / 2 * room);
    float *p = p_floats.of(many * room), *ds = ds_floats.of(many * room);
    float* out = out_room.of(many * d);
    half* ds1 = ds_halves.of(many * room);
    float *dk = sums, *dvs = dk + t * d;
    by_columns(rows_at(job.k, group, which), t, d, keys);
    by_columns(rows_at(job.v, group, which), t, dv, values);
    by_rows(rows_at(job.k, group, which), t, d, rows);
    std::memset(rows + (t + 1) / 2 * d, 0, sizeof(pair) * (room / 2 - (t + 1) / 2) * d);
    for (long a = job.asks[piece] + part * many; a < job.asks[piece + 1]; a += parts * many) {
        const long n = std::min<long>(many, job.asks[piece + 1] - a), pairs = (n + 1) / 2;
        const long from = span_of(job, a, t).low / PANEL * PANEL, last = span_of(job, a + n - 1, t).high;
        const long to = (last + PANEL - 1) / PANEL * PANEL;
        for (long head = group * each; head < (group + 1) * each; head++) {
            const half *qs = job.q.at + a * job.q.row + head * job.q.head, *gs = job.g.at + a * job.g.row + head * job.g.head;
            const Left q = {(const pair*)qs, job.q.row / 2, 1}, g = {(const pair*)gs, job.g.row / 2, 1};
            for (long j = from; j < to; j += PANEL) {
                product(q, n, keys + j * (d / 2), PANEL, d / 2, PANEL, p + j, room, false);
                product(g, n, values + j * (dv / 2), PANEL, dv / 2, PANEL, ds + j, room, false);
            }
            for (long i = 0; i < n; i++) {
                softmax(p + i * room, from, to, span_of(job, a + i, t), job.scale);
                softmax_back(p + i * room, ds + i * room, from, to, job.scale);
                for (long j = from; j < to; j += WIDE) put(ds1 + i * room + j, _mm512_loadu_ps(ds + i * room + j));
            }
            product({(const pair*)(ds1 + from), room / 2, 1}, n, rows + from / 2 * d, d, (to - from) / 2, d, out, d, false);
            round_rows(out, n, d, d, job.dq.at + a * job.dq.row + head * job.dq.head, job.dq.row);
            pair_up(p + from, n, room, to - from, p2);
            pair_up(ds + from, n, room, to - from, ds2);
            by_rows({qs, job.q.row, nullptr}, n, d, asked);
            by_rows({gs, job.g.row, nullptr}, n, dv, grads);
            product({ds2, 1, room}, last - from, asked, d, pairs, d, dk + from * d, d, true);
            product({p2, 1, room}, last - from, grads, dv, pairs, dv, dvs + from * dv, dv, true);
        }
    }
}

extern "C" {

void attend(const Attention* given) {
    const Attention& job = *given;
    const long parts = parts_of(job);
#pragma omp parallel for schedule(dynamic, 1) collapse(3)
    for (long piece = 0; piece < job.pieces; piece++)
        for (long group = 0; group < job.groups; group++)
            for (long part = 0; part < parts; part++) forward(job, piece, group, part, parts);
}

// Each piece and part has sums of its own, which are added in their order: the same comes of it whichever thread was faster.
void attend_back(const Attention* given) {
    const Attention& job = *given;
    const long d = job.width, dv = job.value_width, parts = parts_of(job), all = job.begins[job.pieces] * job.groups * (d + dv);
    std::vector<float> sums((size_t)all * parts);  // nought
    const auto mine = [&](long piece, long group, long part) {
        const long before = job.begins[piece] * job.groups + group * (job.begins[piece + 1] - job.begins[piece]);
        return sums.data() + part * all + before * (d + dv);
    };
#pragma omp parallel for schedule(dynamic, 1) collapse(3)
    for (long piece = 0; piece < job.pieces; piece++)
        for (long group = 0; group < job.groups; group++)
            for (long part = 0; part < parts; part++) backward(job, piece, group, part, parts, mine(piece, group, part));
#pragma omp parallel for
    for (long group = 0; group < job.groups; group++)
        for (long piece = 0; piece < job.pieces; piece++)
            for (long part = 0; part < parts; part++) {
                const long t = job.begins[piece + 1] - job.begins[piece];
                const float *dk = mine(piece, group, part), *dvs = dk + t * d;
                for (long i = 0; i < t; i++) {
                    const long token = job.tokens[job.begins[piece] + i];
                    float *k = job.dk + (token * job.groups + group) * d, *v = job.dv + (token * job.groups + group) * dv;
                    for (long j = 0; j < d; j++) k[j] += dk[i * d + j];
                    for (long j = 0; j < dv; j++) v[j] += dvs[i * dv + j];
                }
            }
}
}
