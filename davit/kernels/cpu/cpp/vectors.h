// Vectors of float32 (bfloat16 in memory): arithmetic, transposition, and scratch memory of a thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define INLINE_METHOD inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __AVX512F__
constexpr int VL = 16; // values in a vector
constexpr int REGISTERS = 32;
constexpr int ACROSS = 4; // vectors of a tile
#else
constexpr int VL = 8;
constexpr int REGISTERS = 16;
constexpr int ACROSS = 2;
#endif
constexpr int ROWS = 7; // of a tile at most: a 7 x 7 window has seven such strips

typedef int64_t size;
typedef float vfloat __attribute__((vector_size(4 * VL)));
typedef int32_t vint __attribute__((vector_size(4 * VL)));
typedef uint32_t vword __attribute__((vector_size(4 * VL)));
typedef uint16_t vhalf __attribute__((vector_size(2 * VL)));
struct bfloat16 {
    uint16_t bits;
};

// --- vectors ---

INLINE vfloat splat(float x) { return x - vfloat{}; }

INLINE vfloat load(const float *p) {
    vfloat x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE vword widened(vhalf half) {
#ifdef __AVX512F__
    return (vword)_mm512_maskz_cvtepu16_epi32(0xFFFF,
                                              (__m256i)half); // GCC 12 makes four instructions of the line below
#else
    return __builtin_convertvector(half, vword);
#endif
}

INLINE vfloat load(const bfloat16 *p) {
    vhalf half;
    memcpy(&half, p, sizeof half);
    vword word = widened(half) << 16;
    vfloat x;
    memcpy(&x, &word, sizeof x);
    return x;
}

INLINE void store(float *p, vfloat x) { memcpy(p, &x, sizeof x); }

INLINE void store(bfloat16 *p, vfloat x) { // rounded to nearest, ties to even
#ifdef __AVX512BF16__
    vhalf half = (vhalf)_mm512_cvtneps_pbh((__m512)x);
#else
    vword word;
    memcpy(&word, &x, sizeof word);
    word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    word = x != x ? vword{} + 0x7FC0 : word;
    vhalf half = __builtin_convertvector(word, vhalf);
#endif
    memcpy(p, &half, sizeof half);
}

INLINE vfloat store_rounded(float *p, vfloat x) { return store(p, x), x; }

INLINE vfloat store_rounded(bfloat16 *p, vfloat x) { return store(p, x), load(p); }

template <int STEP> INLINE vint swapped() { // indices that exchange each element with the one STEP away
    vint index;
    UNROLL
    for (int i = 0; i < VL; i++)
        index[i] = i ^ STEP;
    return index;
}

INLINE float sum(vfloat x) {
    if (VL == 16)
        x += __builtin_shuffle(x, swapped<VL / 2>());
    x += __builtin_shuffle(x, swapped<4>());
    x += __builtin_shuffle(x, swapped<2>());
    return x[0] + x[1];
}

INLINE vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }

INLINE float largest(vfloat x) {
    if (VL == 16)
        x = larger(x, __builtin_shuffle(x, swapped<VL / 2>()));
    x = larger(x, __builtin_shuffle(x, swapped<4>()));
    x = larger(x, __builtin_shuffle(x, swapped<2>()));
    return x[0] > x[1] ? x[0] : x[1];
}

// e^x for x <= 0, within 2 units of the last place; below -87 it is e^-87. The polynomial is that of Cephes' expf.
INLINE vfloat exponential(vfloat x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    vfloat n = x * 1.44269504088896341f + 12582912.0f; // the nearest integer is in the last bits
    vint power;
    memcpy(&power, &n, sizeof power);
    power = (power + (127 - 0x4B400000)) << 23;
    n -= 12582912.0f;
    vfloat f = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
    vfloat p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    vfloat two_n;
    memcpy(&two_n, &power, sizeof two_n);
    return (p * f * f + f + 1.0f) * two_n;
}

// The normal distribution's cumulative function at x (`below`) and its density. Exact GELU is x times `below`. For
// negative x `below` is the density times a polynomial in 1 / (1 + 0.21 |x|), fitted for a relative error below 2e-7.
INLINE void normal(vfloat x, vfloat &below, vfloat &density) {
    vfloat away = x < 0.0f ? -x : x;
    vfloat e = away > 13.1f ? vfloat{} : exponential(-0.5f * away * away);
    vfloat t = 1.0f / (0.21f * away + 1.0f);
    vfloat p = splat(-0.07165630161762238f);
    p = p * t + 0.2835886776447296f;
    p = p * t - 0.33025380969047546f;
    p = p * t + 0.3494017422199249f;
    p = p * t - 0.0939258486032486f;
    p = p * t + 0.12487304955720901f;
    p = p * t + 0.069192074239254f;
    p = p * t + 0.08506887406110764f;
    p = p * t + 0.08371157199144363f;
    vfloat tail = p * t * e;
    below = x < 0.0f ? tail : 1.0f - tail;
    density = e * 0.3989422804014327f;
}

// Look up a table of 16 entries by the last four bits of `index`.
INLINE vfloat entry(const float *table, vint index) {
#ifdef __AVX512F__
    return __builtin_shuffle(load(table), index & 15);
#else
    return __builtin_shuffle(load(table), load(table + VL), index);
#endif
}

