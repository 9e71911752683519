#pragma once

#include "vectors.h"

// --- gradients in front of a LayerNorm and a GELU, rows of C numbers; what those gave is computed again on the way
// ---

// Sums over the rows of each of `parts` bands: `sums` is (parts, 2, C), of the norm's scale and of its shift.
// `grad_x` may be `grad`.
template <class T>
static void norm_backward(const T *grad, const T *x, const float *mean, const float *rstd, const float *scale,
                          const float *shift, T *grad_x, T *again, float *sums, size parts, size N, size C,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        float *of_scale = sums + p * 2 * C, *of_shift = of_scale + C;
        memset(of_scale, 0, 8 * C);
        for (size n = N * p / parts; n < N * (p + 1) / parts; n++) {
            const T *g = grad + n * C, *row = x + n * C;
            vfloat total = {}, along = {};
            for (size c = 0; c < C; c += VL) {
                vfloat value = (load(row + c) - mean[n]) * rstd[n], of_value = load(g + c) * load(scale + c);
                total += of_value, along += of_value * value;
            }
            float a = sum(total) / C, b = sum(along) / C;
            for (size c = 0; c < C; c += VL) {
                vfloat value = (load(row + c) - mean[n]) * rstd[n], of_y = load(g + c), k = load(scale + c);
                store(of_scale + c, load(of_scale + c) + of_y * value);
                store(of_shift + c, load(of_shift + c) + of_y);
                store(again + n * C + c, value * k + load(shift + c));
                store(grad_x + n * C + c, (of_y * k - a - value * b) * rstd[n]);
            }
        }
    }
}

// `sums` is (parts, C), of the gradients in front of the GELU. `grad_x` may be `grad`.
template <class T>
static void gelu_backward(const T *grad, const T *x, T *grad_x, T *again, float *sums, size parts, size N, size C,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        memset(sums + p * C, 0, 4 * C);
        for (size n = N * p / parts; n < N * (p + 1) / parts; n++)
            for (size c = 0; c < C; c += VL) {
                vfloat value = load(x + n * C + c), below, density;
                normal(value, below, density);
                vfloat of_x = load(grad + n * C + c) * (below + value * density);
                store(sums + p * C + c, load(sums + p * C + c) + of_x);
                store(grad_x + n * C + c, of_x);
                store(again + n * C + c, value * below);
            }
    }
}
