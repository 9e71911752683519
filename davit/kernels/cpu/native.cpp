// What stands between the matrix products of a block, on the CPU: each in one pass over maps that lie channels last.
//
// Every function takes float32 or bfloat16 (`type` 0 or 1) and computes in float32. Work is cut the same way whatever
// the number of threads, and sums over parts are added in a fixed order, so results do not depend on it. Channels, and
// channels of a head, are multiples of 16: `davit/kernels/cpu/native.py` asks for nothing else, and holds the memory.
//
// Built once for AVX2 and once for AVX-512 by setup.py; OpenMP's functions are those that PyTorch has loaded.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __AVX512F__
constexpr int VL = 16;    // numbers in a vector
constexpr int ROWS = 7;   // of a tile in registers; 7 x 4 vectors of 32 (a window of 7 x 7 has seven such strips)
constexpr int ACROSS = 4; // vectors of a tile
#else
constexpr int VL = 8;
constexpr int ROWS = 4; // 4 x 2 of 16
constexpr int ACROSS = 2;
#endif

typedef int64_t size;
typedef float vfloat __attribute__((vector_size(4 * VL)));
typedef int32_t vint __attribute__((vector_size(4 * VL)));
typedef uint32_t vword __attribute__((vector_size(4 * VL)));
typedef uint16_t vhalf __attribute__((vector_size(2 * VL)));
struct bfloat16 {
    uint16_t bits;
};

// --- vectors ---

INLINE vfloat splat(float x) { return x - vfloat{}; }

INLINE vfloat load(const float *p) {
    vfloat x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE vfloat load(const bfloat16 *p) {
    vhalf half;
    memcpy(&half, p, sizeof half);
    vword word = __builtin_convertvector(half, vword) << 16;
    vfloat x;
    memcpy(&x, &word, sizeof x);
    return x;
}

INLINE void store(float *p, vfloat x) { memcpy(p, &x, sizeof x); }

INLINE void store(bfloat16 *p, vfloat x) { // to the nearest, of two the even one
    vword word;
    memcpy(&word, &x, sizeof word);
    word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    word = x != x ? vword{} + 0x7FC0 : word;
    vhalf half = __builtin_convertvector(word, vhalf);
    memcpy(p, &half, sizeof half);
}

INLINE vfloat store_rounded(float *p, vfloat x) { return store(p, x), x; }

INLINE vfloat store_rounded(bfloat16 *p, vfloat x) { return store(p, x), load(p); }

template <int STEP> INLINE vint swapped() { // each element's index, with that STEP away
    vint index;
    UNROLL
    for (int i = 0; i < VL; i++)
        index[i] = i ^ STEP;
    return index;
}

INLINE float sum(vfloat x) {
    if (VL == 16)
        x += __builtin_shuffle(x, swapped<VL / 2>());
    x += __builtin_shuffle(x, swapped<4>());
    x += __builtin_shuffle(x, swapped<2>());
    return x[0] + x[1];
}

INLINE vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }

INLINE float largest(vfloat x) {
    if (VL == 16)
        x = larger(x, __builtin_shuffle(x, swapped<VL / 2>()));
    x = larger(x, __builtin_shuffle(x, swapped<4>()));
    x = larger(x, __builtin_shuffle(x, swapped<2>()));
    return x[0] > x[1] ? x[0] : x[1];
}

// e^x of x <= 0, within 2 units of the last place; below -87 that of -87. Polynomial of Cephes' expf.
INLINE vfloat exponential(vfloat x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    vfloat n = x * 1.44269504088896341f + 12582912.0f; // the nearest integer, in the last bits
    vint power;
    memcpy(&power, &n, sizeof power);
    power = (power + (127 - 0x4B400000)) << 23;
    n -= 12582912.0f;
    vfloat f = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    vfloat p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    vfloat two_n;
    memcpy(&two_n, &power, sizeof two_n);
    return (p * f * f + f + 1.0f) * two_n;
}

