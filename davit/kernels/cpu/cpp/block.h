// Inference of a whole block in two or three passes over the map. A task of a pass does everything from the position
// encoding to the residual while its values stay in the core's own cache. Window attention never writes q, k and v to
// memory; channel attention writes q alone, or with the Gram matrix does not compute them at all.
#pragma once

#include "block_channel.h"
#include "block_columns.h"
#include "block_window.h"

// --- the second half of a block: position encoding and MLP ---

// y = x + encoding(x); out = y + MLP(norm(y)).
template <class T>
static void mlp_pass(const T *x, const Encoding &encoding, const Norm &norm, const float *bias1, const float *bias2,
                     const Matrices<T> &weights, const Sizes &shape, T *out) {
    size C = shape.C;
    Tasks tasks(shape.M(), 4 * MlpRows<T>::floats_per_row(C), shape.threads);
    Mlp<T> layers = {weights.fc1, weights.fc2, bias1, bias2, C, shape.E};
#pragma omp parallel num_threads(shape.threads)
    {
        Scratch scratch(tasks.rows * MlpRows<T>::floats_per_row(C));
        MlpRows<T> buffers(tasks.rows, C, scratch);
#pragma omp for schedule(dynamic)
        for (size task = 0; task < tasks.count; task++) {
            size start = task * tasks.rows, rows = min(tasks.rows, shape.M() - start);
            encode_and_norm(x, encoding, norm, out, buffers.normed, shape, start, rows);
            layers(rows, nullptr, buffers);
            for (size i = 0; i < rows * C; i += VL)
                store(out + start * C + i, load(buffers.sums + i) + load(out + start * C + i));
        }
    }
}

// Pack the four weight matrices of a block as panels, one after another.
template <class T> static void pack_block(const void *const *given, T *packed, const Sizes &shape) {
    Matrices<T> panels(packed, shape.C, shape.E);
#pragma omp parallel num_threads(shape.threads)
    {
        chunk_panels(shape,
                     [&](size first, size n) { pack_panel((const T *)given[QKV], first, n, shape.C, panels.qkv); });
        pack((const T *)given[PROJ], shape.C, shape.C, panels.proj);
        pack((const T *)given[FC1], shape.E, shape.C, panels.fc1);
        pack((const T *)given[FC2], shape.E ? shape.C : 0, shape.E, panels.fc2);
    }
}

// Compute a block. `full`: the norms' weights are float32, whatever T is. `packed`: result of `pack_block`, or null.
template <class T>
static void block(const T *x, const void *const *given, bool full, const void *packed, char *base, T *out,
                  const Sizes &shape) {
    size C = shape.C, bytes;
    Sizes largest = shape;
    largest.B = images_of_part(shape, sizeof(T));
    Memory<T> memory(base, largest, !packed, bytes);
    Scratch vectors(2 * 10 * C + 4 * C + 5 * C + shape.E);
    Encoding encodings[2] = {encoding_of<T>(given[TAPS1], given[TAPS1_BIAS], C, vectors),
                             encoding_of<T>(given[TAPS2], given[TAPS2_BIAS], C, vectors)};
    auto norm_of = [&](Parameter weight, Parameter bias, float eps) {
        auto make = full ? floats<float> : floats<T>;
        return Norm{make(given[weight], C, 1.0f, vectors), make(given[bias], C, 0.0f, vectors), eps, nullptr, nullptr};
    };
    Norm norms[2] = {norm_of(NORM1_WEIGHT, NORM1_BIAS, shape.eps1), norm_of(NORM2_WEIGHT, NORM2_BIAS, shape.eps2)};
    const float *qkv_bias = floats<T>(given[QKV_BIAS], 3 * C, 0.0f, vectors);
    const float *proj_bias = floats<T>(given[PROJ_BIAS], C, 0.0f, vectors);
    const float *bias1 = floats<T>(given[FC1_BIAS], shape.E, 0.0f, vectors);
    const float *bias2 = floats<T>(given[FC2_BIAS], C, 0.0f, vectors);
    bool columns = !packed && largest.by_columns(sizeof(T));
    if (!packed && !columns)
        pack_block(given, memory.packed, shape);
    Matrices<T> weights(packed ? (void *)packed : memory.packed, C, shape.E);
    auto attend = shape.window               ? window_pass<T>
                  : shape.by_gram(sizeof(T)) ? channel_pass_by_gram<T>
                                             : channel_pass_by_keys<T>;
    for (size image = 0; image < shape.B; image += largest.B) {
        size at = image * shape.H * shape.W * C;
        Sizes part = shape;
        part.B = min(largest.B, shape.B - image);
        if (columns) {
            block_by_columns(x + at, given, encodings, norms, qkv_bias, proj_bias, bias1, bias2, memory, part,
                             out + at);
            continue;
        }
        attend(x + at, encodings[0], norms[0], qkv_bias, proj_bias, weights, memory, part);
        if (shape.E)
            mlp_pass(memory.middle, encodings[1], norms[1], bias1, bias2, weights, part, out + at);
        else
            encode(memory.middle, encodings[1].taps, encodings[1].bias, norms[1], out + at, (T *)nullptr, part.B,
                   shape.H, shape.W, C, shape.threads);
    }
}
