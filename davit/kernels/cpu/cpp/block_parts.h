// Shared by the passes of a whole block: its weights, sizes and memory, and the position encoding with its norm.
#pragma once

#include "attention.h"
#include "encoding.h"
#include "linear.h"

// Index of each parameter of a block, as in `PARAMETERS` of native.py. Biases and norm weights may be null.
enum Parameter {
    TAPS1,
    TAPS1_BIAS,
    TAPS2,
    TAPS2_BIAS,
    NORM1_WEIGHT,
    NORM1_BIAS,
    NORM2_WEIGHT,
    NORM2_BIAS,
    QKV,
    QKV_BIAS,
    PROJ,
    PROJ_BIAS,
    FC1,
    FC1_BIAS,
    FC2,
    FC2_BIAS
};

constexpr size FEW_POSITIONS = 256;

struct Sizes {
    size B, H, W, C, E, G; // E: channels of the hidden map, 0 without an MLP; G: heads or groups
    size window;           // side of a window; 0 for channel attention
    float scale, eps1, eps2;
    int threads;
    bool qk; // Florence-2's channel attention
    size M() const { return B * H * W; }
    // Whether channel attention uses the Gram matrix: with at least as many positions as channels in float32, and
    // twice as many in bfloat16, since products of C x C matrices run in float32, at half the rate.
    bool by_gram(size bytes) const { return !window && H * W * bytes >= 4 * C; }
    // Whether threads share columns and not positions (block_columns.h). With more positions, packing a weight once
    // for all threads costs little.
    bool by_columns(size bytes) const { return M() <= FEW_POSITIONS && !by_gram(bytes); }
};

// Units of an image's positions. The sums of the units are added in a fixed order, whatever the number of threads.
struct Units {
    size per_image, N, count;
    Units(size B, size N) : N(N) {
        size limit = min(MAX_ROWS, N / 64 > 28 ? N / 64 : 28);
        per_image = (N + limit - 1) / limit;
        count = B * per_image;
    }
    size start(size unit) const { return unit / per_image * N + N * (unit % per_image) / per_image; }
};

// Units for Gram matrices: fewer of them, since each needs memory for a whole matrix.
struct GramUnits {
    size N, count;
    explicit GramUnits(size N) : N(N), count(N / 392 < 4 ? 4 : min(N / 392, 64)) {}
    size start(size unit) const { return N * unit / count; }
};

constexpr size PART_BYTES =
    2 << 20; // of a map, for each thread: bounds the memory. From 1 to 64 MB the speed is the same

// Number of images to compute at a time.
INLINE size images_of_part(const Sizes &shape, size bytes) {
    size limit = PART_BYTES * shape.threads / (shape.H * shape.W * shape.C * bytes);
    return min(shape.B, limit > 1 ? limit : 1);
}

// The packed matrices of a block, one after another: 4 C C + 2 E C values.
template <class T> struct Matrices {
    typedef typename Word<T>::type W;
    W *qkv, *proj, *fc1, *fc2;

    Matrices(void *packed, size C, size E) {
        T *first = (T *)packed;
        qkv = (W *)first, proj = (W *)(first + 3 * C * C);
        fc1 = (W *)(first + 4 * C * C), fc2 = (W *)(first + 4 * C * C + E * C);
    }
};