// The normal distribution at x and its density: exact GELU is x times the first. For x < 0 the density times a
// polynomial in 1 / (1 + 0.21 |x|), within 2e-7 of itself (tests/kernels/test_native.py fits it again).
INLINE void normal(vfloat x, vfloat &below, vfloat &density) {
    vfloat away = x < 0.0f ? -x : x;
    vfloat e = away > 13.1f ? vfloat{} : exponential(-0.5f * away * away);
    vfloat t = 1.0f / (0.21f * away + 1.0f);
    vfloat p = splat(-0.07165630161762238f);
    p = p * t + 0.2835886776447296f;
    p = p * t - 0.33025380969047546f;
    p = p * t + 0.3494017422199249f;
    p = p * t - 0.0939258486032486f;
    p = p * t + 0.12487304955720901f;
    p = p * t + 0.069192074239254f;
    p = p * t + 0.08506887406110764f;
    p = p * t + 0.08371157199144363f;
    vfloat tail = p * t * e;
    below = x < 0.0f ? tail : 1.0f - tail;
    density = e * 0.3989422804014327f;
}

template <int STEP> INLINE void exchange(vfloat *rows) {
    vint low, high;
    UNROLL
    for (int i = 0; i < VL; i++) {
        low[i] = i & STEP ? VL + i - STEP : i;
        high[i] = i & STEP ? VL + i : i + STEP;
    }
    UNROLL
    for (int i = 0; i < VL; i++)
        if (!(i & STEP)) {
            vfloat a = rows[i], b = rows[i + STEP];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + STEP] = __builtin_shuffle(a, b, high);
        }
}

// out[c][n] = x[n][c], of n_rows x columns numbers; both multiples of VL.
INLINE void transpose(const float *x, size columns, size n_rows, float *out) {
    for (size n = 0; n < n_rows; n += VL)
        for (size c = 0; c < columns; c += VL) {
            vfloat rows[VL];
            UNROLL
            for (int i = 0; i < VL; i++)
                rows[i] = load(x + (n + i) * columns + c);
            if (VL == 16)
                exchange<VL / 2>(rows);
            exchange<4>(rows);
            exchange<2>(rows);
            exchange<1>(rows);
            UNROLL
            for (int i = 0; i < VL; i++)
                store(out + (c + i) * n_rows + n, rows[i]);
        }
}

// --- products of small matrices in the cache ---

// out[i][c] (+)= sum over k of x[i * step_i + k * step_k] * y[k][c], a tile of R rows and V vectors in registers.
template <int R, int V, bool ADD>
INLINE void tile(const float *x, size step_i, size step_k, const float *y, size width, size K, float *out,
                 size out_width) {
    vfloat total[R][V];
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int v = 0; v < V; v++)
            total[i][v] = ADD ? load(out + i * out_width + v * VL) : vfloat{};
    }
    for (size k = 0; k < K; k++) {
        vfloat row[V];
        UNROLL
        for (int v = 0; v < V; v++)
            row[v] = load(y + k * width + v * VL);
        UNROLL
        for (int i = 0; i < R; i++) {
            vfloat a = splat(x[i * step_i + k * step_k]);
            UNROLL
            for (int v = 0; v < V; v++)
                total[i][v] += a * row[v];
        }
    }
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int v = 0; v < V; v++)
            store(out + i * out_width + v * VL, total[i][v]);
    }
}

template <int R, int V, bool ADD>
INLINE void tile_of(size rows, const float *x, size step_i, size step_k, const float *y, size width, size K,
                    float *out, size out_width) {
    if (rows == R)
        tile<R, V, ADD>(x, step_i, step_k, y, width, K, out, out_width);
    else if constexpr (R > 1)
        tile_of<R - 1, V, ADD>(rows, x, step_i, step_k, y, width, K, out, out_width);
}

template <int V, bool ADD>
static void strip(const float *x, size step_i, size step_k, const float *y, size width, size I, size K, float *out,
                  size out_width) {
    size tiles = (I + ROWS - 1) / ROWS, done = 0;
    for (size t = 0; t < tiles; t++) { // as even as can be: a tile of one row waits for every sum
        size rows = (I - done + tiles - t - 1) / (tiles - t);
        tile_of<ROWS, V, ADD>(rows, x + done * step_i, step_i, step_k, y, width, K, out + done * out_width, out_width);
        done += rows;
    }
}

