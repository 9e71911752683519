// A whole block without gradients, in passes over the map. Within a pass a task goes from the position encoding to the
// residual with its numbers in a core's own cache: q, k and v of windows never leave it, and of channel attention q
// alone does.
#pragma once

#include "attention.h"
#include "encoding.h"
#include "linear.h"

// Where a block's weights are; any vector may be absent. As `PARAMETERS` in inference.py.
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
    T *middle, *q; // maps (B, H, W, C); the second one and what follows are for channel attention
    float *parts;  // squares (D, D) of each image, group and unit
    W *attention;  // and of each image and group
    T *packed;     // for the matrices, where they are not packed yet

    Memory(char *base, const Sizes &of, bool packs, size &bytes) {
        bytes = 0;
        auto take = [&](size numbers, size each) {
            char *here = base + bytes;
            bytes += (numbers * each + 63) / 64 * 64;
            return here;
        };
        size C = of.C, squares = of.window ? 0 : of.B * of.C * (of.C / of.G), map = of.M() * C;
        packed = (T *)take(packs ? 4 * C * C + 2 * of.E * C : 0, sizeof(T));
        middle = (T *)take(map, sizeof(T)), q = (T *)take(of.window ? 0 : map, sizeof(T));
        parts = (float *)take(squares * Units(of.B, of.H * of.W).of_image, sizeof(float));
        attention = (W *)take(squares, sizeof(T));
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

// The weight (3 C, C) as panels of each chunk of q, of k and of v.
template <class T>
INLINE void pack_chunks(const T *weight, const Sizes &of, const Chunks &chunks, typename Word<T>::type *packed) {
    size C = of.C, width = chunks.heads * (C / of.G);
#pragma omp for schedule(dynamic)
    for (size i = 0; i < 3 * chunks.count; i++) {
        size start = i / chunks.count * C, first = start + i % chunks.count * width;
        size last = least(first + width, start + C);
        for (; first < last; first += PANEL)
            pack_panel(weight, first, least(PANEL, last - first), C, packed);
    }
}

// --- window attention ---

template <class T> struct Head { // memory of a thread for one head of a window
    typedef typename Word<T>::type W;
    size N, NP, D; // positions, so many that they fill vectors, channels
    W *k, *v;
    float *scores;
    T *weights;

    static size positions(size N) { return (N + VL - 1) / VL * VL; }
    static size memory(size N, size D) { return 2 * positions(N) * D + 2 * N * positions(N); }
    Head(size N, size D, Scratch &scratch) : N(N), NP(positions(N)), D(D) {
        k = (W *)scratch.take(D * NP), v = (W *)scratch.take(D * NP);
        scores = scratch.take(N * NP), weights = (T *)scratch.take(N * NP);
    }

    // finish(n, c, sum) of q, k and v (N, D), `width` apart; q has the scale. Reads NP rows of k.
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

template <class T>
static void window_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                        const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory, const Sizes &of) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    Map map(of.B, of.H, of.W, of.C, of.G, of.window);
    Chunks chunks(of);
    size C = of.C, D = C / of.G, N = of.window * of.window, words = C / PER;
    size each = of_task(map.windows(), MOST_ROWS / N > 1 ? MOST_ROWS / N : 1, of.threads); // windows
    T *y = memory.middle;
#pragma omp parallel num_threads(of.threads)
    {
        size slots = each * N, strip = (slots + VL) * chunks.heads * D;
        Scratch scratch(2 * slots * C + 3 * strip + Head<T>::memory(N, D) + 2 * 3 * slots);
        T *normed = (T *)scratch.take(slots * C), *mixed = (T *)scratch.take(slots * C);
        T *strips[3] = {(T *)scratch.take(strip), (T *)scratch.take(strip), (T *)scratch.take(strip)};
        Head<T> head(N, D, scratch);
        size *at = (size *)scratch.take(2 * slots);     // position of each place in a window, or -1
        size *row_of = (size *)scratch.take(2 * slots); // row of the place, among those in the map
        size *slot = (size *)scratch.take(2 * slots);   // place of the row
#pragma omp for schedule(dynamic)
        for (size first = 0; first < map.windows(); first += each) {
            size windows = least(each, map.windows() - first), rows = 0;
            for (size m = 0; m < windows; m++)
                locate(map, first + m, at + m * N);
            for (size n = 0; n < windows * N;) { // a row of a window at a time
                size columns = 0;
                for (; columns < of.window && at[n + columns] >= 0; columns++) {
                    row_of[n + columns] = rows + columns;
                    slot[rows + columns] = n + columns;
                }
                for (size i = columns; i < of.window; i++)
                    row_of[n + i] = -1;
                if (columns)
                    encode_and_norm(x, encoding, norm, y, normed + rows * C, of, at[n], columns);
                rows += columns, n += of.window;
            }
            for (size g = 0; g < of.G; g += chunks.heads) {
                size heads = least(chunks.heads, of.G - g), width = heads * D;
                for (size s = 0; s < 3; s++) {
                    size column = s * C + g * D;
                    const float *bias = qkv_bias + column;
                    float scale = s == 0 ? of.scale : 1.0f;
                    T *to = strips[s];
                    panels(normed, rows, C, weights.qkv + column * words, width,
                           [&](size i, size c, vfloat total)
                               INLINE_LAMBDA { store(to + slot[i] * width + c, (total + load(bias + c)) * scale); });
                    if (rows < windows * N) // outside the map q, k and v are the bias
                        for (size n = 0; n < windows * N; n++)
                            for (size c = 0; at[n] < 0 && c < width; c += VL)
                                store(to + n * width + c, load(bias + c) * scale);
                }
                for (size m = 0; m < windows; m++)
                    for (size h = 0; h < heads; h++) {
                        size from = m * N * width + h * D, to = (g + h) * D;
                        head.attend(strips[0] + from, strips[1] + from, strips[2] + from, width,
                                    [&](size n, size c, vfloat value) INLINE_LAMBDA {
                                        size row = row_of[m * N + n];
                                        if (row >= 0)
                                            store(mixed + row * C + to + c, value);
                                    });
                    }
            }
            panels(mixed, rows, C, weights.proj, C, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                T *here = y + at[slot[i]] * C + c;
                store(here, total + load(proj_bias + c) + load(here));
            });
        }
    }
}

