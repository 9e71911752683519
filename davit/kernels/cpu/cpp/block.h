// A whole block without gradients, in passes over the map. Within a pass a task goes from the position encoding to the
// residual with its numbers in a core's own cache: q, k and v of windows never leave it, and of channel attention q
// alone does, or nothing of them is ever there.
#pragma once

#include "block_channel.h"
#include "block_window.h"

// --- the other half ---

// out = x + its encoding, and on top of it the MLP of its norm.
template <class T>
static void mlp_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *bias1, const float *bias2,
                     const Matrices<T> &weights, const Sizes &of, T *out) {
    size C = of.C;
    Tasks tasks(of.M(), 4 * MlpRows<T>::of_row(C), of.threads);
    Mlp<T> layers = {weights.fc1, weights.fc2, bias1, bias2, C, of.E};
#pragma omp parallel num_threads(of.threads)
    {
        Scratch scratch(tasks.rows * MlpRows<T>::of_row(C));
        MlpRows<T> here(tasks.rows, C, scratch);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = least(tasks.rows, of.M() - start);
            encode_and_norm(x, encoding, norm, out, here.normed, of, start, rows);
            layers(rows, nullptr, here);
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, load(here.sums + i) + load(out + start * C + i));
        }
    }
}

// The weights of the matrices, in the order of their panels; C and E of both as in `Sizes`.
template <class T> static void pack_block(const void *const *given, T *packed, const Sizes &of) {
    Matrices<T> to(packed, of.C, of.E);
#pragma omp parallel num_threads(of.threads)
    {
        chunk_panels(of, [&](size first, size n) { pack_panel((const T *)given[QKV], first, n, of.C, to.qkv); });
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
    auto attend = of.window               ? window_pass<T>
                  : of.by_gram(sizeof(T)) ? channel_pass_by_gram<T>
                                          : channel_pass_by_keys<T>;
    for (size image = 0; image < of.B; image += part.B) {
        size at = image * of.H * of.W * C;
        Sizes these = of;
        these.B = least(part.B, of.B - image);
        attend(x + at, encodings[0], norms[0], qkv_bias, proj_bias, weights, memory, these);
        if (of.E)
            mlp_pass(memory.middle, encodings[1], norms[1], bias1, bias2, weights, these, out + at);
        else
            encode(memory.middle, encodings[1].taps, encodings[1].bias, norms[1], out + at, (T *)nullptr, these.B,
                   of.H, of.W, C, of.threads);
    }
}