// The same for I x J numbers, J a multiple of VL.
template <bool ADD = false>
static void product(const float *x, size step_i, size step_k, const float *y, size width, size I, size K, size J,
                    float *out, size out_width) {
    size j = 0;
    for (; j + ACROSS * VL <= J; j += ACROSS * VL)
        strip<ACROSS, ADD>(x, step_i, step_k, y + j, width, I, K, out + j, out_width);
    for (; j + 2 * VL <= J; j += 2 * VL)
        strip<2, ADD>(x, step_i, step_k, y + j, width, I, K, out + j, out_width);
    for (; j < J; j += VL)
        strip<1, ADD>(x, step_i, step_k, y + j, width, I, K, out + j, out_width);
}

// Each row's softmax, of its first N numbers; behind them 0, up to `width`, which is less than a vector away.
INLINE void softmax(float *x, size rows, size N, size width) {
    const vint counts = swapped<0>() < (int)(N - (width - VL)); // in the last vector
    const vfloat nothing = splat(-INFINITY);
    for (size i = 0; i < rows; i++, x += width) {
        vfloat last = counts ? load(x + width - VL) : nothing, most = last;
        for (size n = 0; n < width - VL; n += VL)
            most = larger(load(x + n), most);
        float top = largest(most);
        last = counts ? exponential(last - top) : vfloat{};
        vfloat total = last;
        for (size n = 0; n < width - VL; n += VL) {
            vfloat e = exponential(load(x + n) - top);
            store(x + n, e);
            total += e;
        }
        float scale = 1.0f / sum(total);
        for (size n = 0; n < width - VL; n += VL)
            store(x + n, load(x + n) * scale);
        store(x + width - VL, last * scale);
    }
}

// From the gradient of a softmax's result that of its input, times `scale`, in place.
INLINE void softmax_backward(float *grad, const float *weight, size rows, size width, float scale) {
    for (size i = 0; i < rows; i++, grad += width, weight += width) {
        vfloat dot = {};
        for (size n = 0; n < width; n += VL)
            dot += load(grad + n) * load(weight + n);
        float mean = sum(dot);
        for (size n = 0; n < width; n += VL)
            store(grad + n, load(weight + n) * (load(grad + n) - mean) * scale);
    }
}

struct Scratch { // a thread's own memory, handed out in pieces
    char *first, *next;
    explicit Scratch(size floats)
        : first((char *)aligned_alloc(64, 4 * ((floats + 15) / 16 * 16 + 256))), next(first) {}
    ~Scratch() { free(first); }
    float *take(size floats) {
        float *p = (float *)next;
        next += 4 * ((floats + 15) / 16 * 16);
        return p;
    }
};

INLINE size least(size a, size b) { return a < b ? a : b; }

// --- position encoding: y = x + depthwise 3x3 convolution of x, and LayerNorm(y) ---

struct Norm {
    const float *scale, *shift; // of each channel
    float eps;
    float *mean, *rstd; // of each position, where asked for
};

// Of one row's columns [first, last): y, also kept in float32 as `kept`.
template <class T>
INLINE void encode_row(const T *x, const float *weight, const float *bias, T *y, float *kept, size h, size H, size W,
                       size C, size first, size last) {
    const T *above = h > 0 ? x - W * C : nullptr, *below = h + 1 < H ? x + W * C : nullptr;
    for (size c = 0; c < C; c += VL) {
        vfloat k[9];
        UNROLL
        for (int i = 0; i < 9; i++)
            k[i] = load(weight + i * C + c);
        vfloat b = load(bias + c);
        // a column adds to the results on its right (`soon`), at its place (`now`) and on its left
        vfloat now = {}, soon = {};
        for (size w = first > 0 ? first - 1 : 0; w <= last; w++) {
            vfloat top = {}, mid = {}, low = {};
            if (w < W) {
                if (above)
                    top = load(above + w * C + c);
                mid = load(x + w * C + c);
                if (below)
                    low = load(below + w * C + c);
            }
            if (w > first) {
                vfloat out = now + (k[2] * top + k[5] * mid + k[8] * low);
                out = store_rounded(y + (w - 1) * C + c, out);
                if (kept)
                    store(kept + (w - 1 - first) * C + c, out);
            }
            now = soon + ((b + mid) + (k[1] * top + k[4] * mid + k[7] * low));
            soon = k[0] * top + k[3] * mid + k[6] * low;
        }
    }
}