// --- channel attention ---

template <class T>
static void channel_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                         const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory,
                         const Sizes &of) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    Units units(of.B, of.H * of.W);
    Chunks chunks(of);
    size C = of.C, G = of.G, D = C / G, N = units.N, words = C / PER, U = units.of_image;
    size largest = (N + U - 1) / U, each = of_task(units.count, MOST_ROWS / largest, of.threads); // units
    size places = each * largest;
    Tasks later(of.M(), 4 * C, of.threads);
    T *y = memory.middle, *q = memory.q;
#pragma omp parallel num_threads(of.threads)
    {
        size most_rows = places > later.rows ? places : later.rows, strip = places * chunks.heads * D;
        Scratch scratch(most_rows * C + 2 * strip + 3 * D * D);
        T *normed = (T *)scratch.take(most_rows * C), *mixed = normed;
        float *k = scratch.take(strip), *v = scratch.take(strip);
        float *squares = scratch.take(D * D), *turned = scratch.take(D * D);
        T *rounded = (T *)scratch.take(D * D);
#pragma omp for schedule(dynamic)
        for (size first = 0; first < units.count; first += each) {
            size last = least(first + each, units.count), start = units.start(first);
            size rows = units.start(last) - start;
            encode_and_norm(x, encoding, norm, y, normed, of, start, rows);
            for (size g = 0; g < G; g += chunks.heads) {
                size groups = least(chunks.heads, G - g), width = groups * D;
                const float *bias = qkv_bias + g * D;
                T *to = q + start * C + g * D;
                const W *packed = weights.qkv + g * D * words;
                panels(normed, rows, C, packed, width, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(to + i * C + c, total + load(bias + c));
                });
                panels(normed, rows, C, packed + C * words, width, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                    store(k + i * width + c, total + load(bias + C + c));
                });
                panels(normed, rows, C, packed + 2 * C * words, width,
                       [&](size i, size c, vfloat total)
                           INLINE_LAMBDA { store(v + i * width + c, total + load(bias + 2 * C + c)); });
                for (size unit = first; unit < last; unit++) {
                    size from = (units.start(unit) - start) * width, count = units.start(unit + 1) - units.start(unit);
                    for (size h = 0; h < groups; h++) {
                        float *part = memory.parts + ((unit / U * G + g + h) * U + unit % U) * D * D;
                        product(k + from + h * D, 1, width, v + from + h * D, width, D, count, D, Write{part, D});
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (size i = 0; i < of.B * G; i++) {
            add_parts(memory.parts + i * U * D * D, U, D * D, of.scale, squares);
            softmax(squares, D, D, D);
            transpose(squares, D, D, D, turned);
            for (size j = 0; j < D * D; j += VL)
                store(rounded + j, load(turned + j));
            pack_rows(rounded, D, D, D, memory.attention + i * D * D / PER);
        }
#pragma omp for schedule(dynamic)
        for (size task = 0; task < later.count; task++) {
            size start = task * later.rows, rows = least(later.rows, of.M() - start);
            for (size at = start; at < start + rows;) { // of one image at a time
                size image = at / N, count = least((image + 1) * N, start + rows) - at;
                for (size g = 0; g < G; g++)
                    product((const W *)(q + at * C + g * D), words, 1,
                            memory.attention + (image * G + g) * D * D / PER, D, count, D / PER, D,
                            [&](size i, size c, vfloat total)
                                INLINE_LAMBDA { store(mixed + (at - start + i) * C + g * D + c, total); });
                at += count;
            }
            panels(mixed, rows, C, weights.proj, C, [&](size i, size c, vfloat total) INLINE_LAMBDA {
                T *here = y + (start + i) * C + c;
                store(here, total + load(proj_bias + c) + load(here));
            });
        }
    }
}

// --- the other half ---

// out = x + its encoding, and on top of it the MLP of its norm.
template <class T>
static void mlp_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *bias1, const float *bias2,
                     const Matrices<T> &weights, const Sizes &of, T *out) {
    size C = of.C, of_row = Mlp<T>::scratch_of_row(C) + C;
    Tasks tasks(of.M(), 4 * of_row, of.threads);
    Mlp<T> layers = {weights.fc1, weights.fc2, bias1, bias2, C, of.E};
#pragma omp parallel num_threads(of.threads)
    {
        Scratch scratch(tasks.rows * of_row);
        float *strip = scratch.take(tasks.rows * PANEL), *sums = scratch.take(tasks.rows * C);
        T *hidden = (T *)scratch.take(tasks.rows * MOST_HIDDEN), *normed = (T *)scratch.take(tasks.rows * C);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, of.M() - start);
            encode_and_norm(x, encoding, norm, out, normed, of, start, rows);
            layers(normed, rows, nullptr, strip, hidden, sums);
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, load(sums + i) + load(out + start * C + i));
        }
    }
}

