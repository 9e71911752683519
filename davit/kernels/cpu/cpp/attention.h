#pragma once

#include "products.h"

// Row-wise softmax of the first N values; the padding up to `width` (< N + VL) is set to 0.
INLINE void softmax(float *x, size rows, size N, size width) {
    const vint counts = swapped<0>() < (int)(N - (width - VL)); // in the last vector
    const vfloat nothing = splat(-INFINITY);
    for (size i = 0; i < rows; i++, x += width) {
        vfloat last = counts ? load(x + width - VL) : nothing, maximum = last;
        for (size n = 0; n < width - VL; n += VL)
            maximum = larger(load(x + n), maximum);
        float top = largest(maximum);
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

// Turn the gradient of a softmax's output into that of its input, times `scale`, in place.
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

// --- window attention: a map of q, k and v (B, H, W, 3 C) gives a map (B, H, W, C) ---

struct Map {
    size B, H, W, C, G, window, rows, columns; // rows and columns of windows
    Map(size B, size H, size W, size C, size G, size window)
        : B(B), H(H), W(W), C(C), G(G), window(window), rows((H + window - 1) / window),
          columns((W + window - 1) / window) {}
    size windows() const { return B * rows * columns; }
};

// For each position of window m its index in the map, or -1 outside it.
INLINE void locate(const Map &map, size m, size *at) {
    size column = m % map.columns, row = m / map.columns % map.rows, b = m / map.columns / map.rows;
    for (size h = row * map.window; h < (row + 1) * map.window; h++)
        for (size w = column * map.window; w < (column + 1) * map.window; w++)
            *at++ = h < map.H && w < map.W ? (b * map.H + h) * map.W + w : -1;
}

// Copy a tile (N, D) from a map with `width` channels. Positions outside the map get `fill`, or zeros.
template <class T>
INLINE void gather(const T *from, const T *fill, size width, const size *at, size N, size D, float scale, float *to) {
    for (size n = 0; n < N; n++) {
        const T *p = at[n] >= 0 ? from + at[n] * width : fill;
        if (p)
            for (size d = 0; d < D; d += VL) {
                store(to + n * D + d, load(p + d) * scale);
                __builtin_prefetch(p + D + d); // the next task reads the next head
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
        float *k_transposed = scratch.take(D * NP), *attention = scratch.take(N * NP);
        size *at = (size *)scratch.take(2 * N);
        memset(k, 0, 4 * NP * D);
#pragma omp for schedule(static)
        for (size task = 0; task < map.windows() * map.G; task++) {
            size g = task % map.G * D;
            locate(map, task / map.G, at);
            gather(qkv + g, bias ? bias + g : nullptr, 3 * C, at, N, D, scale, q);
            gather(qkv + C + g, bias ? bias + C + g : nullptr, 3 * C, at, N, D, 1.0f, k);
            gather(qkv + 2 * C + g, bias ? bias + 2 * C + g : nullptr, 3 * C, at, N, D, 1.0f, v);
            transpose(k, D, D, NP, k_transposed);
            product(q, D, 1, k_transposed, NP, N, D, NP, Write{attention, NP});
            softmax(attention, N, N, NP);
            product(attention, NP, 1, v, D, N, N, D, Write{x, D});
            scatter(x, at, N, D, C, out + g);
        }
    }
}

// Gradients of the map, and for each window of the k and v at its padded positions, (windows, 2 C).
template <class T>
static void window_attention_backward(const T *grad, const T *qkv, const T *bias, T *out, float *grad_fill,
                                      const Map &map, float scale, int threads) {
    size C = map.C, D = C / map.G, N = map.window * map.window, NP = (N + VL - 1) / VL * VL;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(10 * NP * D + 2 * N * NP + 2 * NP);
        float *q = scratch.take(N * D), *k = scratch.take(NP * D), *v = scratch.take(NP * D), *g = scratch.take(N * D);
        float *transposed = scratch.take(D * NP), *attention = scratch.take(N * NP), *score = scratch.take(N * NP);
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
            transpose(k, D, D, NP, transposed);
            product(q, D, 1, transposed, NP, N, D, NP, Write{attention, NP});
            softmax(attention, N, N, NP);
            transpose(v, D, D, NP, transposed);
            product(g, D, 1, transposed, NP, N, D, NP, Write{score, NP});
            softmax_backward(score, attention, N, NP, 1.0f);
            product(score, NP, 1, k, D, N, N, D, Write{dq, D}); // k is scaled already
            for (size i = 0; i < N * D; i += VL)
                store(q + i, load(q + i) * scale);
            product(score, 1, NP, q, D, N, N, D, Write{dk, D});
            product(attention, 1, NP, g, D, N, N, D, Write{dv, D});
            scatter(dq, at, N, D, 3 * C, out + first);
            scatter(dk, at, N, D, 3 * C, out + C + first);
            scatter(dv, at, N, D, 3 * C, out + 2 * C + first);
            if (grad_fill)
                for (size d = 0; d < D; d += VL) {
                    vfloat grad_k = {}, grad_v = {};
                    for (size n = 0; n < N; n++)
                        if (at[n] < 0)
                            grad_k += load(dk + n * D + d), grad_v += load(dv + n * D + d);
                    store(grad_fill + m * 2 * C + first + d, grad_k);
                    store(grad_fill + m * 2 * C + C + first + d, grad_v);
                }
        }
    }
}

// --- channel attention: a map of q, k and v (B, N, 3 C) gives a map (B, N, C) ---

// Where the three maps of a channel attention begin in a row of q, k and v. With A = softmax(scale * a^T b), the
// result is x times the transpose of A. In DaViT's function a, b, x are k, v, q; in Florence-2's (`qk`) they are q, k,
// v.
struct Roles {
    size a, b, x;
    Roles(size C, bool qk) : a(qk ? 0 : C), b(qk ? C : 2 * C), x(qk ? 2 * C : 0) {}
};

constexpr size BLOCK = 64;       // positions at a time
constexpr size PART = 8 * BLOCK; // positions of a task; native.py has the same number

// Copy a tile of consecutive positions, as float32.
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
            size g = task % G, p = task / G % P, b = task / G / P, last = min(N, (p + 1) * PART);
            float *total = parts + ((b * G + g) * P + p) * D * D;
            memset(total, 0, 4 * D * D);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = min(BLOCK, last - n);
                copy(x + (b * N + n) * x_width + g * D, x_width, count, D, x_tile);
                copy(y + (b * N + n) * y_width + g * D, y_width, count, D, y_tile);
                product(x_tile, 1, D, y_tile, D, D, count, D, Add{total, D});
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
                              bool qk, float scale, int threads) {
    size D = C / G, P = (N + PART - 1) / PART;
    Roles roles(C, qk);
    channel_products(qkv + roles.a, 3 * C, qkv + roles.b, 3 * C, parts, B, N, G, D, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(D * D + 2 * BLOCK * D);
        float *transposed = scratch.take(D * D), *x = scratch.take(BLOCK * D), *mixed = scratch.take(BLOCK * D);
#pragma omp for schedule(static)
        for (size i = 0; i < B * G; i++) {
            add_parts(parts + i * P * D * D, P, D * D, scale, attention + i * D * D);
            softmax(attention + i * D * D, D, D, D);
        }
#pragma omp for schedule(static)
        for (size task = 0; task < B * P * G; task++) {
            size g = task % G, p = task / G % P, b = task / G / P, last = min(N, (p + 1) * PART);
            transpose(attention + (b * G + g) * D * D, D, D, D, transposed);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = min(BLOCK, last - n), at = b * N + n;
                copy(qkv + at * 3 * C + roles.x + g * D, 3 * C, count, D, x);
                product(x, D, 1, transposed, D, count, D, D, Write{mixed, D});
                copy_back(mixed, count, D, C, out + at * C + g * D);
            }
        }
    }
}