template <class T>
INLINE void norm_row(const float *x, const Norm &norm, T *out, size position, size positions, size C) {
    for (size n = 0; n < positions; n++, x += C, out += C) {
        vfloat total = {}, square = {};
        for (size c = 0; c < C; c += VL)
            total += load(x + c);
        float mean = sum(total) / C;
        for (size c = 0; c < C; c += VL)
            square += (load(x + c) - mean) * (load(x + c) - mean);
        float rstd = 1.0f / sqrtf(sum(square) / C + norm.eps);
        for (size c = 0; c < C; c += VL)
            store(out + c, (load(x + c) - mean) * rstd * load(norm.scale + c) + load(norm.shift + c));
        if (norm.mean)
            norm.mean[position + n] = mean, norm.rstd[position + n] = rstd;
    }
}

template <class T, class N>
static void encode(const T *x, const float *weight, const float *bias, const Norm &norm, T *y, N *normed, size B,
                   size H, size W, size C, int threads) {
    size part = least(W, C < 4096 ? 4096 / C : 1); // columns whose float32 copy stays in the nearest cache
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(part * C);
        float *kept = normed ? scratch.take(part * C) : nullptr;
#pragma omp for schedule(static)
        for (size row = 0; row < B * H; row++)
            for (size first = 0; first < W; first += part) {
                size last = least(first + part, W), at = row * W * C;
                encode_row(x + at, weight, bias, y + at, kept, row % H, H, W, C, first, last);
                if (normed)
                    norm_row(kept, norm, normed + at + first * C, row * W + first, last - first, C);
            }
    }
}

// Gradients of the 9 weights and the bias of each channel, one part of (10, C) for each of `parts` bands of rows.
template <class T>
static void encode_weights(const T *grad, const T *x, float *out, size parts, size B, size H, size W, size C,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++)
        for (size c = 0; c < C; c += VL) {
            vfloat total[9] = {}, of_bias = {};
            for (size row = B * H * p / parts; row < B * H * (p + 1) / parts; row++) {
                const T *g = grad + row * W * C + c, *mid = x + row * W * C + c;
                size h = row % H;
                vfloat left = {}, here = load(g), right; // the gradients beside a column
                for (size w = 0; w < W; w++) {
                    right = w + 1 < W ? load(g + (w + 1) * C) : vfloat{};
                    of_bias += here;
                    vfloat m = load(mid + w * C);
                    total[3] += right * m, total[4] += here * m, total[5] += left * m;
                    if (h > 0) {
                        vfloat t = load(mid + (w - W) * C);
                        total[0] += right * t, total[1] += here * t, total[2] += left * t;
                    }
                    if (h + 1 < H) {
                        vfloat l = load(mid + (w + W) * C);
                        total[6] += right * l, total[7] += here * l, total[8] += left * l;
                    }
                    left = here, here = right;
                }
            }
            UNROLL
            for (int i = 0; i < 9; i++)
                store(out + (p * 10 + i) * C + c, total[i]);
            store(out + (p * 10 + 9) * C + c, of_bias);
        }
}

// --- window attention, from the map of q, k and v (B, H, W, 3 C) to (B, H, W, C) ---

struct Map {
    size B, H, W, C, G, window, rows, columns; // the last two of windows
    Map(size B, size H, size W, size C, size G, size window)
        : B(B), H(H), W(W), C(C), G(G), window(window), rows((H + window - 1) / window),
          columns((W + window - 1) / window) {}
    size windows() const { return B * rows * columns; }
};

// Where the positions of window m are in the map, in units of positions; -1 outside it.
INLINE void locate(const Map &map, size m, size *at) {
    size column = m % map.columns, row = m / map.columns % map.rows, b = m / map.columns / map.rows;
    for (size h = row * map.window; h < (row + 1) * map.window; h++)
        for (size w = column * map.window; w < (column + 1) * map.window; w++)
            *at++ = h < map.H && w < map.W ? (b * map.H + h) * map.W + w : -1;
}