// The weights of the matrices, in the order of their panels; C and E of both as in `Sizes`.
template <class T> static void pack_block(const void *const *given, T *packed, const Sizes &of) {
    Matrices<T> to(packed, of.C, of.E);
#pragma omp parallel num_threads(of.threads)
    {
        pack_chunks((const T *)given[QKV], of, Chunks(of), to.qkv);
        pack((const T *)given[PROJ], of.C, of.C, to.proj);
        pack((const T *)given[FC1], of.E, of.C, to.fc1);
        pack((const T *)given[FC2], of.E ? of.C : 0, of.E, to.fc2);
    }
}

// `full`: whether the norms' vectors are float32. `packed`: the matrices by `pack_block`, or null.
template <class T>
static void block(const T *x, const void *const *given, bool full, const void *packed, char *base, T *out,
                  const Sizes &of) {
    size C = of.C, bytes;
    Sizes part = of;
    part.B = images_of_part(of, sizeof(T));
    Memory<T> memory(base, part, !packed, bytes);
    Scratch vectors(2 * 10 * C + 4 * C + 5 * C + of.E);
    Encoding encodings[2] = {encoding_of<T>(given[TAPS1], given[TAPS1_BIAS], C, vectors),
                             encoding_of<T>(given[TAPS2], given[TAPS2_BIAS], C, vectors)};
    auto norm_of = [&](Parameter scale, Parameter shift, float eps) {
        auto make = full ? floats<float> : floats<T>;
        return Norm{make(given[scale], C, 1.0f, vectors), make(given[shift], C, 0.0f, vectors), eps, nullptr, nullptr};
    };
    Norm norms[2] = {norm_of(SCALE1, SHIFT1, of.eps1), norm_of(SCALE2, SHIFT2, of.eps2)};
    const float *qkv_bias = floats<T>(given[QKV_BIAS], 3 * C, 0.0f, vectors);
    const float *proj_bias = floats<T>(given[PROJ_BIAS], C, 0.0f, vectors);
    const float *bias1 = floats<T>(given[FC1_BIAS], of.E, 0.0f, vectors);
    const float *bias2 = floats<T>(given[FC2_BIAS], C, 0.0f, vectors);
    if (!packed)
        pack_block(given, memory.packed, of);
    Matrices<T> weights(packed ? (void *)packed : memory.packed, C, of.E);
    for (size image = 0; image < of.B; image += part.B) {
        size at = image * of.H * of.W * C;
        Sizes these = of;
        these.B = least(part.B, of.B - image);
        if (of.window)
            window_pass(x + at, encodings[0], norms[0], qkv_bias, proj_bias, weights, memory, these);
        else
            channel_pass(x + at, encodings[0], norms[0], qkv_bias, proj_bias, weights, memory, these);
        if (of.E)
            mlp_pass(memory.middle, encodings[1], norms[1], bias1, bias2, weights, these, out + at);
        else
            encode(memory.middle, encodings[1].taps, encodings[1].bias, norms[1], out + at, (T *)nullptr, these.B,
                   of.H, of.W, C, of.threads);
    }
}
