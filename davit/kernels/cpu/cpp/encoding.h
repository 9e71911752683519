#pragma once

#include "norm.h"

// --- position encoding: y = x + depthwise 3x3 convolution of x, and LayerNorm(y) ---

// Write y for columns [first, last) of row h, and the same in float32 to `kept` unless it is null.
template <class T>
INLINE void encode_row(const T *x, const float *weight, const float *bias, T *y, float *kept, size h, size H, size W,
                       size C, size first, size last) {
    const T *above = h > 0 ? x - W * C : nullptr, *below = h + 1 < H ? x + W * C : nullptr;
    for (size c = 0; c < C; c += VL) {
        vfloat k[9];
        UNROLL
        for (int i = 0; i < 9; i++)
            k[i] = load(weight + i * C + c);
        vfloat b = load(bias + c);
        // each column adds to three results: at its right (`soon`), at its own place (`now`) and at its left
        vfloat now = {}, soon = {};
        for (size w = first > 0 ? first - 1 : 0; w <= last; w++) {
            vfloat top = {}, mid = {}, low = {};
            if (w < W) {
                if (above)
                    top = load(above + w * C + c);
                mid = load(x + w * C + c);
                if (below)
                    low = load(below + w * C + c);
            }
            if (w > first) {
                vfloat out = now + (k[2] * top + k[5] * mid + k[8] * low);
                out = store_rounded(y + (w - 1) * C + c, out);
                if (kept)
                    store(kept + (w - 1 - first) * C + c, out);
            }
            now = soon + ((b + mid) + (k[1] * top + k[4] * mid + k[7] * low));
            soon = k[0] * top + k[3] * mid + k[6] * low;
        }
    }
}

template <class T, class N>
static void encode(const T *x, const float *weight, const float *bias, const Norm &norm, T *y, N *normed, size B,
                   size H, size W, size C, int threads) {
    size part = min(W, C < 4096 ? 4096 / C : 1); // columns whose float32 copy stays in the nearest cache
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch(part * C);
        float *kept = normed ? scratch.take(part * C) : nullptr;
#pragma omp for schedule(static)
        for (size row = 0; row < B * H; row++)
            for (size first = 0; first < W; first += part) {
                size last = min(first + part, W), at = row * W * C;
                encode_row(x + at, weight, bias, y + at, kept, row % H, H, W, C, first, last);
                if (normed)
                    norm_rows(kept, norm, normed + at + first * C, row * W + first, last - first, C);
            }
    }
}

// Gradients of the 9 weights and the bias of each channel, (10, C) for each of `parts` bands of rows.
template <class T>
static void encode_weights(const T *grad, const T *x, float *out, size parts, size B, size H, size W, size C,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size p = 0; p < parts; p++)
        for (size c = 0; c < C; c += VL) {
            vfloat total[9] = {}, grad_bias = {};
            for (size row = B * H * p / parts; row < B * H * (p + 1) / parts; row++) {
                const T *g = grad + row * W * C + c, *mid = x + row * W * C + c;
                size h = row % H;
                vfloat left = {}, centre = load(g), right; // gradients at three neighbouring columns
                for (size w = 0; w < W; w++) {
                    right = w + 1 < W ? load(g + (w + 1) * C) : vfloat{};
                    grad_bias += centre;
                    vfloat m = load(mid + w * C);
                    total[3] += right * m, total[4] += centre * m, total[5] += left * m;
                    if (h > 0) {
                        vfloat t = load(mid + (w - W) * C);
                        total[0] += right * t, total[1] += centre * t, total[2] += left * t;
                    }
                    if (h + 1 < H) {
                        vfloat l = load(mid + (w + W) * C);
                        total[6] += right * l, total[7] += centre * l, total[8] += left * l;
                    }
                    left = centre, centre = right;
                }
            }
            UNROLL
            for (int i = 0; i < 9; i++)
                store(out + (p * 10 + i) * C + c, total[i]);
            store(out + (p * 10 + 9) * C + c, grad_bias);
        }
}
