// LayerNorm over the channels of each position.
#pragma once

#include "vectors.h"

struct Norm {
    const float *scale, *shift; // of each channel
    float eps;
    float *mean, *rstd; // of each position, where asked for
};

// Of `rows` positions from `first` on, that is x[0].
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
            store(out + c, (load(x + c) - mean) * rstd * load(norm.scale + c) + load(norm.shift + c));
        if (norm.mean)
            norm.mean[first + n] = mean, norm.rstd[first + n] = rstd;
    }
}
