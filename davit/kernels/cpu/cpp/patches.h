// Patch embeddings without gradients: the patches at some positions as rows of a matrix, times the weight.
#pragma once

#include "linear.h"

constexpr size STEM = 7; // side of the stem's patches, which reach 3 pixels beyond the image

struct Embedding {
    size B, H, W, C, N, stride; // of what is read; channels written; pixels or positions for each position written
    bool stem;
    int threads;

    size height() const { return (H - 1) / stride + 1; }
    size width() const { return (W - 1) / stride + 1; }
    size M() const { return B * height() * width(); }
    void place(size i, size &image, size &h, size &w) const {
        image = i / (height() * width()), h = i / width() % height() * stride, w = i % width() * stride;
    }
};

// Of an image (B, C, H, W) a row (C, 7, 7) for each of `rows` positions from `start` on, zeros behind it up to K.
template <class T>
INLINE void patches_of_image(const T *x, const Embedding &of, size start, size rows, size K, T *out) {
    for (size i = start; i < start + rows; i++) {
        size image, h, w;
        of.place(i, image, h, w);
        h -= STEM / 2, w -= STEM / 2;
        T *end = out + K;
        for (size c = 0; c < of.C; c++)
            for (size row = h; row < h + STEM; row++, out += STEM) {
                const T *from = x + ((image * of.C + c) * of.H + row) * of.W;
                if (row < 0 || row >= of.H)
                    memset(out, 0, STEM * sizeof(T));
                else if (w >= 0 && w + STEM <= of.W)
                    memcpy(out, from + w, STEM * sizeof(T));
                else
                    for (size j = 0; j < STEM; j++)
                        out[j] = w + j >= 0 && w + j < of.W ? from[w + j] : T{};
            }
        memset(out, 0, (end - out) * sizeof(T));
        out = end;
    }
}

// Of the norm of a map (B, H, W, C) a row of words (2, 2, C) for each position, of bfloat16 (2, C) with both columns
// in a word. Outside the map it is zero, also where the norm would not be. `pair` holds two positions.
template <class T>
INLINE void patches_of_map(const T *x, const Norm &norm, const Embedding &of, size start, size rows, T *pair,
                           typename Word<T>::type *out) {
    constexpr size PER = sizeof(*out) / sizeof(T);
    for (size i = start; i < start + rows; i++) {
        size image, h, w;
        of.place(i, image, h, w);
        for (size row = h; row < h + 2; row++, out += 2 * of.C / PER) {
            size columns = row < of.H ? least(2, of.W - w) : 0;
            norm_rows(x + ((image * of.H + row) * of.W + w) * of.C, norm, pair, 0, columns, of.C);
            memset(pair + columns * of.C, 0, (2 - columns) * of.C * sizeof(T));
            pack_rows(pair, of.C, 2, of.C, out);
        }
    }
}

// The weight (N, C, 2, 2) as panels with the rows of such words.
template <class T> INLINE void pack_patches(const T *weight, size N, size C, typename Word<T>::type *packed) {
    constexpr size EACH = 4 * sizeof(T) / sizeof(*packed); // words of a channel
    Scratch scratch(PANEL * EACH * C);
    typedef typename Word<T>::type W;
    W *turned = (W *)scratch.take(PANEL * EACH * C);
#pragma omp for schedule(dynamic)
    for (size first = 0; first < N; first += PANEL) {
        size n = least(PANEL, N - first);
        pack_panel(weight + first * 4 * C, 0, n, 4 * C, turned);
        for (size c = 0; c < C; c++)
            for (size t = 0; t < EACH; t++)
                memcpy(packed + first * EACH * C + (t * C + c) * n, turned + (c * EACH + t) * n, n * sizeof(W));
    }
}

// The stem, a 7 x 7 convolution of an image and then the norm; or the norm of a map and then a 2 x 2 one. A row of the
// weight has K numbers.
template <class T>
static void embed(const T *x, const T *weight, const float *bias, const Norm &norm, typename Word<T>::type *packed,
                  T *out, size K, const Embedding &of) {
    typedef typename Word<T>::type W;
    size N = of.N, sums_of_row = of.stem ? N : 0, pair_of_task = of.stem ? 0 : 2 * of.C;
    Tasks tasks(of.M(), 4 * (K + sums_of_row), of.threads);
#pragma omp parallel num_threads(of.threads)
    {
        Scratch scratch(tasks.rows * (K + sums_of_row) + pair_of_task);
        T *patches = (T *)scratch.take(tasks.rows * K), *pair = (T *)scratch.take(pair_of_task);
        float *sums = scratch.take(tasks.rows * sums_of_row);
        if (of.stem)
            pack(weight, N, K, packed);
        else
            pack_patches(weight, N, of.C, packed);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, of.M() - start);
            T *to = out + start * N;
            if (of.stem) {
                patches_of_image(x, of, start, rows, K, patches);
                panels(patches, rows, K, packed, N, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(sums + i * N + c, total + load(bias + c));
                });
                norm_rows(sums, norm, to, start, rows, N);
            } else {
                patches_of_map(x, norm, of, start, rows, pair, (W *)patches);
                panels(patches, rows, K, packed, N, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(to + i * N + c, total + load(bias + c));
                });
            }
        }
    }
}
