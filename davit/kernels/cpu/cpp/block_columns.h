// Inference of a block with few positions, which spends much of its time on reading weights. Threads share the columns
// of a layer, not the positions: each packs some columns into its own cache and multiplies all positions by them. So a
// weight is read from memory once, and its packed copy is never written there.
#pragma once

#include "block_parts.h"

constexpr size DEPTH = 512; // rows of packed columns at a time: 128 KB in float32

// Columns for a task: a panel, or fewer if each thread would get few panels and some of them one more than others.
INLINE size columns_per_task(size N, int threads) {
    auto is_even = [&](size width) {
        size tasks = (N + width - 1) / width;
        return tasks >= 4 * threads || tasks % threads == 0;
    };
    for (size width = PANEL; width >= VL; width -= VL)
        if (is_even(width))
            return width;
    return VL;
}

// Call finish(i, c, sum) with x (M, K) times the transpose of weight (N, K), all threads together.
template <class T, class F>
INLINE void layer_by_columns(const T *x, const T *weight, size M, size K, size N, int threads, float *packed,
                             float *sums, const F &finish) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    size width = columns_per_task(N, threads);
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += width) {
        size n = min(width, N - first);
        for (size k = 0; k < K; k += DEPTH) {
            size words = min(DEPTH, K - k) / PER;
            transpose((const float *)(weight + first * K + k), K / PER, words, n, packed);
            if (k == 0)
                product((const W *)x, K / PER, 1, (const W *)packed, n, M, words, n, Write{sums, n});
            else
                product((const W *)(x + k), K / PER, 1, (const W *)packed, n, M, words, n, Add{sums, n});
        }
        for (size i = 0; i < M; i++)
            for (size c = 0; c < n; c += VL)
                finish(i, first + c, load(sums + i * n + c));
    }
}

template <class T>
static void block_by_columns(const T *x, const void *const *given, const Encoding *encodings, const Norm *norms,
                             const float *qkv_bias, const float *proj_bias, const float *bias1, const float *bias2,
                             const Memory<T> &memory, const Sizes &shape, T *out) {
    size C = shape.C, E = shape.E, M = shape.M();
    T *y = memory.middle, *normed = memory.kept;
    auto encode_rows = [&](const T *from, int which, T *to) INLINE_LAMBDA {
#pragma omp for schedule(static)
        for (size row = 0; row < shape.B * shape.H; row++)
            encode_and_norm(from, encodings[which], norms[which], to, normed + row * shape.W * C, shape, row, 0,
                            shape.W);
    };
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(PANEL * (DEPTH + M));
        float *packed = scratch.take(PANEL * DEPTH), *sums = scratch.take(PANEL * M);
        encode_rows(x, 0, y);
        layer_by_columns(normed, (const T *)given[QKV], M, C, 3 * C, shape.threads, packed, sums,
                         [&](size i, size c, vfloat total)
                             INLINE_LAMBDA { store(memory.qkv + i * 3 * C + c, total + load(qkv_bias + c)); });
    }
    if (shape.window)
        window_attention(memory.qkv, (const T *)given[QKV_BIAS], memory.attended,
                         Map(shape.B, shape.H, shape.W, C, shape.G, shape.window), shape.scale, shape.threads);
    else
        channel_attention(memory.qkv, memory.parts, memory.squares, memory.attended, shape.B, shape.H * shape.W, C,
                          shape.G, shape.qk, shape.scale, shape.threads);
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(PANEL * (DEPTH + M));
        float *packed = scratch.take(PANEL * DEPTH), *sums = scratch.take(PANEL * M);
        auto add_to = [&](T *map, const float *bias) INLINE_LAMBDA {
            return [=](size i, size c, vfloat total)
                       INLINE_LAMBDA { store(map + i * C + c, total + load(bias + c) + load(map + i * C + c)); };
        };
        layer_by_columns(memory.attended, (const T *)given[PROJ], M, C, C, shape.threads, packed, sums,
                         add_to(y, proj_bias));
        if (E) {
            encode_rows(y, 1, out);
            layer_by_columns(normed, (const T *)given[FC1], M, C, E, shape.threads, packed, sums,
                             [&](size i, size c, vfloat total)
                                 INLINE_LAMBDA { store(memory.hidden + i * E + c, gelu(total + load(bias1 + c))); });
            layer_by_columns(memory.hidden, (const T *)given[FC2], M, E, C, shape.threads, packed, sums,
                             add_to(out, bias2));
        }
    }
    if (!E)
        encode(y, encodings[1].taps, encodings[1].bias, norms[1], out, (T *)nullptr, shape.B, shape.H, shape.W, C,
               shape.threads);
}