// A tile (N, D) of a map with `width` channels; outside the map that of `fill`, or zeros.
template <class T>
INLINE void gather(const T *from, const T *fill, size width, const size *at, size N, size D, float scale, float *to) {
    for (size n = 0; n < N; n++) {
        const T *p = at[n] >= 0 ? from + at[n] * width : fill;
        if (p)
            for (size d = 0; d < D; d += VL) {
                store(to + n * D + d, load(p + d) * scale);
                __builtin_prefetch(p + D + d); // of the next head, which is the next task
            }
        else
            memset(to + n * D, 0, 4 * D);
    }
}

template <class T> INLINE void scatter(const float *from, const size *at, size N, size D, size width, T *to) {
    for (size n = 0; n < N; n++)
        if (at[n] >= 0)
            for (size d = 0; d < D; d += VL)
                store(to + at[n] * width + d, load(from + n * D + d));
}

template <class T>
static void window_attention(const T *qkv, const T *bias, T *out, const Map &map, float scale, int threads) {
    size C = map.C, D = C / map.G, N = map.window * map.window, NP = (N + VL - 1) / VL * VL;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(5 * NP * D + N * NP + 2 * NP);
        float *q = scratch.take(N * D), *k = scratch.take(NP * D), *v = scratch.take(N * D), *x = scratch.take(N * D);
        float *k_turned = scratch.take(D * NP), *attention = scratch.take(N * NP);
        size *at = (size *)scratch.take(2 * N);
        memset(k, 0, 4 * NP * D);
#pragma omp for schedule(static)
        for (size task = 0; task < map.windows() * map.G; task++) {
            size g = task % map.G * D;
            locate(map, task / map.G, at);
            gather(qkv + g, bias ? bias + g : nullptr, 3 * C, at, N, D, scale, q);
            gather(qkv + C + g, bias ? bias + C + g : nullptr, 3 * C, at, N, D, 1.0f, k);
            gather(qkv + 2 * C + g, bias ? bias + 2 * C + g : nullptr, 3 * C, at, N, D, 1.0f, v);
            transpose(k, D, NP, k_turned);
            product(q, D, 1, k_turned, NP, N, D, NP, attention, NP);
            softmax(attention, N, N, NP);
            product(attention, NP, 1, v, D, N, N, D, x, D);
            scatter(x, at, N, D, C, out + g);
        }
    }
}

// The gradient of the map, and for each window that of the k and v of its padded positions, (windows, 2 C).
template <class T>
static void window_attention_backward(const T *grad, const T *qkv, const T *bias, T *out, float *of_fill,
                                      const Map &map, float scale, int threads) {
    size C = map.C, D = C / map.G, N = map.window * map.window, NP = (N + VL - 1) / VL * VL;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(10 * NP * D + 2 * N * NP + 2 * NP);
        float *q = scratch.take(N * D), *k = scratch.take(NP * D), *v = scratch.take(NP * D), *g = scratch.take(N * D);
        float *turned = scratch.take(D * NP), *attention = scratch.take(N * NP), *score = scratch.take(N * NP);
        float *dq = scratch.take(N * D), *dk = scratch.take(N * D), *dv = scratch.take(N * D);
        size *at = (size *)scratch.take(2 * N);
        memset(k, 0, 4 * NP * D);
        memset(v, 0, 4 * NP * D);
#pragma omp for schedule(static)
        for (size task = 0; task < map.windows() * map.G; task++) {
            size first = task % map.G * D, m = task / map.G;
            locate(map, m, at);
            gather(qkv + first, bias ? bias + first : nullptr, 3 * C, at, N, D, 1.0f, q);
            gather(qkv + C + first, bias ? bias + C + first : nullptr, 3 * C, at, N, D, scale, k);
            gather(qkv + 2 * C + first, bias ? bias + 2 * C + first : nullptr, 3 * C, at, N, D, 1.0f, v);
            gather(grad + first, (const T *)nullptr, C, at, N, D, 1.0f, g);
            transpose(k, D, NP, turned);
            product(q, D, 1, turned, NP, N, D, NP, attention, NP);
            softmax(attention, N, N, NP);
            transpose(v, D, NP, turned);
            product(g, D, 1, turned, NP, N, D, NP, score, NP);
            softmax_backward(score, attention, N, NP, 1.0f);
            product(score, NP, 1, k, D, N, N, D, dq, D); // k has the scale already
            for (size i = 0; i < N * D; i += VL)
                store(q + i, load(q + i) * scale);
            product(score, 1, NP, q, D, N, N, D, dk, D);
            product(attention, 1, NP, g, D, N, N, D, dv, D);
            scatter(dq, at, N, D, 3 * C, out + first);
            scatter(dk, at, N, D, 3 * C, out + C + first);
            scatter(dv, at, N, D, 3 * C, out + 2 * C + first);
            if (of_fill)
                for (size d = 0; d < D; d += VL) {
                    vfloat of_k = {}, of_v = {};
                    for (size n = 0; n < N; n++)
                        if (at[n] < 0)
                            of_k += load(dk + n * D + d), of_v += load(dv + n * D + d);
                    store(of_fill + m * 2 * C + first + d, of_k);
                    store(of_fill + m * 2 * C + C + first + d, of_v);
                }
        }
    }
}

