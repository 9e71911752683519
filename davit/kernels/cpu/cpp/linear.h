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

// Items of a task, `most` at most: as many tasks for each thread, as even as can be.
INLINE size of_task(size items, size most, int threads) {
    size tasks = (items + most - 1) / most;
    tasks = (tasks + threads - 1) / threads * threads;
    return items > 0 ? (items - 1) / tasks + 1 : 1;
}

struct Tasks {
    size rows, count;
    Tasks(size M, size bytes, int threads) // of a row, in the scratch
        : rows(of_task(M, least(MOST_ROWS, CACHE / bytes + 1), threads)), count((M + rows - 1) / rows) {}
};

// A panel of the transposed weight (N, K): n columns from `first` on, at first * K words, K rows of n.
template <class T>
INLINE void pack_panel(const T *weight, size first, size n, size K, typename Word<T>::type *packed) {
    size words = K * sizeof(T) / 4;
    transpose((const float *)(weight + first * K), words, words, n, (float *)packed + first * words);
}

// All its panels, by all threads.
template <class T> INLINE void pack(const T *weight, size N, size K, typename Word<T>::type *packed) {
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL)
        pack_panel(weight, first, least(PANEL, N - first), K, packed);
}

// Rows of n numbers as words: of bfloat16 two rows, behind the last one zeros.
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

// x or, where `norm` has a scale, LayerNorm(x), times weight^T, + bias. The weight is (N, K) or, `turned`, (K, N).
template <class T>
static void linear(const T *x, const Norm &norm, const T *weight, bool turned, const float *bias, T *out,
                   typename Word<T>::type *packed, size M, size K, size N, int threads) {
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
                   [&](size i, size c, vfloat total)
                       INLINE_LAMBDA { store(out + (start + i) * N + c, total + load(bias + c)); });
        }
    }
}

template <class T> struct MlpRows { // memory of a thread for some rows
    float *strip, *sums;
    T *hidden, *normed;

    static size of_row(size C) { return PANEL + MOST_HIDDEN + 2 * C; }
    MlpRows(size rows, size C, Scratch &scratch) {
        strip = scratch.take(rows * PANEL), sums = scratch.take(rows * C);
        hidden = (T *)scratch.take(rows * MOST_HIDDEN), normed = (T *)scratch.take(rows * C);
    }
};

template <class T> struct Mlp { // exact GELU; both weights packed
    typedef typename Word<T>::type W;
    const W *packed1, *packed2; // of (E, C) and (C, E)
    const float *bias1, *bias2;
    size C, E;
    static constexpr size PER = sizeof(W) / sizeof(T);

    // to.sums (rows, C) = the MLP of to.normed. What is in front of the GELU is kept where `kept` is given, (rows, E).
    INLINE_METHOD void operator()(size rows, T *kept, const MlpRows<T> &to) const {
        for (size i = 0; i < rows; i++)
            memcpy(to.sums + i * C, bias2, 4 * C);
        for (size e = 0; e < E; e += MOST_HIDDEN) {
            size width = least(MOST_HIDDEN, E - e);
            for (size first = 0; first < width; first += PANEL) {
                size n = least(PANEL, width - first);
                product((const W *)to.normed, C / PER, 1, packed1 + (e + first) * C / PER, n, rows, C / PER, n,
                        Write{to.strip, n});
                for (size i = 0; i < rows; i++)
                    for (size c = 0; c < n; c += VL) {
                        vfloat y = load(to.strip + i * n + c) + load(bias1 + e + first + c);
                        if (kept)
                            y = store_rounded(kept + i * E + e + first + c, y);
                        store(to.hidden + i * width + first + c, gelu(y));
                    }
            }
            add_panels(to.hidden, width, rows, e, width, packed2, E, C, to.sums);
        }
    }
};

// The MLP of LayerNorm(x) (M, C), hidden (M, E). What is in front of the GELU is kept where `kept` is given.
template <class T>
static void mlp(const T *x, const Norm &norm, const T *weight1, const float *bias1, const T *weight2,
                const float *bias2, T *kept, T *out, typename Word<T>::type *packed1, typename Word<T>::type *packed2,
                size M, size C, size E, int threads) {
    Tasks tasks(M, 4 * MlpRows<T>::of_row(C), threads);
    Mlp<T> layers = {packed1, packed2, bias1, bias2, C, E};
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(tasks.rows * MlpRows<T>::of_row(C));
        MlpRows<T> here(tasks.rows, C, scratch);
        pack(weight1, E, C, packed1);
        pack(weight2, C, E, packed2);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, M - start);
            norm_rows(x + start * C, norm, here.normed, start, rows, C);
            layers(rows, kept ? kept + start * E : nullptr, here);
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, load(here.sums + i));
        }
    }
}
