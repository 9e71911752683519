#pragma once

#include "block_parts.h"

// y (rows, C) += x (rows, C) times the packed weight + bias.
template <class T>
INLINE void add_projection(const T *x, size rows, const typename Word<T>::type *packed, const float *bias, size C,
                           T *y) {
    panels(x, rows, C, packed, C, [&](size i, size c, vfloat total) INLINE_LAMBDA {
        T *dst = y + i * C + c;
        store(dst, total + load(bias + c) + load(dst));
    });
}

// --- channel attention from q, k and v: for maps with fewer positions than channels ---

template <class T>
static void channel_pass_by_keys(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                                 const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory,
                                 const Sizes &shape) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    Units units(shape.B, shape.H * shape.W);
    Chunks chunks(shape);
    size C = shape.C, G = shape.G, D = C / G, N = units.N, words = C / PER, U = units.per_image;
    size largest = (N + U - 1) / U, each = items_per_task(units.count, MAX_ROWS / largest, shape.threads); // units
    size places = each * largest;
    Tasks second_pass(shape.M(), 4 * C, shape.threads);
    Roles roles(C, shape.qk);
    T *y = memory.middle, *kept = memory.kept;
#pragma omp parallel num_threads(shape.threads)
    {
        size max_rows = places > second_pass.rows ? places : second_pass.rows, strip = places * chunks.heads * D;
        Scratch scratch(max_rows * C + 2 * strip + 3 * D * D);
        T *normed = (T *)scratch.take(max_rows * C), *mixed = normed;
        float *a = scratch.take(strip), *b = scratch.take(strip);
        float *squares = scratch.take(D * D), *transposed = scratch.take(D * D);
        T *rounded = (T *)scratch.take(D * D);
#pragma omp for schedule(dynamic)
        for (size first = 0; first < units.count; first += each) {
            size last = min(first + each, units.count), start = units.start(first);
            size rows = units.start(last) - start;
            encode_and_norm(x, encoding, norm, y, normed, shape, start, rows);
            for (size g = 0; g < G; g += chunks.heads) {
                size groups = min(chunks.heads, G - g), width = groups * D;
                const float *bias = qkv_bias + g * D;
                T *to = kept + start * C + g * D;
                const W *packed = weights.qkv + g * D * words;
                panels(normed, rows, C, packed + roles.x * words, width,
                       [&](size i, size c, vfloat total)
                           INLINE_LAMBDA { store(to + i * C + c, total + load(bias + roles.x + c)); });
                panels(normed, rows, C, packed + roles.a * words, width,
                       [&](size i, size c, vfloat total)
                           INLINE_LAMBDA { store(a + i * width + c, total + load(bias + roles.a + c)); });
                panels(normed, rows, C, packed + roles.b * words, width,
                       [&](size i, size c, vfloat total)
                           INLINE_LAMBDA { store(b + i * width + c, total + load(bias + roles.b + c)); });
                for (size unit = first; unit < last; unit++) {
                    size from = (units.start(unit) - start) * width, count = units.start(unit + 1) - units.start(unit);
                    for (size h = 0; h < groups; h++) {
                        float *part = memory.parts + ((unit / U * G + g + h) * U + unit % U) * D * D;
                        product(a + from + h * D, 1, width, b + from + h * D, width, D, count, D, Write{part, D});
                    }
                }
            }
        }
#pragma omp for schedule(static)
        for (size i = 0; i < shape.B * G; i++) {
            add_parts(memory.parts + i * U * D * D, U, D * D, shape.scale, squares);
            softmax(squares, D, D, D);
            transpose(squares, D, D, D, transposed);
            for (size j = 0; j < D * D; j += VL)
                store(rounded + j, load(transposed + j));
            pack_rows(rounded, D, D, D, memory.attention + i * D * D / PER);
        }
#pragma omp for schedule(dynamic)
        for (size task = 0; task < second_pass.count; task++) {
            size start = task * second_pass.rows, rows = min(second_pass.rows, shape.M() - start);
            for (size at = start; at < start + rows;) { // one image at a time
                size image = at / N, count = min((image + 1) * N, start + rows) - at;
                for (size g = 0; g < G; g++)
                    product((const W *)(kept + at * C + g * D), words, 1,
                            memory.attention + (image * G + g) * D * D / PER, D, count, D / PER, D,
                            [&](size i, size c, vfloat total)
                                INLINE_LAMBDA { store(mixed + (at - start + i) * C + g * D + c, total); });
                at += count;
            }
            add_projection(mixed, rows, weights.proj, proj_bias, C, y + start * C);
        }
    }
}

