// What stands for parts of a block, on the CPU: each in one pass over maps that lie channels last.
//
// Every function takes float32 or bfloat16 (`type` 0 or 1) and adds in float32. Sums over parts are added in a fixed
// order, so results do not depend on the number of threads. Channels, and channels of a head, are multiples of 16:
// `davit/kernels/cpu/native.py` asks for nothing else, and holds the memory.
//
// Built for AVX2, AVX-512 and AVX-512 with products of bfloat16 by setup.py; OpenMP's functions are those that PyTorch
// has loaded.

#include "backward.h"
#include "block.h"
#include "linear_backward.h"
#include "patches.h"

// --- what native.py calls ---

#define BY_TYPE(call)                                                                                                 \
    if (type == 0) {                                                                                                  \
        typedef float T;                                                                                              \
        call;                                                                                                         \
    } else {                                                                                                          \
        typedef bfloat16 T;                                                                                           \
        call;                                                                                                         \
    }

// Of bfloat16 only where there is an instruction for it.
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

// `normed` may be null: then no norm; `norm_type` is its number format.
void davit_encode(int type, const void *x, const float *weight, const float *bias, const float *scale,
                  const float *shift, float eps, void *y, void *normed, float *mean, float *rstd, size norm_type,
                  size B, size H, size W, size C, int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
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
                                     float *of_fill, size B, size H, size W, size C, size G, size window, float scale,
                                     int threads) {
    BY_TYPE(window_attention_backward((const T *)grad, (const T *)qkv, (const T *)bias, (T *)out, of_fill,
                                      Map(B, H, W, C, G, window), scale, threads))
}

void davit_channel_attention(int type, const void *qkv, float *parts, float *attention, void *out, size B, size N,
                             size C, size G, float scale, int threads) {
    BY_TYPE(channel_attention((const T *)qkv, parts, attention, (T *)out, B, N, C, G, scale, threads))
}

void davit_channel_attention_backward(int type, const void *grad, const void *qkv, const float *attention,
                                      float *parts, float *score, void *out, size B, size N, size C, size G,
                                      float scale, int threads) {
    BY_TYPE(channel_attention_backward((const T *)grad, (const T *)qkv, attention, parts, score, (T *)out, B, N, C, G,
                                       scale, threads))
}

void davit_norm_backward(int type, const void *grad, const void *x, const float *scale, const float *shift, float eps,
                         float *mean, float *rstd, void *grad_x, void *again, float *sums, size parts, size N, size C,
                         int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    BY_TYPE(norm_backward((const T *)grad, (const T *)x, norm, (T *)grad_x, (T *)again, sums, parts, N, C, threads))
}

void davit_gelu_backward(int type, const void *grad, const void *x, void *grad_x, void *again, float *sums, size parts,
                         size N, size C, int threads) {
    BY_TYPE(gelu_backward((const T *)grad, (const T *)x, (T *)grad_x, (T *)again, sums, parts, N, C, threads))
}

int davit_has_pairs() { return HAS_PAIRS; }

// Without a `scale` there is no norm; `mean` and `rstd` may be null.
void davit_linear(int type, const void *x, const float *scale, const float *shift, float eps, float *mean, float *rstd,
                  const void *weight, size turned, const float *bias, void *out, void *packed, size M, size K, size N,
                  int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    WITH_PRODUCTS(linear((const T *)x, norm, (const T *)weight, turned, bias, (T *)out, (Word<T>::type *)packed, M, K,
                         N, threads))
}

// `mean`, `rstd` and `kept` may be null.
void davit_mlp(int type, const void *x, const float *scale, const float *shift, float eps, float *mean, float *rstd,
               const void *weight1, const float *bias1, const void *weight2, const float *bias2, void *kept, void *out,
               void *packed1, void *packed2, size M, size C, size E, int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    WITH_PRODUCTS(mlp((const T *)x, norm, (const T *)weight1, bias1, (const T *)weight2, bias2, (T *)kept, (T *)out,
                      (Word<T>::type *)packed1, (Word<T>::type *)packed2, M, C, E, threads))
}

// Bytes that davit_block needs; without room for the matrices where they are `packed`.
size davit_block_memory(int type, size packed, size B, size H, size W, size C, size E, size G, size window,
                        int threads) {
    size bytes = 0;
    Sizes of = {B, H, W, C, E, G, window, 0.0f, 0.0f, 0.0f, threads};
    BY_TYPE(of.B = images_of_part(of, sizeof(T)); Memory<T>(nullptr, of, !packed, bytes))
    return bytes;
}

// `weights`: by Parameter, of which the matrices alone are read.
void davit_pack_block(int type, const void *const *weights, void *packed, size C, size E, size G, int threads) {
    Sizes of = {0, 0, 0, C, E, G, 0, 0.0f, 0.0f, 0.0f, threads};
    WITH_PRODUCTS(pack_block(weights, (T *)packed, of))
}

// `weights`: by Parameter, those of the norms float32 or like x (`norm_type`); without the matrices where these are
// `packed`, which may be null.
void davit_block(int type, const void *x, const void *const *weights, size norm_type, const void *packed, void *memory,
                 void *out, float eps1, float eps2, float scale, size B, size H, size W, size C, size E, size G,
                 size window, int threads) {
    Sizes of = {B, H, W, C, E, G, window, scale, eps1, eps2, threads};
    WITH_PRODUCTS(block((const T *)x, weights, norm_type == 0, packed, (char *)memory, (T *)out, of))
}

// A row of the weight has K numbers: of the stem C x 7 x 7 and zeros that make it a multiple of 16 words.
void davit_patch_embed(int type, const void *x, const void *weight, const float *bias, const float *scale,
                       const float *shift, float eps, void *packed, void *out, size K, size B, size H, size W, size C,
                       size N, size stride, size stem, int threads) {
    Norm norm = {scale, shift, eps, nullptr, nullptr};
    Embedding of = {B, H, W, C, N, stride, stem != 0, threads};
    WITH_PRODUCTS(embed((const T *)x, (const T *)weight, bias, norm, (Word<T>::type *)packed, (T *)out, K, of))
}

void davit_linear_backward(int type, const void *grad, const void *x, const float *scale, const float *shift,
                           float eps, float *mean, float *rstd, const void *weight, void *grad_x, void *normed,
                           float *sums, float *of_bias, void *packed, size rows, size M, size C, size N, int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    WITH_PRODUCTS(linear_backward((const T *)grad, (const T *)x, norm, (const T *)weight, (T *)grad_x, (T *)normed,
                                  sums, of_bias, (Word<T>::type *)packed, rows, M, C, N, threads))
}

void davit_mlp_backward(int type, const void *grad, const void *x, const float *scale, const float *shift, float eps,
                        float *mean, float *rstd, const void *weight1, const void *weight2, const void *hidden,
                        void *grad_hidden, void *activated, void *grad_x, void *normed, float *sums, float *of_bias1,
                        float *of_bias2, void *packed1, void *packed2, size rows, size M, size C, size E,
                        int threads) {
    Norm norm = {scale, shift, eps, mean, rstd};
    WITH_PRODUCTS(mlp_backward((const T *)grad, (const T *)x, norm, (const T *)weight1, (const T *)weight2,
                               (const T *)hidden, (T *)grad_hidden, (T *)activated, (T *)grad_x, (T *)normed, sums,
                               of_bias1, of_bias2, (Word<T>::type *)packed1, (Word<T>::type *)packed2, rows, M, C, E,
                               threads))
}
}