// Intermediate results, in memory that the caller keeps from one block to the next, as new pages cost time.
template <class T> struct Memory {
    typedef typename Word<T>::type W;
    T *middle,
        *kept;    // maps (B, H, W, C); channel attention keeps x (see `Roles`) in the second one, or with the Gram
                  // matrix the norm's output
    T *packed;    // the matrices, if the caller did not pack them
    float *parts; // channel attention's sums over each unit: a^T b of each group, or Gram matrices (C + 1, C)
    W *attention; // softmax of a^T b, for each image and group
    // With the Gram matrix, for each image: that matrix (C + 1, C), A Wx (C + 1, C), and the folded projection of it
    // (C, C) with its bias. For the block: its weights in float32.
    float *gram, *mixed, *bias, *wide;
    W *folded;
    // Of a block by columns alone: the maps of q, k and v (B, H, W, 3 C), of the attention (C) and of the GELU (E),
    // and channel attention's matrices (D, D).
    T *qkv, *attended, *hidden;
    float *squares;

    Memory(char *base, const Sizes &shape, bool packs, size &bytes) {
        bytes = 0;
        auto take = [&](bool needed, size numbers, size each) {
            char *piece = base + bytes;
            bytes += needed ? (numbers * each + 63) / 64 * 64 : 0;
            return piece;
        };
        constexpr size NUMBER = sizeof(T), FLOAT = sizeof(float);
        size C = shape.C, N = shape.H * shape.W, map = shape.M() * C, square = shape.B * (C + 1) * C,
             groups = shape.B * C * (C / shape.G);
        bool by_gram = shape.by_gram(NUMBER), by_keys = !shape.window && !by_gram;
        bool columns = packs && shape.by_columns(NUMBER);
        middle = (T *)take(true, map, NUMBER), kept = (T *)take(columns || !shape.window, map, NUMBER);
        packed = (T *)take(packs && !columns, 4 * C * C + 2 * shape.E * C, NUMBER);
        qkv = (T *)take(columns, 3 * map, NUMBER), attended = (T *)take(columns, map, NUMBER);
        hidden = (T *)take(columns, shape.M() * shape.E, NUMBER);
        squares = (float *)take(columns && !shape.window, groups, FLOAT);
        size all_parts = by_gram ? square * GramUnits(N).count : groups * Units(shape.B, N).per_image;
        parts = (float *)take(!shape.window, all_parts, FLOAT);
        attention = (W *)take(by_keys, groups, NUMBER);
        gram = (float *)take(by_gram, square, FLOAT), mixed = (float *)take(by_gram, square, FLOAT);
        folded = (W *)take(by_gram, shape.B * C * C, NUMBER), bias = (float *)take(by_gram, shape.B * C, FLOAT);
        wide = (float *)take(by_gram && NUMBER < FLOAT, 4 * C * C, FLOAT);
    }
};

// --- parameters as float32 ---

INLINE float number(float x) { return x; }

INLINE float number(bfloat16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

template <class T> static const float *floats(const void *given, size n, float fallback, Scratch &scratch) {
    float *to = scratch.take(n);
    for (size i = 0; i < n; i++)
        to[i] = given ? number(((const T *)given)[i]) : fallback;
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

// For columns [first, last) of a row of the map: write x + encoding into the map `y`, and its norm to `normed`.
template <class T>
INLINE void encode_and_norm(const T *x, const Encoding &encoding, const Norm &norm, T *y, T *normed,
                            const Sizes &shape, size row, size first, size last) {
    size C = shape.C, at = row * shape.W * C;
    encode_row(x + at, encoding.taps, encoding.bias, y + at, nullptr, row % shape.H, shape.H, shape.W, C, first, last);
    norm_rows(y + at + first * C, norm, normed, 0, last - first, C);
}

// The same for `rows` positions from `start` on, which may span several rows of the map.
template <class T>
INLINE void encode_and_norm(const T *x, const Encoding &encoding, const Norm &norm, T *y, T *normed,
                            const Sizes &shape, size start, size rows) {
    for (size at = start; at < start + rows;) {
        size row = at / shape.W, first = at % shape.W, last = min(shape.W, first + start + rows - at);
        encode_and_norm(x, encoding, norm, y, normed + (at - start) * shape.C, shape, row, first, last);
        at += last - first;
    }
}

// --- q, k and v of some heads or groups at a time ---

struct Chunks { // groups of heads whose columns are computed together
    size heads, count;
    explicit Chunks(const Sizes &shape) {
        size D = shape.C / shape.G;
        heads = D < PANEL ? PANEL / D : 1;
        count = (shape.G + heads - 1) / heads;
    }
};

// Call panel(first, n) for all panels of the weight (3 C, C), chunk by chunk of q, k and v.
template <class F> INLINE void chunk_panels(const Sizes &shape, const F &panel) {
    Chunks chunks(shape);
    size C = shape.C, width = chunks.heads * (C / shape.G);
#pragma omp for schedule(dynamic)
    for (size i = 0; i < 3 * chunks.count; i++) {
        size start = i / chunks.count * C, first = start + i % chunks.count * width;
        size last = min(first + width, start + C);
        for (; first < last; first += PANEL)
            panel(first, min(PANEL, last - first));
    }
}
