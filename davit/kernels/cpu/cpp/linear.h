// Linear layers and MLPs of the rows of a map, in tasks of some rows each, whose numbers stay in a core's own cache.
// The weights are laid out anew on every call, in panels that a tile reads from start to end: a copy that is kept
// could outlive a change of the weights.
#pragma once

#include "norm.h"
#include "products.h"

constexpr size PANEL = ACROSS * VL; // columns
constexpr size MOST_ROWS = 112;     // of a task
constexpr size CACHE = 700 << 10;   // bytes of its scratch; the rest is for a panel
constexpr size MOST_HIDDEN = 256;   // columns of an MLP's hidden map at a time

struct Tasks { // as many for each thread, as even as can be
    size rows, count;
    Tasks(size M, size bytes, int threads) { // of a row, in the scratch
        size most = least(MOST_ROWS, CACHE / bytes + 1), tasks = (M - 1) / most + 1;
        tasks = (tasks + threads - 1) / threads * threads;
        rows = M > 0 ? (M - 1) / tasks + 1 : 1;
        count = (M + rows - 1) / rows;
    }
};

// Panels of the transposed weight (N, K): of n columns, at p * PANEL * K words, K rows of n. By all threads.
template <class T> INLINE void pack(const T *weight, size N, size K, typename Word<T>::type *packed) {
    size words = K * sizeof(T) / 4;
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL)
        transpose((const float *)(weight + first * K), words, words, least(PANEL, N - first),
                  (float *)packed + first * words);
}

// Rows of n numbers as words: of bfloat16 two rows.
template <class T>
INLINE void pack_rows(const T *from, size stride, size rows, size n, typename Word<T>::type *packed) {
    for (size i = 0; i < rows; i += sizeof(float) / sizeof(T), packed += n)
        for (size c = 0; c < n; c += VL)
            if constexpr (sizeof(T) == sizeof(float)) {
                store(packed + c, load(from + i * stride + c));
            } else {
                vhalf low, high;
                memcpy(&low, from + i * stride + c, sizeof low);
                memcpy(&high, from + (i + 1) * stride + c, sizeof high);
                vword both = __builtin_convertvector(low, vword) | __builtin_convertvector(high, vword) << 16;
                memcpy(packed + c, &both, sizeof both);
            }
}

// The same panels of a weight that is (K, N) itself.
template <class T> INLINE void pack_turned(const T *weight, size K, size N, typename Word<T>::type *packed) {
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL)
        pack_rows(weight + first, N, K, least(PANEL, N - first), packed + first * K * (size)sizeof(T) / 4);
}

// finish(i, c, sum) of x (rows, K) times packed panels of N columns.
template <class T, class F>
INLINE void panels(const T *x, size rows, size K, const typename Word<T>::type *packed, size N, const F &finish) {
    typedef typename Word<T>::type W;
    size words = K * sizeof(T) / 4;
    for (size first = 0; first < N; first += PANEL) {
        size n = least(PANEL, N - first);
        product((const W *)x, words, 1, packed + first * words, n, rows, words, n,
                [&](size i, size c, vfloat total) INLINE_LAMBDA { finish(i, first + c, total); });
    }
}

// sums (rows, N) += x (rows, width), its rows `stride` apart, times the rows from k on of packed panels of K rows.
template <class T>
INLINE void add_panels(const T *x, size stride, size rows, size k, size width, const typename Word<T>::type *packed,
                       size K, size N, float *sums) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    for (size first = 0; first < N; first += PANEL) {
        size n = least(PANEL, N - first);
        product((const W *)x, stride / PER, 1, packed + (first * K + k * n) / PER, n, rows, width / PER, n,
                Add{sums + first, N});
    }
}

// x or, where `norm` has a scale, LayerNorm(x), times weight^T, + bias + residual; the last may be absent. The weight
// is (N, K) or, `turned`, (K, N).
template <class T>
static void linear(const T *x, const Norm &norm, const T *weight, bool turned, const float *bias, const T *residual,
                   T *out, typename Word<T>::type *packed, size M, size K, size N, int threads) {
    Tasks tasks(M, 4 * K, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(tasks.rows * K);
        T *normed = (T *)scratch.take(tasks.rows * K);
        if (turned)
            pack_turned(weight, K, N, packed);
        else
            pack(weight, N, K, packed);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, M - start);
            if (norm.scale)
                norm_rows(x + start * K, norm, normed, start, rows, K);
            panels(norm.scale ? normed : x + start * K, rows, K, packed, N,
                   [&](size i, size c, vfloat total) INLINE_LAMBDA {
                       size at = (start + i) * N + c;
                       total += load(bias + c);
                       store(out + at, residual ? total + load(residual + at) : total);
                   });
        }
    }
}

// The MLP of LayerNorm(x), on top of x where it is `added`: (M, C), hidden (M, E), exact GELU. What is in front of the
// GELU is kept where `kept` is given.
template <class T>
static void mlp(const T *x, const Norm &norm, const T *weight1, const float *bias1, const T *weight2,
                const float *bias2, bool added, T *kept, T *out, typename Word<T>::type *packed1,
                typename Word<T>::type *packed2, size M, size C, size E, int threads) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    Tasks tasks(M, 4 * (PANEL + MOST_HIDDEN + 2 * C), threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(tasks.rows * (PANEL + MOST_HIDDEN + 2 * C));
        float *strip = scratch.take(tasks.rows * PANEL), *sum = scratch.take(tasks.rows * C);
        T *hidden = (T *)scratch.take(tasks.rows * MOST_HIDDEN), *normed = (T *)scratch.take(tasks.rows * C);
        pack(weight1, E, C, packed1);
        pack(weight2, C, E, packed2);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, M - start);
            norm_rows(x + start * C, norm, normed, start, rows, C);
            for (size i = 0; i < rows; i++)
                memcpy(sum + i * C, bias2, 4 * C);
            for (size e = 0; e < E; e += MOST_HIDDEN) {
                size width = least(MOST_HIDDEN, E - e);
                for (size first = 0; first < width; first += PANEL) {
                    size n = least(PANEL, width - first);
                    product((const W *)normed, C / PER, 1, packed1 + (e + first) * C / PER, n, rows, C / PER, n,
                            Write{strip, n});
                    for (size i = 0; i < rows; i++)
                        for (size c = 0; c < n; c += VL) {
                            vfloat y = load(strip + i * n + c) + load(bias1 + e + first + c);
                            if (kept)
                                y = store_rounded(kept + (start + i) * E + e + first + c, y);
                            store(hidden + i * width + first + c, gelu(y));
                        }
                }
                add_panels(hidden, width, rows, e, width, packed2, E, C, sum);
            }
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, added ? load(sum + i) + load(x + start * C + i) : load(sum + i));
        }
    }
}
