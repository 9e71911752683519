// Backward passes of LayerNorm and GELU on rows of C values. Both also recompute the forward output.
#pragma once

#include "norm.h"

// Turn the gradient of LayerNorm(x) at `rows` positions into that of x (in place is allowed), and recompute the output
// `normed`. The norm's mean and rstd are read from index `first` on. The gradients of weight and bias are added to
// `sums` (2, C).
template <class G, class T>
INLINE void norm_rows_backward(const G *grad, const T *x, const Norm &norm, T *grad_x, T *normed, float *sums,
                               size first, size rows, size C) {
    for (size n = 0; n < rows; n++, grad += C, x += C, grad_x += C, normed += C) {
        float mean = norm.mean[first + n], rstd = norm.rstd[first + n];
        vfloat total = {}, along = {};
        for (size c = 0; c < C; c += VL) {
            vfloat value = (load(x + c) - mean) * rstd, grad_value = load(grad + c) * load(norm.weight + c);
            total += grad_value, along += grad_value * value;
        }
        float a = sum(total) / C, b = sum(along) / C;
        for (size c = 0; c < C; c += VL) {
            vfloat value = (load(x + c) - mean) * rstd, grad_y = load(grad + c), k = load(norm.weight + c);
            store(sums + c, load(sums + c) + grad_y * value);
            store(sums + C + c, load(sums + C + c) + grad_y);
            store(normed + c, value * k + load(norm.bias + c));
            store(grad_x + c, (grad_y * k - a - value * b) * rstd);
        }
    }
}

// The same for N rows in `parts` bands, one thread a band: `sums` is (parts, 2, C).
template <class T>
static void norm_backward(const T *grad, const T *x, const Norm &norm, T *grad_x, T *normed, float *sums, size parts,
                          size N, size C, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        size first = N * p / parts, rows = N * (p + 1) / parts - first, at = first * C;
        memset(sums + p * 2 * C, 0, 8 * C);
        norm_rows_backward(grad + at, x + at, norm, grad_x + at, normed + at, sums + p * 2 * C, first, rows, C);
    }
}

// Turn the gradient of GELU(x) into that of x (in place is allowed), summed over each band in `sums` (parts, C).
template <class T>
static void gelu_backward(const T *grad, const T *x, T *grad_x, T *activated, float *sums, size parts, size N, size C,
                          int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++) {
        memset(sums + p * C, 0, 4 * C);
        for (size n = N * p / parts; n < N * (p + 1) / parts; n++)
            for (size c = 0; c < C; c += VL) {
                vfloat value = load(x + n * C + c), below, density;
                normal(value, below, density);
                vfloat result = load(grad + n * C + c) * (below + value * density);
                store(sums + p * C + c, load(sums + p * C + c) + result);
                store(grad_x + n * C + c, result);
                store(activated + n * C + c, value * below);
            }
    }
}