// --- channel attention, from the map of q, k and v (B, N, 3 C) to (B, N, C) ---

constexpr size BLOCK = 64;       // positions at a time
constexpr size PART = 8 * BLOCK; // positions of a task; native.py has the number too

// A tile of consecutive positions, in float32.
template <class T> INLINE void copy(const T *from, size width, size N, size D, float *to) {
    for (size n = 0; n < N; n++)
        for (size d = 0; d < D; d += VL)
            store(to + n * D + d, load(from + n * width + d));
}

template <class T> INLINE void copy_back(const float *from, size N, size D, size width, T *to) {
    for (size n = 0; n < N; n++)
        for (size d = 0; d < D; d += VL)
            store(to + n * width + d, load(from + n * D + d));
}

// parts[b][g][p] = x^T y over part p of the positions: (B, G, P, D, D).
template <class T>
static void channel_products(const T *x, size x_width, const T *y, size y_width, float *parts, size B, size N, size G,
                             size D, int threads) {
    size P = (N + PART - 1) / PART;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(2 * BLOCK * D);
        float *x_tile = scratch.take(BLOCK * D), *y_tile = scratch.take(BLOCK * D);
#pragma omp for schedule(static)
        for (size task = 0; task < B * P * G; task++) { // groups innermost: they share cache lines
            size g = task % G, p = task / G % P, b = task / G / P, last = least(N, (p + 1) * PART);
            float *total = parts + ((b * G + g) * P + p) * D * D;
            memset(total, 0, 4 * D * D);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = least(BLOCK, last - n);
                copy(x + (b * N + n) * x_width + g * D, x_width, count, D, x_tile);
                copy(y + (b * N + n) * y_width + g * D, y_width, count, D, y_tile);
                product<true>(x_tile, 1, D, y_tile, D, D, count, D, total, D);
            }
        }
    }
}

INLINE void add_parts(const float *parts, size P, size numbers, float scale, float *out) {
    for (size i = 0; i < numbers; i += VL) {
        vfloat total = {};
        for (size p = 0; p < P; p++)
            total += load(parts + p * numbers + i);
        store(out + i, total * scale);
    }
}

template <class T>
static void channel_attention(const T *qkv, float *parts, float *attention, T *out, size B, size N, size C, size G,
                              float scale, int threads) {
    size D = C / G, P = (N + PART - 1) / PART;
    channel_products(qkv + C, 3 * C, qkv + 2 * C, 3 * C, parts, B, N, G, D, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(D * D + 2 * BLOCK * D);
        float *turned = scratch.take(D * D), *q = scratch.take(BLOCK * D), *x = scratch.take(BLOCK * D);
#pragma omp for schedule(static)
        for (size i = 0; i < B * G; i++) {
            add_parts(parts + i * P * D * D, P, D * D, scale, attention + i * D * D);
            softmax(attention + i * D * D, D, D, D);
        }
#pragma omp for schedule(static)
        for (size task = 0; task < B * P * G; task++) {
            size g = task % G, p = task / G % P, b = task / G / P, last = least(N, (p + 1) * PART);
            transpose(attention + (b * G + g) * D * D, D, D, turned);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = least(BLOCK, last - n), at = b * N + n;
                copy(qkv + at * 3 * C + g * D, 3 * C, count, D, q);
                product(q, D, 1, turned, D, count, D, D, x, D);
                copy_back(x, count, D, C, out + at * C + g * D);
            }
        }
    }
}