// Coefficients of the normal distribution's tail from 0 to 5.6, in 16 pieces around n / 2.75: polynomials in 2.75
// times the distance from there, fitted for an error below 3e-9 / x.
alignas(64) static const float TAIL[6][16] = {
    {0.5f, 0.358064801f, 0.233529449f, 0.13765645f, 0.0728975683f, 0.0345181711f, 0.0145614762f, 0.00545677822f,
     0.00181240728f, 0.000532576232f, 0.000138257135f, 3.1671334e-05f, 6.39594464e-06f, 1.13778992e-06f,
     1.78178681e-07f, 2.45498626e-08f},
    {-0.145069912f, -0.135788709f, -0.1113583f, -0.0800118297f, -0.050368432f, -0.0277801938f, -0.0134240864f,
     -0.00568338158f, -0.00210814993f, -0.000685123436f, -0.000195078246f, -4.86655554e-05f, -1.06367143e-05f,
     -2.03688433e-06f, -3.41742265e-07f, -5.02348065e-08f},
    {-5.78591823e-08f, 0.00897757895f, 0.0147248209f, 0.0158699937f, 0.0133206137f, 0.00918364525f, 0.00532534719f,
     0.00263036066f, 0.00111505121f, 0.000407661224f, 0.000128964704f, 3.53863943e-05f, 8.43631915e-06f,
     1.74982586e-06f, 3.16086954e-07f, 4.97667827e-08f},
    {0.00319754495f, 0.0025965909f, 0.00115597819f, -0.000335175486f, -0.00123843469f, -0.00141165347f,
     -0.00111248298f, -0.000686316867f, -0.000346734392f, -0.000146626437f, -5.25499199e-05f, -1.60868713e-05f,
     -4.22861694e-06f, -9.58018404e-07f, -1.87582771e-07f, -3.18099929e-08f},
    {-1.28458271e-06f, -0.000281560468f, -0.00039830734f, -0.000315213227f, -0.000130199493f, 2.97590923e-05f,
     0.00010233526f, 0.000100470985f, 6.71604648e-05f, 3.48060057e-05f, 1.46647171e-05f, 5.14176554e-06f,
     1.52060773e-06f, 3.82575536e-07f, 8.23682953e-08f, 1.52396993e-08f},
    {-6.18275008e-05f, -4.29209649e-05f, -1.39346355e-06f, 3.15586767e-05f, 3.80034799e-05f, 2.37910754e-05f,
     5.72174895e-06f, -4.96882421e-06f, -7.27310771e-06f, -5.32615695e-06f, -2.80765835e-06f, -1.16437354e-06f,
     -3.94351929e-07f, -1.11257613e-07f, -2.64638391e-08f, -5.3494511e-09f},
};

// Exact GELU, to the last places of float32; 0 for x below -5.6, where it is 5e-8 at most.
INLINE vfloat gelu(vfloat x) {
    vfloat away = x < 0.0f ? -x : x;
    vfloat nearest = away * 2.75f + 12582912.0f; // the piece is in the last bits
    vint piece;
    memcpy(&piece, &nearest, sizeof piece);
    vfloat f = away * 2.75f - (nearest - 12582912.0f);
    vfloat tail = entry(TAIL[5], piece);
    UNROLL
    for (int i = 4; i >= 0; i--)
        tail = tail * f + entry(TAIL[i], piece);
    tail = away > 15.5f / 2.75f ? vfloat{} : tail;
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

template <int STEP> INLINE void exchange(vfloat *rows) {
    vint low, high;
    UNROLL
    for (int i = 0; i < VL; i++) {
        low[i] = i & STEP ? VL + i - STEP : i;
        high[i] = i & STEP ? VL + i : i + STEP;
    }
    UNROLL
    for (int i = 0; i < VL; i++)
        if (!(i & STEP)) {
            vfloat a = rows[i], b = rows[i + STEP];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + STEP] = __builtin_shuffle(a, b, high);
        }
}

// out[c][n] = x[n][c] for n_rows x columns values, both multiples of VL. The rows of x are `stride` apart.
INLINE void transpose(const float *x, size stride, size columns, size n_rows, float *out) {
    for (size n = 0; n < n_rows; n += VL)
        for (size c = 0; c < columns; c += VL) {
            vfloat rows[VL];
            UNROLL
            for (int i = 0; i < VL; i++)
                rows[i] = load(x + (n + i) * stride + c);
            if (VL == 16)
                exchange<VL / 2>(rows);
            exchange<4>(rows);
            exchange<2>(rows);
            exchange<1>(rows);
            UNROLL
            for (int i = 0; i < VL; i++)
                store(out + (c + i) * n_rows + n, rows[i]);
        }
}

struct Scratch { // memory of one thread, handed out in pieces
    char *first, *next;
    explicit Scratch(size floats)
        : first((char *)aligned_alloc(64, 4 * ((floats + 15) / 16 * 16 + 256))), next(first) {}
    ~Scratch() { free(first); }
    float *take(size floats) {
        float *p = (float *)next;
        next += 4 * ((floats + 15) / 16 * 16);
        return p;
    }
};

INLINE constexpr size min(size a, size b) { return a < b ? a : b; }