template <class T>
static void channel_attention_backward(const T *grad, const T *qkv, const float *attention, float *parts, float *score,
                                       T *out, size B, size N, size C, size G, bool qk, float scale, int threads) {
    size D = C / G, P = (N + PART - 1) / PART;
    Roles roles(C, qk);
    channel_products(grad, C, qkv + roles.x, 3 * C, parts, B, N, G, D, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(D * D + 4 * BLOCK * D);
        float *transposed = scratch.take(D * D), *from = scratch.take(BLOCK * D), *to = scratch.take(BLOCK * D);
#pragma omp for schedule(static)
        for (size i = 0; i < B * G; i++) {
            add_parts(parts + i * P * D * D, P, D * D, 1.0f, score + i * D * D);
            softmax_backward(score + i * D * D, attention + i * D * D, D, D, scale);
        }
#pragma omp for schedule(static)
        for (size task = 0; task < B * P * G; task++) {
            size g = task % G, p = task / G % P, b = task / G / P, last = min(N, (p + 1) * PART);
            const float *weight = attention + (b * G + g) * D * D, *grad_score = score + (b * G + g) * D * D;
            transpose(grad_score, D, D, D, transposed);
            for (size n = p * PART; n < last; n += BLOCK) {
                size count = min(BLOCK, last - n), at = b * N + n;
                const T *source = qkv + at * 3 * C + g * D;
                T *target = out + at * 3 * C + g * D;
                copy(grad + at * C + g * D, C, count, D, from);
                product(from, D, 1, weight, D, count, D, D, Write{to, D}); // grad x = grad times the attention
                copy_back(to, count, D, 3 * C, target + roles.x);
                copy(source + roles.b, 3 * C, count, D, from);
                product(from, D, 1, transposed, D, count, D, D,
                        Write{to, D}); // grad a = b times the transposed gradient of the scores
                copy_back(to, count, D, 3 * C, target + roles.a);
                copy(source + roles.a, 3 * C, count, D, from);
                product(from, D, 1, grad_score, D, count, D, D,
                        Write{to, D}); // grad b = a times the gradient of the scores
                copy_back(to, count, D, 3 * C, target + roles.b);
            }
        }
    }
}
