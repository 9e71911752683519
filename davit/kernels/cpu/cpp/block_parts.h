// What the passes of a whole block share: its weights, sizes and memory, position encoding with norm.
#pragma once

#include "attention.h"
#include "encoding.h"
#include "linear.h"

// Where a block's weights are; any vector may be absent. As `PARAMETERS` in whole.py.
enum Parameter {
    TAPS1,
    TAPS1_BIAS,
    TAPS2,
    TAPS2_BIAS,
    SCALE1,
    SHIFT1,
    SCALE2,
    SHIFT2,
    QKV,
    QKV_BIAS,
    PROJ,
    PROJ_BIAS,
    FC1,
    FC1_BIAS,
    FC2,
    FC2_BIAS
};

struct Sizes {
    size B, H, W, C, E, G; // E of the hidden map, 0 without an MLP; G heads or groups
    size window;           // 0: channel attention
    float scale, eps1, eps2;
    int threads;
    size M() const { return B * H * W; }
    // Whether channel attention goes by the Gram matrix of the map: where positions outnumber channels, in bfloat16
    // twice, as squares of C are multiplied in float32, at half the rate.
    bool by_gram(size bytes) const { return !window && H * W * bytes >= 4 * C; }
};

struct Units { // of an image's positions; sums over one are added in order, so that they do not depend on the tasks
    size of_image, N, count;
    Units(size B, size N) : N(N) {
        size most = least(MOST_ROWS, N / 64 > 28 ? N / 64 : 28);
        of_image = (N + most - 1) / most;
        count = B * of_image;
    }
    size start(size unit) const { return unit / of_image * N + N * (unit % of_image) / of_image; }
};

struct GramUnits { // of one image, for Gram matrices: fewer, as each unit has a whole one
    size N, count;
    explicit GramUnits(size N) : N(N), count(N / 392 < 4 ? 4 : least(N / 392, 64)) {}
    size start(size unit) const { return N * unit / count; }
};

constexpr size PART_BYTES = 2 << 20; // of a map, for each thread. Bounds the memory; from 1 to 64 MB as fast

// So many of the images at a time.
INLINE size images_of_part(const Sizes &of, size bytes) {
    size most = PART_BYTES * of.threads / (of.H * of.W * of.C * bytes);
    return least(of.B, most > 1 ? most : 1);
}

// The matrices of a block as panels, one behind the other: 4 C C + 2 E C numbers.
template <class T> struct Matrices {
    typedef typename Word<T>::type W;
    W *qkv, *proj, *fc1, *fc2;

    Matrices(void *packed, size C, size E) {
        T *first = (T *)packed;
        qkv = (W *)first, proj = (W *)(first + 3 * C * C);
        fc1 = (W *)(first + 4 * C * C), fc2 = (W *)(first + 4 * C * C + E * C);
    }
};

// Carved out of memory that the caller keeps from one block to the next: new pages are dear.
template <class T> struct Memory {
    typedef typename Word<T>::type W;
    T *middle,
        *kept;    // maps (B, H, W, C); of channel attention the second one keeps q or, for the Gram matrix, the norm
    T *packed;    // for the matrices, where they are not packed yet
    float *parts; // channel attention's sums over each unit: k^T v of each group, or (C + 1, C)
    W *attention; // k^T v's softmax, of each image and group
    // By the Gram matrix, of each image: this one (C + 1, C), Wq under the attention (C + 1, C), the projection of
    // that (C, C) and its bias, and of the block its weights in float32.
    float *gram, *mixed, *bias, *wide;
    W *folded;

    Memory(char *base, const Sizes &of, bool packs, size &bytes) {
        bytes = 0;
        auto take = [&](bool needed, size numbers, size each) {
            char *here = base + bytes;
            bytes += needed ? (numbers * each + 63) / 64 * 64 : 0;
            return here;
        };
        constexpr size NUMBER = sizeof(T), FLOAT = sizeof(float);
        size C = of.C, N = of.H * of.W, map = of.M() * C, square = of.B * (C + 1) * C, groups = of.B * C * (C / of.G);
        bool by_gram = of.by_gram(NUMBER), by_keys = !of.window && !by_gram;
        middle = (T *)take(true, map, NUMBER), kept = (T *)take(!of.window, map, NUMBER);
        packed = (T *)take(packs, 4 * C * C + 2 * of.E * C, NUMBER);
        size all_parts = by_gram ? square * GramUnits(N).count : groups * Units(of.B, N).of_image;
        parts = (float *)take(!of.window, all_parts, FLOAT);
        attention = (W *)take(by_keys, groups, NUMBER);
        gram = (float *)take(by_gram, square, FLOAT), mixed = (float *)take(by_gram, square, FLOAT);
        folded = (W *)take(by_gram, of.B * C * C, NUMBER), bias = (float *)take(by_gram, of.B * C, FLOAT);
        wide = (float *)take(by_gram && NUMBER < FLOAT, 4 * C * C, FLOAT);
    }
};