// --- channel attention from the Gram matrix ---
//
// With G = y^T y over the positions y of an image's normed map, a^T b is Wa G Wb^T (for a, b and x see `Roles`). The
// layer of x, the attention A and the projection together are one matrix for all positions, Wproj A Wx. A position
// then costs 1.5 C C multiply-adds in place of 4 C C + 2 C D, and q, k and v are not computed. The biases need the sum
// of y, kept as the last row of G.

constexpr size GRAM_ROWS = 224; // positions at a time

// `width` columns of a weight inside its float32 panels: their address, and the stride from row to row.
struct Columns {
    const float *at;
    size stride, width;
};

// Columns of group g of q, k or v from the group's column `from` on.
INLINE Columns columns_of(const float *panels, const Sizes &shape, const Chunks &chunks, size g, size from) {
    size D = shape.C / shape.G, first = g / chunks.heads * chunks.heads * D;
    if (chunks.heads > 1)
        return {panels + first * shape.C + g % chunks.heads * D, min(chunks.heads * D, shape.C - first), D};
    size width = min(PANEL, D - from);
    return {panels + (first + from) * shape.C, width, width};
}

// Convert a panel of K rows of n bfloat16 values, stored as pairs of rows, to float32.
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

// out (C + 1, C) = the Gram matrix of x (rows, C), its upper triangle of panels alone, and as last row the sum of x.
template <class T, class F>
static void gram_of(const T *x, size rows, size C, typename Word<T>::type *packed, float *out) {
    constexpr size PER = sizeof(*packed) / sizeof(T);
    size K = (rows + PER - 1) / PER;
    for (size first = 0; first < C; first += PANEL) {
        size n = min(PANEL, C - first);
        pack_rows(x + first, C, rows, n, packed + first * K);
        for (size row = 0; row <= first; row += PANEL) {
            size across = min(PANEL, C - row);
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

// Sum one VL x VL square of an image's parts; off the diagonal also write its transpose.
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
    alignas(64) float transposed[VL * VL];
    transpose(square, VL, VL, VL, transposed);
    for (size i = 0; i < VL; i++)
        store(out + (column + i) * C + row, load(transposed + i * VL));
}

// Fold the attention of one group of an image into the weights; memory of a thread.
struct GroupMixer {
    const Sizes &shape;
    const float *wide, *qkv_bias; // weights as float32 panels
    Chunks chunks;
    size C, D;
    Roles roles;
    float *rows_of_a, *square, *transposed, *sums;

    static size memory(size C, size D) { return D * C + 2 * D * D + D; }
    GroupMixer(const Sizes &shape, const float *wide, const float *qkv_bias, Scratch &scratch)
        : shape(shape), wide(wide), qkv_bias(qkv_bias), chunks(shape), C(shape.C), D(shape.C / shape.G),
          roles(shape.C, shape.qk) {
        rows_of_a = scratch.take(D * C), square = scratch.take(D * D), transposed = scratch.take(D * D),
        sums = scratch.take(D);
    }

    // Write columns g D to g D + D of mixed (C + 1, C): the transpose of A Wx, and as last row A times the bias of x.
    INLINE_METHOD void operator()(const float *gram, size g, float *mixed) const {
        const float *sum_of_y = gram + C * C, *bias = qkv_bias + g * D;
        const float *bias_a = bias + roles.a, *bias_b = bias + roles.b, *bias_x = bias + roles.x;
        float N = shape.H * shape.W;
        for (size from = 0; from < D; from += PANEL) { // Wa G + ba s^T, and Wa s + N ba, for the sum s of y
            Columns a = columns_of(wide + roles.a * C, shape, chunks, g, from);
            product(a.at, 1, a.stride, gram, C, a.width, C, C, [&](size d, size c, vfloat total) INLINE_LAMBDA {
                store(rows_of_a + (from + d) * C + c, total + bias_a[from + d] * load(sum_of_y + c));
            });
            product(sum_of_y, C, 1, a.at, a.stride, 1, C, a.width, [&](size, size d, vfloat total) INLINE_LAMBDA {
                store(sums + from + d, total + N * load(bias_a + from + d));
            });
        }
        for (size from = 0; from < D; from += PANEL) {
            Columns b = columns_of(wide + roles.b * C, shape, chunks, g, from);
            product(rows_of_a, C, 1, b.at, b.stride, D, C, b.width, [&](size d, size c, vfloat total) INLINE_LAMBDA {
                store(square + d * D + from + c, (total + sums[d] * load(bias_b + from + c)) * shape.scale);
            });
        }
        softmax(square, D, D, D);
        transpose(square, D, D, D, transposed);
        for (size from = 0; from < D; from += PANEL) {
            Columns x = columns_of(wide + roles.x * C, shape, chunks, g, from);
            if (from == 0)
                product(x.at, x.stride, 1, transposed, D, C, x.width, D, Write{mixed + g * D, C});
            else
                product(x.at, x.stride, 1, transposed + from * D, D, C, x.width, D, Add{mixed + g * D, C});
        }
        product(bias_x, D, 1, transposed, D, 1, D, D, Write{mixed + C * C + g * D, C});
    }
};

// folded = panel (C, n) of mixed times the panel `proj` of the projection; `rows` is scratch memory (C, n).
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

// Convert the attention's packed weights to float32, all threads together.
INLINE void widen_attention(const Matrices<bfloat16> &weights, const Sizes &shape, float *wide) {
    chunk_panels(shape, [&](size first, size n) { widen(weights.qkv, first, n, shape.C, wide); });
#pragma omp for schedule(dynamic)
    for (size first = 0; first < shape.C; first += PANEL)
        widen(weights.proj, first, min(PANEL, shape.C - first), shape.C, wide + 3 * shape.C * shape.C);
}

template <class T>
static void channel_pass_by_gram(const T *x, const Encoding &encoding, const Norm &norm, const float *qkv_bias,
                                 const float *proj_bias, const Matrices<T> &weights, const Memory<T> &memory,
                                 const Sizes &shape) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
    size C = shape.C, G = shape.G, N = shape.H * shape.W, panels_of_map = (C + PANEL - 1) / PANEL, squares = C / VL;
    GramUnits units(N);
    size U = units.count, limit = min(GRAM_ROWS, N / U + 1);
    size each = items_per_task(N, MAX_ROWS, 1), tasks = (N + each - 1) / each, gram_size = (C + 1) * C;
    T *y = memory.middle, *normed = memory.kept;
    const float *wide = PER > 1 ? memory.wide : (const float *)weights.qkv; // the projection comes after q, k and v
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch((limit + 1) * C + GroupMixer::memory(C, C / G) + C * PANEL);
        W *words = (W *)scratch.take((limit + 1) * C);
        T *rows_of_panel = (T *)scratch.take(C * PANEL);
        GroupMixer mix(shape, wide, qkv_bias, scratch);
        if constexpr (PER > 1)
            widen_attention(weights, shape, memory.wide);
#pragma omp for schedule(dynamic)
        for (size unit = 0; unit < shape.B * U; unit++) {
            size image = unit / U, at = image * N + units.start(unit % U), end = image * N + units.start(unit % U + 1);
            float *part = memory.parts + unit * gram_size;
            bool adds = false;
            for (size left = (end - at + limit - 1) / limit; left > 0; left--, adds = true) { // parts of equal size
                size rows = (end - at + left - 1) / left;
                encode_and_norm(x, encoding, norm, y, normed + at * C, shape, at, rows);
                auto square = adds ? gram_of<T, Add> : gram_of<T, Write>;
                square(normed + at * C, rows, C, words, part);
                at += rows;
            }
        }
#pragma omp for schedule(static)
        for (size i = 0; i < shape.B * squares * squares; i++) {
            size image = i / squares / squares, row = i / squares % squares, column = i % squares;
            if (row <= column)
                add_square(memory.parts + image * U * gram_size, U, C, row * VL, column * VL,
                           memory.gram + image * gram_size);
        }
#pragma omp for schedule(static)
        for (size i = 0; i < shape.B * G; i++)
            mix(memory.gram + i / G * gram_size, i % G, memory.mixed + i / G * gram_size);
#pragma omp for schedule(static)
        for (size i = 0; i < shape.B * panels_of_map; i++) {
            size image = i / panels_of_map, first = i % panels_of_map * PANEL, n = min(PANEL, C - first);
            const float *mixed = memory.mixed + image * gram_size, *proj = wide + (3 * C + first) * C;
            fold(mixed, proj, C, n, rows_of_panel, memory.folded + (image * C + first) * C / PER);
            product(mixed + C * C, C, 1, proj, n, 1, C, n, [&](size, size c, vfloat total) INLINE_LAMBDA {
                store(memory.bias + image * C + first + c, total + load(proj_bias + first + c));
            });
        }
#pragma omp for schedule(dynamic)
        for (size task = 0; task < shape.B * tasks; task++) {
            size image = task / tasks, first = task % tasks * each, start = image * N + first;
            add_projection(normed + start * C, min(each, N - first), memory.folded + image * C * C / PER,
                           memory.bias + image * C, C, y + start * C);
        }
    }
}
