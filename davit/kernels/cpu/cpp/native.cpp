// CPU kernels for DaViT's layers and blocks on channels-last maps, one pass over the map each.
//
// Every function takes float32 or bfloat16 (`type` 0 or 1) and accumulates in float32. Partial sums are added in a
// fixed order, so results do not depend on the number of threads. Channels, and channels of a head, must be multiples
// of 16; `davit/kernels/cpu/native.py` checks that and allocates the memory.
//
// setup.py builds this file for AVX2, AVX-512 and AVX-512 with bfloat16 products. The OpenMP runtime is the one that
// PyTorch has loaded.

#include "backward.h"
#include "block.h"
#include "linear_backward.h"
#include "patches.h"

// --- the functions that native.py calls ---

#define BY_TYPE(call)                                                                                                 \
    if (type == 0) {                                                                                                  \
        typedef float T;                                                                                              \
        call;                                                                                                         \
    } else {                                                                                                          \
        typedef bfloat16 T;                                                                                           \
        call;                                                                                                         \
    }

// Products of bfloat16 need an instruction of their own.
#ifdef __AVX512BF16__
#define WITH_PRODUCTS BY_TYPE
#else
#define WITH_PRODUCTS(call)                                                                                           \
    if (type == 0) {                                                                                                  \
        typedef float T;                                                                                              \
        call;                                                                                                         \
    }
#endif

extern "C" {

const char *davit_source() { return SOURCE; }

// `normed` may be null: then there is no norm. `norm_type` is its dtype.
void davit_encode(int type, const void *x, const float *weight, const float *bias, const float *norm_weight,
                  const float *norm_bias, float eps, void *y, void *normed, float *mean, float *rstd, size norm_type,
                  size B, size H, size W, size C, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    if (type == norm_type) {
        BY_TYPE(encode((const T *)x, weight, bias, norm, (T *)y, (T *)normed, B, H, W, C, threads))
    } else if (type == 0) {
        encode((const float *)x, weight, bias, norm, (float *)y, (bfloat16 *)normed, B, H, W, C, threads);
    } else {
        encode((const bfloat16 *)x, weight, bias, norm, (bfloat16 *)y, (float *)normed, B, H, W, C, threads);
    }
}

void davit_encode_weights(int type, const void *grad, const void *x, float *out, size parts, size B, size H, size W,
                          size C, int threads) {
    BY_TYPE(encode_weights((const T *)grad, (const T *)x, out, parts, B, H, W, C, threads))
}

void davit_window_attention(int type, const void *qkv, const void *bias, void *out, size B, size H, size W, size C,
                            size G, size window, float scale, int threads) {
    BY_TYPE(window_attention((const T *)qkv, (const T *)bias, (T *)out, Map(B, H, W, C, G, window), scale, threads))
}

void davit_window_attention_backward(int type, const void *grad, const void *qkv, const void *bias, void *out,
                                     float *grad_fill, size B, size H, size W, size C, size G, size window,
                                     float scale, int threads) {
    BY_TYPE(window_attention_backward((const T *)grad, (const T *)qkv, (const T *)bias, (T *)out, grad_fill,
                                      Map(B, H, W, C, G, window), scale, threads))
}

void davit_channel_attention(int type, const void *qkv, float *parts, float *attention, void *out, size B, size N,
                             size C, size G, size qk, float scale, int threads) {
    BY_TYPE(channel_attention((const T *)qkv, parts, attention, (T *)out, B, N, C, G, qk != 0, scale, threads))
}

void davit_channel_attention_backward(int type, const void *grad, const void *qkv, const float *attention,
                                      float *parts, float *score, void *out, size B, size N, size C, size G, size qk,
                                      float scale, int threads) {
    BY_TYPE(channel_attention_backward((const T *)grad, (const T *)qkv, attention, parts, score, (T *)out, B, N, C, G,
                                       qk != 0, scale, threads))
}

void davit_norm_backward(int type, const void *grad, const void *x, const float *norm_weight, const float *norm_bias,
                         float eps, float *mean, float *rstd, void *grad_x, void *normed, float *sums, size parts,
                         size N, size C, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    BY_TYPE(norm_backward((const T *)grad, (const T *)x, norm, (T *)grad_x, (T *)normed, sums, parts, N, C, threads))
}

void davit_gelu_backward(int type, const void *grad, const void *x, void *grad_x, void *activated, float *sums,
                         size parts, size N, size C, int threads) {
    BY_TYPE(gelu_backward((const T *)grad, (const T *)x, (T *)grad_x, (T *)activated, sums, parts, N, C, threads))
}

int davit_has_pairs() { return HAS_PAIRS; }

// Without `norm_weight` there is no norm. `mean` and `rstd` may be null.
void davit_linear(int type, const void *x, const float *norm_weight, const float *norm_bias, float eps, float *mean,
                  float *rstd, const void *weight, size transposed, const float *bias, void *out, void *packed, size M,
                  size K, size N, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    WITH_PRODUCTS(linear((const T *)x, norm, (const T *)weight, transposed, bias, (T *)out, (Word<T>::type *)packed, M,
                         K, N, threads))
}

// `mean`, `rstd` and `kept` may be null.
void davit_mlp(int type, const void *x, const float *norm_weight, const float *norm_bias, float eps, float *mean,
               float *rstd, const void *weight1, const float *bias1, const void *weight2, const float *bias2,
               void *kept, void *out, void *packed1, void *packed2, size M, size C, size E, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    WITH_PRODUCTS(mlp((const T *)x, norm, (const T *)weight1, bias1, (const T *)weight2, bias2, (T *)kept, (T *)out,
                      (Word<T>::type *)packed1, (Word<T>::type *)packed2, M, C, E, threads))
}

// Bytes of memory that davit_block needs; `packed` matrices are not part of it.
size davit_block_memory(int type, size packed, size B, size H, size W, size C, size E, size G, size window,
                        int threads) {
    size bytes = 0;
    Sizes shape = {B, H, W, C, E, G, window, 0.0f, 0.0f, 0.0f, threads, false};
    BY_TYPE(shape.B = images_of_part(shape, sizeof(T)); Memory<T>(nullptr, shape, !packed, bytes))
    return bytes;
}

// `weights`: indexed by Parameter; the matrices alone are read.
void davit_pack_block(int type, const void *const *weights, void *packed, size C, size E, size G, int threads) {
    Sizes shape = {0, 0, 0, C, E, G, 0, 0.0f, 0.0f, 0.0f, threads, false};
    WITH_PRODUCTS(pack_block(weights, (T *)packed, shape))
}

// `weights`: indexed by Parameter. Those of the norms are float32 or of the dtype of x (`norm_type`). `packed` may be
// null; otherwise the matrices are read from it and not from `weights`.
void davit_block(int type, const void *x, const void *const *weights, size norm_type, const void *packed, void *memory,
                 void *out, float eps1, float eps2, float scale, size B, size H, size W, size C, size E, size G,
                 size window, size qk, int threads) {
    Sizes shape = {B, H, W, C, E, G, window, scale, eps1, eps2, threads, qk != 0};
    WITH_PRODUCTS(block((const T *)x, weights, norm_type == 0, packed, (char *)memory, (T *)out, shape))
}

// A row of the weight has K values: for the stem C x 7 x 7, and zeros up to a multiple of 16 words.
void davit_patch_embed(int type, const void *x, const void *weight, const float *bias, const float *norm_weight,
                       const float *norm_bias, float eps, void *packed, void *out, size K, size B, size H, size W,
                       size C, size N, size stride, size stem, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, nullptr, nullptr};
    Embedding shape = {B, H, W, C, N, stride, stem != 0, threads};
    if (!shape.stem && shape.M() <= FEW_POSITIONS) {
        WITH_PRODUCTS(embed_by_columns((const T *)x, (const T *)weight, bias, norm, (T *)out, K, shape))
    } else {
        WITH_PRODUCTS(embed((const T *)x, (const T *)weight, bias, norm, (Word<T>::type *)packed, (T *)out, K, shape))
    }
}

