#pragma once

#include "vectors.h"

// --- products of matrices; the second one should fit the cache ---

// The unit of a product: a float32 value, or a pair of bfloat16 values whose products go to one sum.
struct pair {
    uint32_t bits;
};
template <class T> struct Word {
    typedef float type;
};
template <> struct Word<bfloat16> {
    typedef pair type;
};

INLINE void multiply_add(vfloat &total, float a, vfloat row) { total += splat(a) * row; }

#ifdef __AVX512BF16__
constexpr bool HAS_PAIRS = true;

INLINE vword load(const pair *p) {
    vword x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void multiply_add(vfloat &total, pair a, vword row) {
    total = (vfloat)_mm512_dpbf16_ps((__m512)total, (__m512bh)(a.bits + vword{}), (__m512bh)row);
}
#else
constexpr bool HAS_PAIRS = false;
#endif

// Call finish(i, c, sum over k of x[i * step_i + k * step_k] * y[k][c]) for a tile of R rows and V vectors, whose sums
// stay in registers.
template <int R, int V, class W, class F>
INLINE void tile(const W *x, size step_i, size step_k, const W *y, size width, size K, size row, size column,
                 const F &finish) {
    vfloat total[R][V];
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int v = 0; v < V; v++)
            total[i][v] = vfloat{};
    }
    for (size k = 0; k < K; k++) {
        decltype(load(y)) across[V];
        UNROLL
        for (int v = 0; v < V; v++)
            across[v] = load(y + k * width + v * VL);
        UNROLL
        for (int i = 0; i < R; i++) {
            W a = x[i * step_i + k * step_k];
            UNROLL
            for (int v = 0; v < V; v++)
                multiply_add(total[i][v], a, across[v]);
        }
    }
    UNROLL
    for (int i = 0; i < R; i++) {
        UNROLL
        for (int v = 0; v < V; v++)
            finish(row + i, column + v * VL, total[i][v]);
    }
}

template <int R, int V, class W, class F>
INLINE void tile_of(size rows, const W *x, size step_i, size step_k, const W *y, size width, size K, size row,
                    size column, const F &finish) {
    if (rows == R)
        tile<R, V>(x, step_i, step_k, y, width, K, row, column, finish);
    else if constexpr (R > 1)
        tile_of<R - 1, V>(rows, x, step_i, step_k, y, width, K, row, column, finish);
}

template <int V, class W, class F>
INLINE void strip(const W *x, size step_i, size step_k, const W *y, size width, size I, size K, size column,
                  const F &finish) {
    constexpr int TILE_ROWS =
        min(ROWS, (REGISTERS - 1 - V) / V); // registers hold the sums, V vectors of y and a value of x
    size tiles = (I + TILE_ROWS - 1) / TILE_ROWS, row = 0;
    for (size t = 0; t < tiles; t++) { // tiles of equal height: one with a single row would wait for every sum
        size rows = (I - row + tiles - t - 1) / (tiles - t);
        tile_of<TILE_ROWS, V>(rows, x + row * step_i, step_i, step_k, y + column, width, K, row, column, finish);
        row += rows;
    }
}

// The same for I x J values, J a multiple of VL.
template <class W, class F>
static void product(const W *x, size step_i, size step_k, const W *y, size width, size I, size K, size J,
                    const F &finish) {
    size j = 0;
    for (; j + ACROSS * VL <= J; j += ACROSS * VL)
        strip<ACROSS>(x, step_i, step_k, y, width, I, K, j, finish);
    for (; j + 2 * VL <= J; j += 2 * VL)
        strip<2>(x, step_i, step_k, y, width, I, K, j, finish);
    for (; j < J; j += VL)
        strip<1>(x, step_i, step_k, y, width, I, K, j, finish);
}

// What `finish` can be: write the sums, or add them to `out`.
template <bool ADD> struct To {
    float *out;
    size width;
    INLINE_METHOD void operator()(size i, size c, vfloat total) const {
        float *p = out + i * width + c;
        store(p, ADD ? load(p) + total : total);
    }
};
typedef To<false> Write;
typedef To<true> Add;
