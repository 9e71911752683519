#pragma once

#include "block_parts.h"

// --- window attention ---

template <class T> struct Head { // memory of a thread for one head of a window
    typedef typename Word<T>::type W;
    size N, NP, D; // positions of a window, the same padded to whole vectors, channels
    W *k, *v;
    float *scores;
    T *weights;

    static size positions(size N) { return (N + VL - 1) / VL * VL; }
    static size memory(size N, size D) { return 2 * positions(N) * D + 2 * N * positions(N); }
    Head(size N, size D, Scratch &scratch) : N(N), NP(positions(N)), D(D) {
        k = (W *)scratch.take(D * NP), v = (W *)scratch.take(D * NP);
        scores = scratch.take(N * NP), weights = (T *)scratch.take(N * NP);
    }

    // Call finish(n, c, value) with the attention of q, k and v (N, D), rows `width` apart. q is scaled already.
    // Reads NP rows of k.
    template <class F>
    INLINE_METHOD void attend(const T *q, const T *keys, const T *values, size width, const F &finish) const {
        constexpr size PER = sizeof(W) / sizeof(T);
        transpose((const float *)keys, width / PER, D / PER, NP, (float *)k);
        product((const W *)q, width / PER, 1, k, NP, N, D / PER, NP, Write{scores, NP});
        softmax(scores, N, N, NP);
        if constexpr (PER == 1) {
            product(scores, NP, 1, values, width, N, N, D, finish);
        } else {
            for (size i = 0; i < N * NP; i += VL)
                store(weights + i, load(scores + i));
            pack_rows(values, width, N, D, v);
            product((const W *)weights, NP / PER, 1, v, D, N, (N + PER - 1) / PER, D, finish);
        }
    }
};

// Slots of several windows' positions, window after window. Slots inside the map are numbered once more as rows.
struct Places {
    size slots, rows;         // number of slots, and of rows
    size *at, *row_of, *slot; // for a slot its index in the map or -1, and its row or -1; for a row its slot

    static size memory(size slots) { return 3 * 2 * slots; }
    Places(size slots, Scratch &scratch) {
        at = (size *)scratch.take(2 * slots), row_of = (size *)scratch.take(2 * slots);
        slot = (size *)scratch.take(2 * slots);
    }

    // Fill the tables, and call line(first position, first row, columns) for each line of a window inside the map.
    template <class F> INLINE_METHOD void find(const Map &map, size first, size windows, const F &line) {
        size N = map.window * map.window;
        slots = windows * N, rows = 0;
        for (size m = 0; m < windows; m++)
            locate(map, first + m, at + m * N);
        for (size n = 0; n < slots; n += map.window) {
            size columns = 0;
            for (; columns < map.window && at[n + columns] >= 0; columns++) {
                row_of[n + columns] = rows + columns;
                slot[rows + columns] = n + columns;
            }
            for (size i = columns; i < map.window; i++)
                row_of[n + i] = -1;
            if (columns)
                line(at[n], rows, columns);
            rows += columns;
        }
    }
};

template <class T>
static void window_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                        const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory,
                        const Sizes &shape) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    Map map(shape.B, shape.H, shape.W, shape.C, shape.G, shape.window);
    Chunks chunks(shape);
    size C = shape.C, D = C / shape.G, N = shape.window * shape.window, words = C / PER;
    size each = items_per_task(map.windows(), MAX_ROWS / N > 1 ? MAX_ROWS / N : 1, shape.threads); // windows
    T *y = memory.middle;
#pragma omp parallel num_threads(shape.threads)
    {
        size max_slots = each * N, strip = (max_slots + VL) * chunks.heads * D;
        Scratch scratch(2 * max_slots * C + 3 * strip + Head<T>::memory(N, D) + Places::memory(max_slots));
        T *normed = (T *)scratch.take(max_slots * C), *mixed = (T *)scratch.take(max_slots * C);
        T *strips[3] = {(T *)scratch.take(strip), (T *)scratch.take(strip), (T *)scratch.take(strip)};
        Head<T> head(N, D, scratch);
        Places places(max_slots, scratch);
#pragma omp for schedule(dynamic)
        for (size first = 0; first < map.windows(); first += each) {
            size windows = min(each, map.windows() - first);
            places.find(map, first, windows, [&](size at, size row, size columns) INLINE_LAMBDA {
                encode_and_norm(x, encoding, norm, y, normed + row * C, shape, at, columns);
            });
            for (size g = 0; g < shape.G; g += chunks.heads) {
                size heads = min(chunks.heads, shape.G - g), width = heads * D;
                for (size s = 0; s < 3; s++) {
                    size column = s * C + g * D;
                    const float *bias = qkv_bias + column;
                    float scale = s == 0 ? shape.scale : 1.0f;
                    T *to = strips[s];
                    panels(normed, places.rows, C, weights.qkv + column * words, width,
                           [&](size i, size c, vfloat total) INLINE_LAMBDA {
                               store(to + places.slot[i] * width + c, (total + load(bias + c)) * scale);
                           });
                    if (places.rows < places.slots) // outside the map q, k and v are the bias
                        for (size n = 0; n < places.slots; n++)
                            for (size c = 0; places.at[n] < 0 && c < width; c += VL)
                                store(to + n * width + c, load(bias + c) * scale);
                }
                for (size m = 0; m < windows; m++)
                    for (size h = 0; h < heads; h++) {
                        size from = m * N * width + h * D, to = (g + h) * D;
                        head.attend(strips[0] + from, strips[1] + from, strips[2] + from, width,
                                    [&](size n, size c, vfloat value) INLINE_LAMBDA {
                                        size row = places.row_of[m * N + n];
                                        if (row >= 0)
                                            store(mixed + row * C + to + c, value);
                                    });
                    }
            }
            panels(mixed, places.rows, C, weights.proj, C, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                T *dst = y + places.at[places.slot[i]] * C + c;
                store(dst, total + load(proj_bias + c) + load(dst));
            });
        }
    }
}
