// Gradients in front of a LayerNorm and of a GELU, of rows of C numbers; what those gave is computed again on the way.
#pragma once

#include "norm.h"

// From the gradient of LayerNorm(x), of `rows` positions, that of x, which may be written over it, and what the norm
// gave. `mean` and `rstd` are those of the first position on. To `sums`, (2, C), the gradients of scale and shift are
// added.
template <class G, class T>
INLINE void norm_rows_backward(const G *grad, const T *x, const Norm &norm, T *grad_x, T *again, float *sums,
                               size first, size rows, size C) {
    for (size n = 0; n < rows; n++, grad += C, x += C, grad_x += C, again += C) {
        float mean = norm.mean[first + n], rstd = norm.rstd[first + n];
        vfloat total = {}, along = {};
        for (size c = 0; c < C; c += VL) {
            vfloat value = (load(x + c) - mean) * rstd, of_value = load(grad + c) * load(norm.scale + c);
            total += of_value, along += of_value * value;
        }
        float a = sum(total) / C, b = sum(along) / C;
        for (size c = 0; c < C; c += VL) {
            vfloat value = (load(x + c) - mean) * rstd, of_y = load(grad + c), k = load(norm.scale + c);
            store(sums + c, load(sums + c) + of_y * value);
            store(sums + C + c, load(sums + C + c) + of_y);
            store(again + c, value * k + load(norm.shift + c));
            store(grad_x + c, (of_y * k - a - value * b) * rstd);
        }
    }
}

// Sums over the rows of each of `parts` bands: `sums` is (parts, 2, C).
template <class T>
static void norm_backward(const T *grad, const T *x, const Norm &norm, T *grad_x, T *again, float *sums, size parts,
                          size N, size C, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        size first = N * p / parts, rows = N * (p + 1) / parts - first, at = first * C;
        memset(sums + p * 2 * C, 0, 8 * C);
        norm_rows_backward(grad + at, x + at, norm, grad_x + at, again + at, sums + p * 2 * C, first, rows, C);
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
