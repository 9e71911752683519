// Gradients of linear layers and MLPs. Tasks have a given number of rows, so that sums over them do not depend on the
// number of threads.
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

// In front of the norm of a linear layer (N, C): from the gradient (M, N) behind it that of x (M, C), and what the
// norm gave. Of each task, to `sums` (tasks, 2, C) the gradients of its scale and shift, to `of_bias` (tasks, N) that
// of the layer's bias.
template <class T>
static void linear_backward(const T *grad, const T *x, const Norm &norm, const T *weight, T *grad_x, T *normed,
                            float *sums, float *of_bias, typename Word<T>::type *packed, size task_rows, size M,
                            size C, size N, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(task_rows * C);
        float *of_y = scratch.take(task_rows * C);
        pack_turned(weight, N, C, packed);
#pragma omp for schedule(dynamic)
        for (size start = 0; start < M; start += task_rows) {
            size rows = least(task_rows, M - start), at = start * C;
            float *sum = sums + start / task_rows * 2 * C;
            panels(grad + start * N, rows, N, packed, C, Write{of_y, C});
            sum_rows(grad + start * N, rows, N, of_bias + start / task_rows * N);
            memset(sum, 0, 8 * C);
            norm_rows_backward(of_y, x + at, norm, grad_x + at, normed + at, sum, start, rows, C);
        }
    }
}

// The same of an MLP (weight1 (E, C), weight2 (C, E)), from `hidden` (M, E), what is in front of its GELU: the
// gradient of that, and what the GELU gave. Gradients of the biases are (tasks, E) and (tasks, C).
template <class T>
static void mlp_backward(const T *grad, const T *x, const Norm &norm, const T *weight1, const T *weight2,
                         const T *hidden, T *grad_hidden, T *activated, T *grad_x, T *normed, float *sums,
                         float *of_bias1, float *of_bias2, typename Word<T>::type *packed1,
                         typename Word<T>::type *packed2, size task_rows, size M, size C, size E, int threads) {
    typedef typename Word<T>::type W;
    constexpr size PER = sizeof(W) / sizeof(T);
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(task_rows * (PANEL + C));
        float *strip = scratch.take(task_rows * PANEL), *of_y = scratch.take(task_rows * C);
        pack_turned(weight1, E, C, packed1);
        pack_turned(weight2, C, E, packed2);
#pragma omp for schedule(dynamic)
        for (size start = 0; start < M; start += task_rows) {
            size rows = least(task_rows, M - start), at = start * C;
            float *sum = sums + start / task_rows * 2 * C, *bias = of_bias1 + start / task_rows * E;
            memset(of_y, 0, 4 * rows * C);
            sum_rows(grad + at, rows, C, of_bias2 + start / task_rows * C);
            for (size e = 0; e < E; e += MOST_HIDDEN) {
                size width = least(MOST_HIDDEN, E - e);
                for (size first = e; first < e + width; first += PANEL) {
                    size n = least(PANEL, e + width - first);
                    product((const W *)(grad + at), C / PER, 1, packed2 + first * C / PER, n, rows, C / PER, n,
                            Write{strip, n});
                    for (size c = 0; c < n; c += VL) {
                        vfloat total = {};
                        for (size i = 0; i < rows; i++) {
                            size here = (start + i) * E + first + c;
                            vfloat value = load(hidden + here), below, density;
                            normal(value, below, density);
                            total +=
                                store_rounded(grad_hidden + here, load(strip + i * n + c) * (below + value * density));
                            store(activated + here, value * below);
                        }
                        store(bias + first + c, total);
                    }
                }
                add_panels(grad_hidden + start * E + e, E, rows, e, width, packed1, E, C, of_y);
            }
            memset(sum, 0, 8 * C);
            norm_rows_backward(of_y, x + at, norm, grad_x + at, normed + at, sum, start, rows, C);
        }
    }
}
