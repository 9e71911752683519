#pragma once

#include "block_parts.h"

// y (rows, C) += x (rows, C) times packed panels of C columns, + bias.
template <class T>
INLINE void add_projection(const T *x, size rows, const typename Word<T>::type *packed, const float *bias, size C,
                           T *y) {
    panels(x, rows, C, packed, C, [&](size i, size c, vfloat total) INLINE_LAMBDA {
        T *here = y + i * C + c;
        store(here, total + load(bias + c) + load(here));
    });
}

// --- channel attention, by keys and values: where channels outnumber positions ---

template <class T>
static void channel_pass_by_keys(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
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
    T *y = memory.middle, *q = memory.kept;
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
            add_projection(mixed, rows, weights.proj, proj_bias, C, y + start * C);
        }
    }
}

// --- channel attention, by the Gram matrix ---
//
// With G = x^T x over the positions of an image, k^T v is Wk G Wv^T; and q, the attention of it and the projection are
// one matrix for all positions, Wproj A Wq. For each position that leaves 1.5 C C multiply-adds of 4 C C and 2 C D,
// and no q, k and v. Biases join by the sum of x, which is kept as the last row of G.

constexpr size GRAM_ROWS = 224; // positions at a time

// Where D columns of a weight begin among its panels in float32: `width` of them, in rows of `stride` numbers.
struct Columns {
    const float *at;
    size stride, width;
};

// Of group g of q, of k or of v, by the panels of their chunks, from its column `from` on.
INLINE Columns columns_of(const float *panels, const Sizes &of, const Chunks &chunks, size g, size from) {
    size D = of.C / of.G, first = g / chunks.heads * chunks.heads * D;
    if (chunks.heads > 1)
        return {panels + first * of.C + g % chunks.heads * D, least(chunks.heads * D, of.C - first), D};
    size width = least(PANEL, D - from);
    return {panels + (first + from) * of.C, width, width};
}

// A panel of K rows of n numbers at its place among panels in float32, from pairs of rows.
INLINE void widen(const pair *packed, size first, size n, size K, float *panels) {
    const pair *from = packed + first * K / 2;
    float *to = panels + first * K;
    for (size k = 0; k < K; k += 2, from += n, to += 2 * n)
        for (size c = 0; c < n; c += VL) {
            vword both, low;
            memcpy(&both, from + c, sizeof both);
            low = both << 16, both &= 0xFFFF0000u;
            memcpy(to + c, &low, sizeof low);
            memcpy(to + n + c, &both, sizeof both);
        }
}

// out (C + 1, C) = the Gram matrix of x (rows, C), of which the columns' panels go down to the diagonal, and the sum.
template <class T, class F>
static void gram_of(const T *x, size rows, size C, typename Word<T>::type *packed, float *out) {
    constexpr size PER = sizeof(*packed) / sizeof(T);
    size K = (rows + PER - 1) / PER;
    for (size first = 0; first < C; first += PANEL) {
        size n = least(PANEL, C - first);
        pack_rows(x + first, C, rows, n, packed + first * K);
        for (size row = 0; row <= first; row += PANEL) {
            size across = least(PANEL, C - row);
            product(packed + row * K, 1, across, packed + first * K, n, across, K, n, F{out + row * C + first, C});
        }
        F finish{out + C * C + first, C};
        for (size c = 0; c < n; c += VL) {
            vfloat total = {};
            for (size i = 0; i < rows; i++)
                total += load(x + i * C + first + c);
            finish(0, c, total);
        }
    }
}

// The sum of an image's parts, a square of VL a side and, beside the diagonal, its transpose.
INLINE void add_square(const float *parts, size count, size C, size row, size column, float *out) {
    alignas(64) float square[VL * VL];
    for (size i = 0; i < VL; i++) {
        vfloat total = {};
        for (size p = 0; p < count; p++)
            total += load(parts + p * (C + 1) * C + (row + i) * C + column);
        store(square + i * VL, total);
        store(out + (row + i) * C + column, total);
    }
    if (row == column) {
        vfloat total = {};
        for (size p = 0; p < count; p++)
            total += load(parts + p * (C + 1) * C + C * C + column);
        store(out + C * C + column, total);
        return;
    }
    alignas(64) float turned[VL * VL];
    transpose(square, VL, VL, VL, turned);
    for (size i = 0; i < VL; i++)
        store(out + (column + i) * C + row, load(turned + i * VL));
}

// What a thread needs for one group of an image.
struct GroupMixer {
    const Sizes &of;
    const float *wide, *qkv_bias; // panels in float32
    Chunks chunks;
    size C, D;
    float *keys, *square, *turned, *sums;

    static size memory(size C, size D) { return D * C + 2 * D * D + D; }
    GroupMixer(const Sizes &of, const float *wide, const float *qkv_bias, Scratch &scratch)
        : of(of), wide(wide), qkv_bias(qkv_bias), chunks(of), C(of.C), D(of.C / of.G) {
        keys = scratch.take(D * C), square = scratch.take(D * D), turned = scratch.take(D * D), sums = scratch.take(D);
    }

