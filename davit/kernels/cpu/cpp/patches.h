// Inference of patch embeddings: patches are copied as rows of a matrix and multiplied by the weight.
#pragma once

#include "block_columns.h"

constexpr size STEM = 7; // side of the stem's patches, which reach 3 pixels beyond the image

struct Embedding {
    size B, H, W, C, N, stride; // size of the input; channels written; stride of the convolution
    bool stem;
    int threads;

    size height() const { return (H - 1) / stride + 1; }
    size width() const { return (W - 1) / stride + 1; }
    size M() const { return B * height() * width(); }
    void place(size i, size &image, size &h, size &w) const {
        image = i / (height() * width()), h = i / width() % height() * stride, w = i % width() * stride;
    }
};

// Copy the patches (C, 7, 7) of an image (B, C, H, W) at `rows` positions from `start` on, each padded with zeros to
// K.
template <class T>
INLINE void patches_of_image(const T *x, const Embedding &shape, size start, size rows, size K, T *out) {
    for (size i = start; i < start + rows; i++) {
        size image, h, w;
        shape.place(i, image, h, w);
        h -= STEM / 2, w -= STEM / 2;
        T *end = out + K;
        for (size c = 0; c < shape.C; c++)
            for (size row = h; row < h + STEM; row++, out += STEM) {
                const T *from = x + ((image * shape.C + c) * shape.H + row) * shape.W;
                if (row < 0 || row >= shape.H)
                    memset(out, 0, STEM * sizeof(T));
                else if (w >= 0 && w + STEM <= shape.W)
                    memcpy(out, from + w, STEM * sizeof(T));
                else
                    for (size j = 0; j < STEM; j++)
                        out[j] = w + j >= 0 && w + j < shape.W ? from[w + j] : T{};
            }
        memset(out, 0, (end - out) * sizeof(T));
        out = end;
    }
}

// Normalise a map (B, H, W, C) and copy its patches (2, 2, C) as rows of words; bfloat16 has both columns in a word.
// Outside the map a patch is zero, whatever the norm's bias. `pair` is memory for two positions.
template <class T>
INLINE void patches_of_map(const T *x, const Norm &norm, const Embedding &shape, size start, size rows, T *pair,
                           typename Word<T>::type *out) {
    constexpr size PER = sizeof(*out) / sizeof(T);
    for (size i = start; i < start + rows; i++) {
        size image, h, w;
        shape.place(i, image, h, w);
        for (size row = h; row < h + 2; row++, out += 2 * shape.C / PER) {
            size columns = row < shape.H ? min(2, shape.W - w) : 0;
            norm_rows(x + ((image * shape.H + row) * shape.W + w) * shape.C, norm, pair, 0, columns, shape.C);
            memset(pair + columns * shape.C, 0, (2 - columns) * shape.C * sizeof(T));
            pack_rows(pair, shape.C, 2, shape.C, out);
        }
    }
}

// Pack the weight (N, C, 2, 2) as panels whose rows are in the order of `patches_of_map`.
template <class T> INLINE void pack_patches(const T *weight, size N, size C, typename Word<T>::type *packed) {
    constexpr size EACH = 4 * sizeof(T) / sizeof(*packed); // words of a channel
    Scratch scratch(PANEL * EACH * C);
    typedef typename Word<T>::type W;
    W *transposed = (W *)scratch.take(PANEL * EACH * C);
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL) {
        size n = min(PANEL, N - first);
        pack_panel(weight + first * 4 * C, 0, n, 4 * C, transposed);
        for (size c = 0; c < C; c++)
            for (size t = 0; t < EACH; t++)
                memcpy(packed + first * EACH * C + (t * C + c) * n, transposed + (c * EACH + t) * n, n * sizeof(W));
    }
}

// The stem: a 7 x 7 convolution of an image, then the norm. Otherwise: the norm of a map, then a 2 x 2 convolution. A
// row of the weight has K values.
template <class T>
static void embed(const T *x, const T *weight, const float *bias, const Norm &norm, typename Word<T>::type *packed,
                  T *out, size K, const Embedding &shape) {
    typedef typename Word<T>::type W;
    size N = shape.N, sums_of_row = shape.stem ? N : 0, pair_of_task = shape.stem ? 0 : 2 * shape.C;
    Tasks tasks(shape.M(), 4 * (K + sums_of_row), shape.threads);
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(tasks.rows * (K + sums_of_row) + pair_of_task);
        T *patches = (T *)scratch.take(tasks.rows * K), *pair = (T *)scratch.take(pair_of_task);
        float *sums = scratch.take(tasks.rows * sums_of_row);
        if (shape.stem)
            pack(weight, N, K, packed);
        else
            pack_patches(weight, N, shape.C, packed);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = min(tasks.rows, shape.M() - start);
            T *to = out + start * N;
            if (shape.stem) {
                patches_of_image(x, shape, start, rows, K, patches);
                panels(patches, rows, K, packed, N, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(sums + i * N + c, total + load(bias + c));
                });
                norm_rows(sums, norm, to, start, rows, N);
            } else {
                patches_of_map(x, norm, shape, start, rows, pair, (W *)patches);
                panels(patches, rows, K, packed, N, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(to + i * N + c, total + load(bias + c));
                });
            }
        }
    }
}

// The same for a map with few positions in the output: threads share columns, as in block_columns.h. Patches are in
// the weight's own order (C, 2, 2), so that this is a linear layer.
template <class T>
static void embed_by_columns(const T *x, const T *weight, const float *bias, const Norm &norm, T *out, size K,
                             const Embedding &shape) {
    size C = shape.C, N = shape.N, M = shape.M();
    Scratch shared(M * K);
    T *patches = (T *)shared.take(M * K);
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(PANEL * (DEPTH + M) + C);
        float *packed = scratch.take(PANEL * DEPTH), *sums = scratch.take(PANEL * M);
        T *normed = (T *)scratch.take(C);
#pragma omp for schedule(static)
        for (size i = 0; i < M; i++) {
            size image, h, w;
            shape.place(i, image, h, w);
            for (size cell = 0; cell < 4; cell++) {
                size row = h + cell / 2, column = w + cell % 2;
                bool inside = row < shape.H && column < shape.W;
                if (inside)
                    norm_rows(x + ((image * shape.H + row) * shape.W + column) * C, norm, normed, 0, 1, C);
                for (size c = 0; c < C; c++)
                    patches[i * K + 4 * c + cell] = inside ? normed[c] : T{};
            }
        }
        layer_by_columns(patches, weight, M, K, N, shape.threads, packed, sums,
                         [&](size i, size c, vfloat total)
                             INLINE_LAMBDA { store(out + i * N + c, total + load(bias + c)); });
    }
}