void davit_linear_backward(int type, const void *grad, const void *x, const float *norm_weight, const float *norm_bias,
                           float eps, float *mean, float *rstd, const void *weight, void *grad_x, void *normed,
                           float *sums, float *grad_bias, void *packed, size rows, size M, size C, size N,
                           int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    WITH_PRODUCTS(linear_backward((const T *)grad, (const T *)x, norm, (const T *)weight, (T *)grad_x, (T *)normed,
                                  sums, grad_bias, (Word<T>::type *)packed, rows, M, C, N, threads))
}

void davit_mlp_backward(int type, const void *grad, const void *x, const float *norm_weight, const float *norm_bias,
                        float eps, float *mean, float *rstd, const void *weight1, const void *weight2,
                        const void *hidden, void *grad_hidden, void *activated, void *grad_x, void *normed,
                        float *sums, float *grad_bias1, float *grad_bias2, void *packed1, void *packed2, size rows,
                        size M, size C, size E, int threads) {
    Norm norm = {norm_weight, norm_bias, eps, mean, rstd};
    WITH_PRODUCTS(mlp_backward((const T *)grad, (const T *)x, norm, (const T *)weight1, (const T *)weight2,
                               (const T *)hidden, (T *)grad_hidden, (T *)activated, (T *)grad_x, (T *)normed, sums,
                               grad_bias1, grad_bias2, (Word<T>::type *)packed1, (Word<T>::type *)packed2, rows, M, C,
                               E, threads))
}
}
