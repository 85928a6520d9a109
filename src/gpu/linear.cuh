// SPDX-License-Identifier: Apache-2.0
// The matrix product for every shape and dtype that no vendor's fast path takes: tiles in shared memory, float32 sums.
// An output is a sum of chains of 32 multiply-adds in ascending k, in order, whatever the other rows are.
#pragma once

#include <type_traits>

#include "base/check.h"
#include "gpu/device_matrix.h"
#include "gpu/fast_paths.h"
#include "gpu/rows.h"

namespace paged::gpu {
namespace {

constexpr int kLinearThreads = 256;  // 16 x 16, each with kRows x kColsHeld outputs
constexpr int kSide = 16;
constexpr int kColsHeld = 4;
constexpr int kTileCols = kSide * kColsHeld;
constexpr int kTileK = 32;

struct LinearWork {
  Rows x, weight, out;
  const float* bias;  // or null
  bool out_is_float;  // else of x's dtype
  int rows, cols, depth;
};

// Rows first .. first + kRows of a matrix, columns k .. k + kTileK; zeros outside. Loaded into registers, then put
// into shared memory as [k][row].
template <class T, int kVec, int kRows>
class TileLoader {
 public:
  static constexpr int kStride = kRows + 4;  // keeps 16-byte alignment, spreads the banks

  __device__ void load(const Rows& matrix, int first, int num_rows, int k, int depth) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = i * kLinearThreads + static_cast<int>(threadIdx.x), row = first + at / kVectors;
      const int column = k + at % kVectors * kVec;
      const bool inside = at < kRows * kVectors && row < num_rows && column < depth;
      held_[i] = inside ? load_vec<T, kVec>(matrix.row<const T>(row) + column) : Vec<T, kVec>{};
    }
  }
  __device__ void put(float* tile) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = i * kLinearThreads + static_cast<int>(threadIdx.x);
      if (at >= kRows * kVectors) continue;
#pragma unroll
      for (int j = 0; j < kVec; ++j)
        tile[(at % kVectors * kVec + j) * kStride + at / kVectors] = to_float(held_[i].data[j]);
    }
  }

 private:
  static constexpr int kVectors = kTileK / kVec;  // of a row
  static constexpr int kHeld = (kRows * kVectors + kLinearThreads - 1) / kLinearThreads;
  Vec<T, kVec> held_[kHeld];
};

template <class T, int kRows>
__device__ __forceinline__ void write_outputs(const LinearWork& work, int row, int col,
                                              const float (&sums)[kRows][kColsHeld]) {
  for (int i = 0; i < kRows && row + i < work.rows; ++i) {
    for (int j = 0; j < kColsHeld && col + j < work.cols; ++j) {
      const float value = work.bias != nullptr ? sums[i][j] + work.bias[col + j] : sums[i][j];
      if (work.out_is_float)
        work.out.row<float>(row + i)[col + j] = value;
      else
        work.out.row<T>(row + i)[col + j] = from_float<T>(value);
    }
  }
}

