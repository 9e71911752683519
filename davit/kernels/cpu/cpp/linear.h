// Linear layers and MLPs on the rows of a map. A task takes as many rows as stay in the core's own cache. Weights are
// packed on every call into panels that a tile reads from start to end; a kept copy could outlive a change of them.
#pragma once

#include "norm.h"
#include "products.h"

constexpr size PANEL = ACROSS * VL; // columns
constexpr size MAX_ROWS = 112;      // of a task
constexpr size CACHE = 700 << 10;   // bytes of a task's scratch memory; the rest is for a panel
constexpr size MAX_HIDDEN = 256;    // columns of an MLP's hidden map at a time

// Number of items for a task, at most `limit`, so that every thread gets as many tasks, of equal size.
INLINE size items_per_task(size items, size limit, int threads) {
    size tasks = (items + limit - 1) / limit;
    tasks = (tasks + threads - 1) / threads * threads;
    return items > 0 ? (items - 1) / tasks + 1 : 1;
}

struct Tasks {
    size rows, count;
    Tasks(size M, size bytes, int threads) // `bytes` of scratch memory for a row
        : rows(items_per_task(M, min(MAX_ROWS, CACHE / bytes + 1), threads)), count((M + rows - 1) / rows) {}
};

// Pack a panel of the transpose of weight (N, K): its n columns from `first` on, as K rows of n words.
template <class T>
INLINE void pack_panel(const T *weight, size first, size n, size K, typename Word<T>::type *packed) {
    size words = K * sizeof(T) / 4;
    transpose((const float *)(weight + first * K), words, words, n, (float *)packed + first * words);
}

// Pack all panels, all threads together.
template <class T> INLINE void pack(const T *weight, size N, size K, typename Word<T>::type *packed) {
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL)
        pack_panel(weight, first, min(PANEL, N - first), K, packed);
}

// Pack rows of n values as words: float32 as they are, bfloat16 two rows in a word (a missing second row is 0).
template <class T>
INLINE void pack_rows(const T *from, size stride, size rows, size n, typename Word<T>::type *packed) {
    for (size i = 0; i < rows; i += sizeof(float) / sizeof(T), packed += n)
        for (size c = 0; c < n; c += VL)
            if constexpr (sizeof(T) == sizeof(float)) {
                store(packed + c, load(from + i * stride + c));
            } else {
                vhalf low, high = {};
                memcpy(&low, from + i * stride + c, sizeof low);
                if (i + 1 < rows)
                    memcpy(&high, from + (i + 1) * stride + c, sizeof high);
                vword both = widened(low) | widened(high) << 16;
                memcpy(packed + c, &both, sizeof both);
            }
}

// Pack all panels of a weight that is (K, N) already.
template <class T> INLINE void pack_transposed(const T *weight, size K, size N, typename Word<T>::type *packed) {
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL)
        pack_rows(weight + first, N, K, min(PANEL, N - first), packed + first * K * (size)sizeof(T) / 4);
}

// Call finish(i, c, sum) with x (rows, K) times packed panels of N columns.
template <class T, class F>
INLINE void panels(const T *x, size rows, size K, const typename Word<T>::type *packed, size N, const F &finish) {
    typedef typename Word<T>::type W;
    size words = K * sizeof(T) / 4;
    for (size first = 0; first < N; first += PANEL) {
        size n = min(PANEL, N - first);
        product((const W *)x, words, 1, packed + first * words, n, rows, words, n,
                [&](size i, size c, vfloat total) INLINE_LAMBDA { finish(i, first + c, total); });
    }
}

// sums (rows, N) += x (rows, width), rows `stride` apart, times the rows k to k + width of packed panels of K rows.
template <class T>
INLINE void add_panels(const T *x, size stride, size rows, size k, size width, const typename Word<T>::type *packed,
                       size K, size N, float *sums) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    for (size first = 0; first < N; first += PANEL) {
        size n = min(PANEL, N - first);
        product((const W *)x, stride / PER, 1, packed + (first * K + k * n) / PER, n, rows, width / PER, n,
                Add{sums + first, N});
    }
}

