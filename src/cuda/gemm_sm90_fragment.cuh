// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums of products whose left operand were the weights: the matrix unit's fragments have rows of
// weights, the output has rows of x.
#pragma once

#include "cuda/gemm_sm90_activation.cuh"
#include "gpu/gpu.h"

namespace paged::gpu {

// Of an 8x8 matrix of 16-bit elements lane 4g + t holds (g, 2t), (g, 2t + 1); afterwards (2t, g), (2t + 1, g).
__device__ __forceinline__ std::uint32_t transposed_pair(std::uint32_t pair, int g, int t) {
  const std::uint32_t first = shuffle(pair, 8 * t + g / 2), second = shuffle(pair, 8 * t + 4 + g / 2);
  return g % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
}

template <class T, class Arguments>
__device__ __forceinline__ void store_pair(const Arguments& args, int row, int end, int col, std::uint32_t pair) {
  if (row < end && col < args.out_cols)
    *reinterpret_cast<std::uint32_t*>(static_cast<T*>(args.out) + row * args.out_stride + col) = pair;
}

// Of this thread's two weight rows in a fragment.
template <class Arguments>
__device__ __forceinline__ void load_bias(const Arguments& args, int col, float (&bias)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = col + threadIdx.x % 32 / 4 + 8 * i;
    bias[i] = args.bias != nullptr && at < args.out_cols ? args.bias[at] : 0.0f;
  }
}

// By a whole warp. d: a fragment of 16 weight rows by 8 rows of x; of out, the columns from `col` and the rows from
// `row`, of which those before `end` are there. Gated: 8 gates and their ups.
template <class T, Activation activation, class Arguments>
__device__ __forceinline__ void store_gated_fragment(const Arguments& args, int row, int end, int col,
                                                     const float (&d)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const std::uint32_t pair = pack_pair<T>(activate<activation>(d[0]) * d[2], activate<activation>(d[1]) * d[3]);
  store_pair<T>(args, row + g, end, col + 2 * t, transposed_pair(pair, g, t));
}
template <class T, class Arguments>
__device__ __forceinline__ void store_fragment(const Arguments& args, int row, int end, int col, const float (&bias)[2],
                                               const float (&d)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (args.float_out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at_row = row + 2 * t + i % 2, at_col = col + g + i / 2 * 8;
      if (at_row < end && at_col < args.out_cols)
        static_cast<float*>(args.out)[at_row * args.out_stride + at_col] = d[i] + bias[i / 2];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t pair = pack_pair<T>(d[2 * i] + bias[i], d[2 * i + 1] + bias[i]);
      store_pair<T>(args, row + g, end, col + 8 * i + 2 * t, transposed_pair(pair, g, t));
    }
  }
}

}  // namespace paged::gpu