template <class T>
static void channel_attention_backward(const T *grad, const T *qkv, const float *attention, float *parts, float *score,
                                       T *out, size B, size N, size C, size G, float scale, int threads) {
    size D = C / G, P = (N + PART - 1) / PART;
    channel_products(grad, C, qkv, 3 * C, parts, B, N, G, D, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(D * D + 4 * BLOCK * D);
        float *turned = scratch.take(D * D), *from = scratch.take(BLOCK * D), *to = scratch.take(BLOCK * D);
#pragma omp for schedule(static)
        for (size i = 0; i < B * G; i++) {
            add_parts(parts + i * P * D * D, P, D * D, 1.0f, score + i * D * D);
            softmax_backward(score + i * D * D, attention + i * D * D, D, D, scale);
        }
#pragma omp for schedule(static)
        for (size task = 0; task < B * P * G; task++) {
            size g = task % G, p = task / G % P, b = task / G / P, last = least(N, (p + 1) * PART);
            const float *weight = attention + (b * G + g) * D * D, *of_score = score + (b * G + g) * D * D;
            transpose(of_score, D, D, turned);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = least(BLOCK, last - n), at = b * N + n;
                const T *here = qkv + at * 3 * C + g * D;
                T *target = out + at * 3 * C + g * D;
                copy(grad + at * C + g * D, C, count, D, from);
                product(from, D, 1, weight, D, count, D, D, to, D); // of q: the gradient times the attention
                copy_back(to, count, D, 3 * C, target);
                copy(here + 2 * C, 3 * C, count, D, from);
                product(from, D, 1, turned, D, count, D, D, to, D); // of k: v times the scores' gradient, turned
                copy_back(to, count, D, 3 * C, target + C);
                copy(here + C, 3 * C, count, D, from);
                product(from, D, 1, of_score, D, count, D, D, to, D); // of v
                copy_back(to, count, D, 3 * C, target + 2 * C);
            }
        }
    }
}

// --- gradients in front of a LayerNorm and a GELU, rows of C numbers; what those gave is computed again on the way
// ---

// Sums over the rows of each of `parts` bands: `sums` is (parts, 2, C), of the norm's scale and of its shift.
// `grad_x` may be `grad`.
template <class T>
static void norm_backward(const T *grad, const T *x, const float *mean, const float *rstd, const float *scale,
                          const float *shift, T *grad_x, T *again, float *sums, size parts, size N, size C,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        float *of_scale = sums + p * 2 * C, *of_shift = of_scale + C;
        memset(of_scale, 0, 8 * C);
        for (size n = N * p / parts; n < N * (p + 1) / parts; n++) {
            const T *g = grad + n * C, *row = x + n * C;
            vfloat total = {}, along = {};
            for (size c = 0; c < C; c += VL) {
                vfloat value = (load(row + c) - mean[n]) * rstd[n], of_value = load(g + c) * load(scale + c);
                total += of_value, along += of_value * value;
            }
            float a = sum(total) / C, b = sum(along) / C;
            for (size c = 0; c < C; c += VL) {
                vfloat value = (load(row + c) - mean[n]) * rstd[n], of_y = load(g + c), k = load(scale + c);
                store(of_scale + c, load(of_scale + c) + of_y * value);
                store(of_shift + c, load(of_shift + c) + of_y);
                store(again + n * C + c, value * k + load(shift + c));
                store(grad_x + n * C + c, (of_y * k - a - value * b) * rstd[n]);
            }
        }
    }
}