// out = x weight^T + bias, or LayerNorm(x) weight^T + bias if the norm has a weight. The weight is (N, K), or (K, N)
// if `transposed`.
template <class T>
static void linear(const T *x, const Norm &norm, const T *weight, bool transposed, const float *bias, T *out,
                   typename Word<T>::type *packed, size M, size K, size N, int threads) {
    Tasks tasks(M, 4 * K, threads);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(tasks.rows * K);
        T *normed = (T *)scratch.take(tasks.rows * K);
        if (transposed)
            pack_transposed(weight, K, N, packed);
        else
            pack(weight, N, K, packed);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = min(tasks.rows, M - start);
            if (norm.weight)
                norm_rows(x + start * K, norm, normed, start, rows, K);
            panels(norm.weight ? normed : x + start * K, rows, K, packed, N,
                   [&](size i, size c, vfloat total)
                       INLINE_LAMBDA { store(out + (start + i) * N + c, total + load(bias + c)); });
        }
    }
}

template <class T> struct MlpRows { // memory of a thread for some rows
    float *strip, *sums;
    T *hidden, *normed;

    static size floats_per_row(size C) { return PANEL + MAX_HIDDEN + 2 * C; }
    MlpRows(size rows, size C, Scratch &scratch) {
        strip = scratch.take(rows * PANEL), sums = scratch.take(rows * C);
        hidden = (T *)scratch.take(rows * MAX_HIDDEN), normed = (T *)scratch.take(rows * C);
    }
};

template <class T> struct Mlp { // exact GELU; both weights packed
    typedef typename Word<T>::type W;
    const W *packed1, *packed2; // of (E, C) and (C, E)
    const float *bias1, *bias2;
    size C, E;
    static constexpr size PER = sizeof(W) / sizeof(T);

    // buffers.sums (rows, C) = MLP(buffers.normed). The input of the GELU is written to `kept` (rows, E) if it is
    // given.
    INLINE_METHOD void operator()(size rows, T *kept, const MlpRows<T> &buffers) const {
        for (size i = 0; i < rows; i++)
            memcpy(buffers.sums + i * C, bias2, 4 * C);
        for (size e = 0; e < E; e += MAX_HIDDEN) {
            size width = min(MAX_HIDDEN, E - e);
            for (size first = 0; first < width; first += PANEL) {
                size n = min(PANEL, width - first);
                product((const W *)buffers.normed, C / PER, 1, packed1 + (e + first) * C / PER, n, rows, C / PER, n,
                        Write{buffers.strip, n});
                for (size i = 0; i < rows; i++)
                    for (size c = 0; c < n; c += VL) {
                        vfloat y = load(buffers.strip + i * n + c) + load(bias1 + e + first + c);
                        if (kept)
                            y = store_rounded(kept + i * E + e + first + c, y);
                        store(buffers.hidden + i * width + first + c, gelu(y));
                    }
            }
            add_panels(buffers.hidden, width, rows, e, width, packed2, E, C, buffers.sums);
        }
    }
};

// out = MLP(LayerNorm(x)), x (M, C). The input of the GELU is written to `kept` (M, E) if it is given.
template <class T>
static void mlp(const T *x, const Norm &norm, const T *weight1, const float *bias1, const T *weight2,
                const float *bias2, T *kept, T *out, typename Word<T>::type *packed1, typename Word<T>::type *packed2,
                size M, size C, size E, int threads) {
    Tasks tasks(M, 4 * MlpRows<T>::floats_per_row(C), threads);
    Mlp<T> layers = {packed1, packed2, bias1, bias2, C, E};
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(tasks.rows * MlpRows<T>::floats_per_row(C));
        MlpRows<T> buffers(tasks.rows, C, scratch);
        pack(weight1, E, C, packed1);
        pack(weight2, C, E, packed2);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = min(tasks.rows, M - start);
            norm_rows(x + start * C, norm, buffers.normed, start, rows, C);
            layers(rows, kept ? kept + start * E : nullptr, buffers);
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, load(buffers.sums + i));
        }
    }
}
