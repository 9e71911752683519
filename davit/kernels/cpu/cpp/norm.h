// LayerNorm over the channels of each position.
#pragma once

#include "vectors.h"

struct Norm {
    const float *weight, *bias; // of each channel
    float eps;
    float *mean, *rstd; // of each position; may be null
};

// Normalise `rows` positions. x and out point to the first of them, whose index in mean and rstd is `first`.
template <class X, class T>
INLINE void norm_rows(const X *x, const Norm &norm, T *out, size first, size rows, size C) {
    for (size n = 0; n < rows; n++, x += C, out += C) {
        vfloat total = {}, square = {};
        for (size c = 0; c < C; c += VL)
            total += load(x + c);
        float mean = sum(total) / C;
        for (size c = 0; c < C; c += VL)
            square += (load(x + c) - mean) * (load(x + c) - mean);
        float rstd = 1.0f / sqrtf(sum(square) / C + norm.eps);
        for (size c = 0; c < C; c += VL)
            store(out + c, (load(x + c) - mean) * rstd * load(norm.weight + c) + load(norm.bias + c));
        if (norm.mean)
            norm.mean[first + n] = mean, norm.rstd[first + n] = rstd;
    }
}