// `sums` is (parts, C), of the gradients in front of the GELU. `grad_x` may be `grad`.
template <class T>
static void gelu_backward(const T *grad, const T *x, T *grad_x, T *again, float *sums, size parts, size N, size C,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        memset(sums + p * C, 0, 4 * C);
        for (size n = N * p / parts; n < N * (p + 1) / parts; n++)
            for (size c = 0; c < C; c += VL) {
                vfloat value = load(x + n * C + c), below, density;
                normal(value, below, density);
                vfloat of_x = load(grad + n * C + c) * (below + value * density);
                store(sums + p * C + c, load(sums + p * C + c) + of_x);
                store(grad_x + n * C + c, of_x);
                store(again + n * C + c, value * below);
            }
    }
}

// --- what native.py calls ---

#define BY_TYPE(call)                                                                                                 \
    if (type == 0) {                                                                                                  \
        typedef float T;                                                                                              \
        call;                                                                                                         \
    } else {                                                                                                          \
        typedef bfloat16 T;                                                                                           \
        call;                                                                                                         \
    }

extern "C" {

const char *davit_source() { return SOURCE; }

// `normed` may be null: then no norm; `norm_type` is its number format.
void davit_encode(int type, const void *x, const float *weight, const float *bias, const float *scale,
                  const float *shift, float eps, void *y, void *normed, float *mean, float *rstd, size norm_type,
                  size B, size H, size W, size C, int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    if (type == norm_type) {
        BY_TYPE(encode((const T *)x, weight, bias, norm, (T *)y, (T *)normed, B, H, W, C, threads))
    } else if (type == 0) {
        encode((const float *)x, weight, bias, norm, (float *)y, (bfloat16 *)normed, B, H, W, C, threads);
    } else {
        encode((const bfloat16 *)x, weight, bias, norm, (bfloat16 *)y, (float *)normed, B, H, W, C, threads);
    }
}

void davit_encode_weights(int type, const void *grad, const void *x, float *out, size parts, size B, size H, size W,
                          size C, int threads) {
    BY_TYPE(encode_weights((const T *)grad, (const T *)x, out, parts, B, H, W, C, threads))
}

void davit_window_attention(int type, const void *qkv, const void *bias, void *out, size B, size H, size W, size C,
                            size G, size window, float scale, int threads) {
    BY_TYPE(window_attention((const T *)qkv, (const T *)bias, (T *)out, Map(B, H, W, C, G, window), scale, threads))
}

void davit_window_attention_backward(int type, const void *grad, const void *qkv, const void *bias, void *out,
                                     float *of_fill, size B, size H, size W, size C, size G, size window, float scale,
                                     int threads) {
    BY_TYPE(window_attention_backward((const T *)grad, (const T *)qkv, (const T *)bias, (T *)out, of_fill,
                                      Map(B, H, W, C, G, window), scale, threads))
}

void davit_channel_attention(int type, const void *qkv, float *parts, float *attention, void *out, size B, size N,
                             size C, size G, float scale, int threads) {
    BY_TYPE(channel_attention((const T *)qkv, parts, attention, (T *)out, B, N, C, G, scale, threads))
}

void davit_channel_attention_backward(int type, const void *grad, const void *qkv, const float *attention,
                                      float *parts, float *score, void *out, size B, size N, size C, size G,
                                      float scale, int threads) {
    BY_TYPE(channel_attention_backward((const T *)grad, (const T *)qkv, attention, parts, score, (T *)out, B, N, C, G,
                                       scale, threads))
}

void davit_norm_backward(int type, const void *grad, const void *x, const float *mean, const float *rstd,
                         const float *scale, const float *shift, void *grad_x, void *again, float *sums, size parts,
                         size N, size C, int threads) {
    BY_TYPE(norm_backward((const T *)grad, (const T *)x, mean, rstd, scale, shift, (T *)grad_x, (T *)again, sums,
                          parts, N, C, threads))
}

void davit_gelu_backward(int type, const void *grad, const void *x, void *grad_x, void *again, float *sums, size parts,
                         size N, size C, int threads) {
    BY_TYPE(gelu_backward((const T *)grad, (const T *)x, (T *)grad_x, (T *)again, sums, parts, N, C, threads))
}
}
