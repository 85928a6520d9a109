// SPDX-License-Identifier: Apache-2.0
// Attention of a warp's query rows with mma.m16n8k16 (FlashAttention-2, Dao 2023): scores, online softmax, P V. Rows
// come in tiles of 16; K and V are swizzled tiles [keys][kDim] in shared memory. All sums of a row depend on that row's
// own keys only, and a key that a row does not see changes nothing, to the bit.
#pragma once

#include <ptx.h>

#include <cmath>

#include "gpu/gpu.h"

namespace paged::gpu {

constexpr float kLog2E = 1.4426950408889634f;

// Offset in elements of the 16 bytes `chunk` of a row in a tile of 16-bit elements: eight neighbouring rows' chunks lie
// in different banks.
template <int kDim>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  static_assert(kDim % 32 == 0);
  return row * kDim + (chunk ^ (kDim % 64 == 0 ? row & 7 : row >> 1 & 3)) * 8;
}

// Raw scores become exponents of two: s * factor, after s = cap * tanh(s * inner) where cap > 0.
struct ScoreScale {
  float factor, cap, inner;
  static ScoreScale of(float scale, float softcap) {
    if (softcap > 0.0f) return {kLog2E, softcap, scale / softcap};
    return {scale * kLog2E, 0.0f, 0.0f};
  }
};

// Keys that a thread's two rows see: [first, end) each.
struct RowKeys {
  int first[2], end[2];
};

// Partial attention of the rows lane / 4 (index 0) and lane / 4 + 8 (index 1): sum, over a thread's own columns of the
// scores, and unnormalised output at columns 8 i + 2 (lane % 4).. in the fragments' order.
template <class T, int kDim>
struct RowPartial {
  float max[2], sum[2];
  float out[kDim / 8][4];

  __device__ __forceinline__ void reset() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0.0f;
  }

  // The sums over a row's four threads.
  __device__ __forceinline__ void join_sums() {
#pragma unroll
    for (float& part : sum) {
      part += shuffle_xor(part, 1);
      part += shuffle_xor(part, 2);
    }
  }

  // Scores [16][8 kTiles] become weights relative to the new maxima; what was before is scaled to them. The first
  // scores after reset() find nothing to scale.
  template <int kTiles>
  __device__ __forceinline__ void weigh(float (&score)[kTiles][4], float factor) {
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = -INFINITY;
#pragma unroll
      for (auto& tile : score) top = fmaxf(top, fmaxf(tile[2 * i], tile[2 * i + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2)) * factor;
      top = fmaxf(max[i], top);
      const float reference = top == -INFINITY ? 0.0f : top;
      float total = 0.0f;
#pragma unroll
      for (auto& tile : score) {
#pragma unroll
        for (int j = 2 * i; j < 2 * i + 2; ++j) {
          tile[j] = fast_exp2(fmaf(tile[j], factor, -reference));
          total += tile[j];
        }
      }
      scale[i] = fast_exp2(max[i] - reference);
      sum[i] = fmaf(sum[i], scale[i], total);
      max[i] = top;
    }
    if (ballot(scale[0] != 1.0f || scale[1] != 1.0f) != 0) scale_out(scale);
  }
  __device__ __forceinline__ void scale_out(const float (&scale)[2]) {
#pragma unroll
    for (auto& tile : out) {
      tile[0] *= scale[0];
      tile[1] *= scale[0];
      tile[2] *= scale[1];
      tile[3] *= scale[1];
    }
  }
};

// out += weights [16 kRowTiles][8 kTiles] times V's rows, `v` a tile of which they start at row `first`.
template <class T, int kDim, int kRowTiles, int kTiles>
__device__ __forceinline__ void add_values(RowPartial<T, kDim> (&partial)[kRowTiles],
                                           const float (&weight)[kRowTiles][kTiles][4], const T* v, int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) {
    std::uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float (&pair)[4] = weight[m][2 * k + j / 2];
        a[m][j] = pack_pair<T>(pair[j % 2 * 2], pair[j % 2 * 2 + 1]);
      }
    }
    const int row = first + 16 * k + lane % 16;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      std::uint32_t r[4];
      load_matrices_transposed(r, v + swizzled<kDim>(row, 2 * j + lane / 16));
      const std::uint32_t left[2] = {r[0], r[1]}, right[2] = {r[2], r[3]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        mma_16x8x16<T>(partial[m].out[2 * j], a[m], left);
        mma_16x8x16<T>(partial[m].out[2 * j + 1], a[m], right);
      }
    }
  }
}

// score[16 kRowTiles][8 kTiles] = q times K's rows, `k` a tile of which they start at row `first`. query(m, i): the
// fragment of the rows 16 m.. and columns 16 i.. of q. Two chains of sums where there are few: a chain is latency.
template <class T, int kDim, int kRowTiles, int kTiles, class Query>
__device__ __forceinline__ void score_keys(float (&score)[kRowTiles][kTiles][4], const Query& query, const T* k,
                                           int first) {
  constexpr int kChains = kRowTiles * kTiles <= 2 ? 2 : 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = first + lane % 8 + lane / 16 * 8;
  float sums[kChains][kRowTiles][kTiles][4] = {};
#pragma unroll kDim> 128 ? 4 : kDim / 16
  for (int i = 0; i < kDim / 16; ++i) {
    Vec<std::uint32_t, 4> a[kRowTiles];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) a[m] = query(m, i);
#pragma unroll
    for (int j = 0; j < kTiles / 2; ++j) {
      std::uint32_t r[4];
      load_matrices(r, k + swizzled<kDim>(row + 16 * j, 2 * i + lane / 8 % 2));
      const std::uint32_t left[2] = {r[0], r[1]}, right[2] = {r[2], r[3]};
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        mma_16x8x16<T>(sums[i % kChains][m][2 * j], a[m].data, left);
        mma_16x8x16<T>(sums[i % kChains][m][2 * j + 1], a[m].data, right);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[m][j][i] = sums[0][m][j][i];
        if constexpr (kChains > 1) score[m][j][i] += sums[1][m][j][i];
      }
    }
  }
}

template <int kTiles>
__device__ __forceinline__ void cap_scores(float (&score)[kTiles][4], const ScoreScale& scale) {
#pragma unroll
  for (auto& tile : score) {
#pragma unroll
    for (float& value : tile) value = scale.cap * tanhf(value * scale.inner);
  }
}

// -inf where a row does not see the key; the scores' first column is the key at `position`.
template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&score)[kTiles][4], const RowKeys& keys, int position) {
  const int column = position + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = column + 8 * i + j % 2;
      if (key < keys.first[j / 2] || key >= keys.end[j / 2]) score[i][j] = -INFINITY;
    }
  }
}

}  // namespace paged::gpu