// --- vectors in float32 ---

INLINE float number(float x) { return x; }

INLINE float number(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

template <class T> static const float *floats(const void *given, size n, float otherwise, Scratch &scratch) {
    float *to = scratch.take(n);
    for (size i = 0; i < n; i++)
        to[i] = given ? number(((const T *)given)[i]) : otherwise;
    return to;
}

struct Encoding {
    const float *taps, *bias; // (9, C)
};

template <class T> INLINE Encoding encoding_of(const void *weight, const void *bias, size C, Scratch &scratch) {
    float *taps = scratch.take(9 * C);
    for (size c = 0; c < C; c++)
        for (size i = 0; i < 9; i++)
            taps[i * C + c] = number(((const T *)weight)[c * 9 + i]);
    return {taps, floats<T>(bias, C, 0.0f, scratch)};
}

// --- position encoding and norm of some positions ---

// Of columns [first, last) of a row of the map: x + encoding to `y` at its place in the map, its norm to `normed`.
template <class T>
INLINE void encode_and_norm(const T *x, const Encoding &encoding, const Norm &norm, T *y, T *normed, const Sizes &of,
                            size row, size first, size last) {
    size C = of.C, at = row * of.W * C;
    encode_row(x + at, encoding.taps, encoding.bias, y + at, nullptr, row % of.H, of.H, of.W, C, first, last);
    norm_rows(y + at + first * C, norm, normed, 0, last - first, C);
}

// The same of `rows` positions from `start` on.
template <class T>
INLINE void encode_and_norm(const T *x, const Encoding &encoding, const Norm &norm, T *y, T *normed, const Sizes &of,
                            size start, size rows) {
    for (size at = start; at < start + rows;) {
        size row = at / of.W, first = at % of.W, last = least(of.W, first + start + rows - at);
        encode_and_norm(x, encoding, norm, y, normed + (at - start) * of.C, of, row, first, last);
        at += last - first;
    }
}

// --- q, k and v of some heads or groups at a time ---

struct Chunks { // of the columns of q, of k and of v
    size heads, count;
    explicit Chunks(const Sizes &of) {
        size D = of.C / of.G;
        heads = D < PANEL ? PANEL / D : 1;
        count = (of.G + heads - 1) / heads;
    }
};

// panel(first, n) for all panels of the weight (3 C, C), those of each chunk of q, of k and of v.
template <class F> INLINE void chunk_panels(const Sizes &of, const F &panel) {
    Chunks chunks(of);
    size C = of.C, width = chunks.heads * (C / of.G);
#pragma omp for schedule(dynamic)
    for (size i = 0; i < 3 * chunks.count; i++) {
        size start = i / chunks.count * C, first = start + i % chunks.count * width;
        size last = least(first + width, start + C);
        for (; first < last; first += PANEL)
            panel(first, least(PANEL, last - first));
    }
}