// Block x is a tile of columns, block y of rows.
template <class T, class W, bool kVectors, int kRows>
__global__ void __launch_bounds__(kLinearThreads, 2) linear_kernel(LinearWork work) {
  constexpr int kTileRows = kSide * kRows;
  using LoaderX = TileLoader<T, kVectors ? kVecOf<T> : 1, kTileRows>;
  using LoaderW = TileLoader<W, kVectors ? kVecOf<W> : 1, kTileCols>;
  __shared__ Vec<float, 4> x_shared[kTileK * LoaderX::kStride / 4], w_shared[kTileK * LoaderW::kStride / 4];
  float *x_tile = x_shared[0].data, *w_tile = w_shared[0].data;
  release_dependents();
  const int first_row = static_cast<int>(blockIdx.y) * kTileRows, first_col = static_cast<int>(blockIdx.x) * kTileCols;
  const int row = static_cast<int>(threadIdx.x) / kSide * kRows,
            col = static_cast<int>(threadIdx.x) % kSide * kColsHeld;
  LoaderX x;
  LoaderW w;
  w.load(work.weight, first_col, work.cols, 0, work.depth);
  wait_for_predecessors();
  x.load(work.x, first_row, work.rows, 0, work.depth);
  float sums[kRows][kColsHeld] = {};
  for (int k = 0; k < work.depth; k += kTileK) {
    x.put(x_tile);
    w.put(w_tile);
    __syncthreads();
    if (k + kTileK < work.depth) {
      x.load(work.x, first_row, work.rows, k + kTileK, work.depth);
      w.load(work.weight, first_col, work.cols, k + kTileK, work.depth);
    }
    float chain[kRows][kColsHeld] = {};
#pragma unroll
    for (int i = 0; i < kTileK; ++i) {
      const auto a = load_vec<float, kRows>(x_tile + i * LoaderX::kStride + row);
      const auto b = load_vec<float, kColsHeld>(w_tile + i * LoaderW::kStride + col);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kColsHeld; ++c) chain[r][c] = fmaf(a.data[r], b.data[c], chain[r][c]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColsHeld; ++c) sums[r][c] += chain[r][c];
    __syncthreads();
  }
  write_outputs<T, kRows>(work, first_row + row, first_col + col, sums);
}

template <class T, class W, bool kVectors, int kRows>
void launch_linear(const ExecutionContext& context, const LinearWork& work) {
  const dim3 grid(static_cast<unsigned>(divide_up(work.cols, kTileCols)),
                  static_cast<unsigned>(divide_up(work.rows, kSide * kRows)));
  launch(linear_kernel<T, W, kVectors, kRows>, grid, dim3(kLinearThreads), 0, stream_of(context), work);
}

void any_linear(const ExecutionContext& context, const LinearParams& params) {
  const DeviceMatrix& matrix = device_matrix(*params.parts[0]);
  const MatrixView weight{matrix.data(), matrix.rows, matrix.cols, matrix.cols, matrix.dtype};
  const LinearWork work{.x = rows_of(params.x),
                        .weight = rows_of(weight),
                        .out = rows_of(params.out),
                        .bias = params.bias,
                        .out_is_float = params.out.dtype == DType::kFloat32,
                        .rows = static_cast<int>(params.x.rows),
                        .cols = static_cast<int>(matrix.rows),
                        .depth = static_cast<int>(matrix.cols)};
  if (work.rows == 0 || work.cols == 0) return;
  const bool vectors = has_vectors(params.x) && has_vectors(weight);
  with_type(params.x.dtype, [&](auto element) {
    with_type(matrix.dtype, [&](auto stored) {
      using T = decltype(element);
      using W = decltype(stored);
      // Of unlike types only the plainest kernel: nobody is in a hurry there.
      if constexpr (std::is_same_v<T, W>) {
        if (vectors && work.rows <= kSide) return launch_linear<T, W, true, 1>(context, work);
        if (vectors) return launch_linear<T, W, true, 4>(context, work);
      }
      launch_linear<T, W, false, 4>(context, work);
    });
  });
}

}  // namespace

void linear(const ExecutionContext& context, const LinearParams& params) {
  PAGED_INVARIANT(params.num_parts == 1, "on a GPU the parts of a linear are stacked at load, got ", params.num_parts);
  if (!fast_linear(context, params)) any_linear(context, params);
}

void gated_linear(const ExecutionContext& context, const GatedLinearParams& params) {
  if (fast_gated_linear(context, params)) return;
  linear(context, {params.x, &params.matrix, 1, nullptr, params.gate_up});
  MatrixView gate = params.gate_up, up = params.gate_up;
  gate.cols = up.cols = params.out.cols;
  up.data = static_cast<std::byte*>(up.data) + gate.cols * size_of(gate.dtype);
  gated_activation(context, {gate, up, params.activation, params.out});
}

}  // namespace paged::gpu
