// Backward passes of a LayerNorm with a linear layer or an MLP behind it. The number of rows in a task is an argument,
// so that sums over tasks do not depend on the number of threads.
#pragma once

#include "backward.h"
#include "linear.h"

// out[c] = the sum of x (rows, N) over its rows.
template <class T> INLINE void sum_rows(const T *x, size rows, size N, float *out) {
    for (size c = 0; c < N; c += VL) {
        vfloat total = {};
        for (size i = 0; i < rows; i++)
            total += load(x + i * N + c);
        store(out + c, total);
    }
}

// From the gradient (M, N) of the layer's output: the gradient of x (M, C), and the norm's output `normed`. For each
// task: the gradients of the norm's weight and bias in `sums` (tasks, 2, C), and of the layer's bias in `grad_bias`
// (tasks, N). The weight is (N, C).
template <class T>
static void linear_backward(const T *grad, const T *x, const Norm &norm, const T *weight, T *grad_x, T *normed,
                            float *sums, float *grad_bias, typename Word<T>::type *packed, size task_rows, size M,
                            size C, size N, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(task_rows * C);
        float *grad_y = scratch.take(task_rows * C);
        pack_transposed(weight, N, C, packed);
#pragma omp for schedule(dynamic)
        for (size start = 0; start < M; start += task_rows) {
            size rows = min(task_rows, M - start), at = start * C;
            float *sum = sums + start / task_rows * 2 * C;
            panels(grad + start * N, rows, N, packed, C, Write{grad_y, C});
            sum_rows(grad + start * N, rows, N, grad_bias + start / task_rows * N);
            memset(sum, 0, 8 * C);
            norm_rows_backward(grad_y, x + at, norm, grad_x + at, normed + at, sum, start, rows, C);
        }
    }
}

// The same for an MLP (weight1 (E, C), weight2 (C, E)), given the input of its GELU, `hidden` (M, E). Also writes the
// gradient of `hidden` and the GELU's output. The gradients of the biases are (tasks, E) and (tasks, C).
template <class T>
static void mlp_backward(const T *grad, const T *x, const Norm &norm, const T *weight1, const T *weight2,
                         const T *hidden, T *grad_hidden, T *activated, T *grad_x, T *normed, float *sums,
                         float *grad_bias1, float *grad_bias2, typename Word<T>::type *packed1,
                         typename Word<T>::type *packed2, size task_rows, size M, size C, size E, int threads) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(task_rows * (PANEL + C));
        float *strip = scratch.take(task_rows * PANEL), *grad_y = scratch.take(task_rows * C);
        pack_transposed(weight1, E, C, packed1);
        pack_transposed(weight2, C, E, packed2);
#pragma omp for schedule(dynamic)
        for (size start = 0; start < M; start += task_rows) {
            size rows = min(task_rows, M - start), at = start * C;
            float *sum = sums + start / task_rows * 2 * C, *bias = grad_bias1 + start / task_rows * E;
            memset(grad_y, 0, 4 * rows * C);
            sum_rows(grad + at, rows, C, grad_bias2 + start / task_rows * C);
            for (size e = 0; e < E; e += MAX_HIDDEN) {
                size width = min(MAX_HIDDEN, E - e);
                for (size first = e; first < e + width; first += PANEL) {
                    size n = min(PANEL, e + width - first);
                    product((const W *)(grad + at), C / PER, 1, packed2 + first * C / PER, n, rows, C / PER, n,
                            Write{strip, n});
                    for (size c = 0; c < n; c += VL) {
                        vfloat total = {};
                        for (size i = 0; i < rows; i++) {
                            size index = (start + i) * E + first + c;
                            vfloat value = load(hidden + index), below, density;
                            normal(value, below, density);
                            total += store_rounded(grad_hidden + index,
                                                   load(strip + i * n + c) * (below + value * density));
                            store(activated + index, value * below);
                        }
                        store(bias + first + c, total);
                    }
                }
                add_panels(grad_hidden + start * E + e, E, rows, e, width, packed1, E, C, grad_y);
            }
            memset(sum, 0, 8 * C);
            norm_rows_backward(grad_y, x + at, norm, grad_x + at, normed + at, sum, start, rows, C);
        }
    }
}