    // Columns g D to g D + D of mixed (C + 1, C): of Wq under the group's attention, transposed, and of its bias.
    INLINE_METHOD void operator()(const float *gram, size g, float *mixed) const {
        const float *sum_of_x = gram + C * C, *bias_q = qkv_bias + g * D, *bias_k = bias_q + C, *bias_v = bias_k + C;
        float N = of.H * of.W;
        for (size from = 0; from < D; from += PANEL) { // Wk G + bk s^T, and Wk s + N bk
            Columns k = columns_of(wide + C * C, of, chunks, g, from);
            product(k.at, 1, k.stride, gram, C, k.width, C, C, [&](size d, size c, vfloat total) INLINE_LAMBDA {
                store(keys + (from + d) * C + c, total + bias_k[from + d] * load(sum_of_x + c));
            });
            product(sum_of_x, C, 1, k.at, k.stride, 1, C, k.width, [&](size, size d, vfloat total) INLINE_LAMBDA {
                store(sums + from + d, total + N * load(bias_k + from + d));
            });
        }
        for (size from = 0; from < D; from += PANEL) {
            Columns v = columns_of(wide + 2 * C * C, of, chunks, g, from);
            product(keys, C, 1, v.at, v.stride, D, C, v.width, [&](size d, size c, vfloat total) INLINE_LAMBDA {
                store(square + d * D + from + c, (total + sums[d] * load(bias_v + from + c)) * of.scale);
            });
        }
        softmax(square, D, D, D);
        transpose(square, D, D, D, turned);
        for (size from = 0; from < D; from += PANEL) {
            Columns q = columns_of(wide, of, chunks, g, from);
            if (from == 0)
                product(q.at, q.stride, 1, turned, D, C, q.width, D, Write{mixed + g * D, C});
            else
                product(q.at, q.stride, 1, turned + from * D, D, C, q.width, D, Add{mixed + g * D, C});
        }
        product(bias_q, D, 1, turned, D, 1, D, D, Write{mixed + C * C + g * D, C});
    }
};

// A panel (C, n) of the projection of `mixed`, by that of the projection itself; `rows` is memory for as much.
template <class T>
INLINE void fold(const float *mixed, const float *proj, size C, size n, T *rows, typename Word<T>::type *folded) {
    if constexpr (sizeof(T) == sizeof(float)) {
        product(mixed, C, 1, proj, n, C, C, n, Write{folded, n});
    } else {
        product(mixed, C, 1, proj, n, C, C, n,
                [&](size k, size c, vfloat total) INLINE_LAMBDA { store(rows + k * n + c, total); });
        pack_rows(rows, n, C, n, folded);
    }
}

// The weights of a block's attention in float32, from panels of pairs; by all threads.
INLINE void widen_attention(const Matrices<bfloat16> &weights, const Sizes &of, float *wide) {
    chunk_panels(of, [&](size first, size n) { widen(weights.qkv, first, n, of.C, wide); });
#pragma omp for schedule(dynamic)
    for (size first = 0; first < of.C; first += PANEL)
        widen(weights.proj, first, least(PANEL, of.C - first), of.C, wide + 3 * of.C * of.C);
}

template <class T>
static void channel_pass_by_gram(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                                 const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory,
                                 const Sizes &of) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    size C = of.C, G = of.G, N = of.H * of.W, panels_of_map = (C + PANEL - 1) / PANEL, squares = C / VL;
    GramUnits units(N);
    size U = units.count, most = least(GRAM_ROWS, N / U + 1);
    size each = of_task(N, MOST_ROWS, 1), tasks = (N + each - 1) / each, of_image = (C + 1) * C;
    T *y = memory.middle, *normed = memory.kept;
    const float *wide = PER > 1 ? memory.wide : (const float *)weights.qkv; // the projection is behind q, k and v
#pragma omp parallel num_threads(of.threads)
    {
        Scratch scratch((most + 1) * C + GroupMixer::memory(C, C / G) + C * PANEL);
        W *words = (W *)scratch.take((most + 1) * C);
        T *rows_of_panel = (T *)scratch.take(C * PANEL);
        GroupMixer mix(of, wide, qkv_bias, scratch);
        if constexpr (PER > 1)
            widen_attention(weights, of, memory.wide);
#pragma omp for schedule(dynamic)
        for (size unit = 0; unit < of.B * U; unit++) {
            size image = unit / U, at = image * N + units.start(unit % U), end = image * N + units.start(unit % U + 1);
            float *part = memory.parts + unit * of_image;
            bool adds = false;
            for (size left = (end - at + most - 1) / most; left > 0; left--, adds = true) { // as even as can be
                size rows = (end - at + left - 1) / left;
                encode_and_norm(x, encoding, norm, y, normed + at * C, of, at, rows);
                auto square = adds ? gram_of<T, Add> : gram_of<T, Write>;
                square(normed + at * C, rows, C, words, part);
                at += rows;
            }
        }
#pragma omp for schedule(static)
        for (size i = 0; i < of.B * squares * squares; i++) {
            size image = i / squares / squares, row = i / squares % squares, column = i % squares;
            if (row <= column)
                add_square(memory.parts + image * U * of_image, U, C, row * VL, column * VL,
                           memory.gram + image * of_image);
        }
#pragma omp for schedule(static)
        for (size i = 0; i < of.B * G; i++)
            mix(memory.gram + i / G * of_image, i % G, memory.mixed + i / G * of_image);
#pragma omp for schedule(static)
        for (size i = 0; i < of.B * panels_of_map; i++) {
            size image = i / panels_of_map, first = i % panels_of_map * PANEL, n = least(PANEL, C - first);
            const float *mixed = memory.mixed + image * of_image, *proj = wide + (3 * C + first) * C;
            fold(mixed, proj, C, n, rows_of_panel, memory.folded + (image * C + first) * C / PER);
            product(mixed + C * C, C, 1, proj, n, 1, C, n, [&](size, size c, vfloat total) INLINE_LAMBDA {
                store(memory.bias + image * C + first + c, total + load(proj_bias + first + c));
            });
        }
#pragma omp for schedule(dynamic)
        for (size task = 0; task < of.B * tasks; task++) {
            size image = task / tasks, first = task % tasks * each, start = image * N + first;
            add_projection(normed + start * C, least(each, N - first), memory.folded + image * C * C / PER,
                           memory.bias + image * C, C, y + start * C);
        }
    }
}
