// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang and Sennrich, arXiv 1910.07467), alone or after a residual addition. A group of columns is normalised
// by as many threads as it has vectors: a part of a warp for a head, a block for a row, which stays in registers. The
// order of the sum depends on the width alone.
#pragma once

#include "gpu/rows.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

constexpr int kNormThreads = 512;
constexpr int kMaxWarps = kNormThreads / 32;
constexpr int kLineBytes = 128;   // of the cache
constexpr int kNarrowLanes = 32;  // up to here a group is part of a warp of either width

struct NormWork {
  Rows x, delta, sum, out;  // delta and sum: with a residual
  const float* weight;
  float eps;
  int width;
  unsigned groups_per_row;
  int lanes;  // threads of a group: a power of two up to kNarrowLanes, or the whole block
  unsigned num_groups;
};

// The sum over the threads of a group.
__device__ __forceinline__ float group_sum(float value, int lanes) {
  if (lanes <= kNarrowLanes) {
    for (int mask = lanes / 2; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
    return value;
  }
  __shared__ Vec<float, 4> partial[kMaxWarps / 4];
  const int thread = static_cast<int>(threadIdx.x), warps = lanes / kWarp;
  value = warp_sum(value);
  if (thread % kWarp == 0) partial[thread / kWarp / 4].data[thread / kWarp % 4] = value;
  if (thread >= warps && thread < kMaxWarps) partial[thread / 4].data[thread % 4] = 0.0f;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kMaxWarps / 4; ++i) {
    const Vec<float, 4> four = partial[i];
    total += (four.data[0] + four.data[1]) + (four.data[2] + four.data[3]);
  }
  return total;
}

template <class T, int kVec, int kHeld, bool kOnce, bool kAdd>
__global__ void __launch_bounds__(kNormThreads, kAdd ? 1 : 2) rms_norm_kernel(NormWork work) {
  release_dependents();
  const int lanes = work.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned group = (blockIdx.x * blockDim.x + threadIdx.x) / static_cast<unsigned>(lanes);
  const bool active = group < work.num_groups;
  const int vectors = active ? work.width / kVec : 0, span = lanes * kHeld;
  Vec<float, kVec> weight[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int at = h * lanes + lane;
    weight[h] = at < vectors ? load_vec<float, kVec>(work.weight + at * kVec) : Vec<float, kVec>{};
  }
  const unsigned row = group / work.groups_per_row;
  const int column = static_cast<int>(group % work.groups_per_row) * work.width;
  const T* x = work.x.row<const T>(row) + column;
  const T* delta = kAdd ? work.delta.row<const T>(row) + column : nullptr;
  T* sum = kAdd ? work.sum.row<T>(row) + column : nullptr;
  T* out = work.out.row<T>(row) + column;
  const float inverse_width = 1.0f / static_cast<float>(work.width);
  // The residual has left the caches, and once the kernel before this one ends, weights of the next are in its way.
#pragma unroll
  for (int h = 0; kAdd && h < kHeld; ++h) {
    const int at = h * lanes + lane;
    if (at < vectors && at * kVec * static_cast<int>(sizeof(T)) % kLineBytes == 0) fetch_line(x + at * kVec);
  }
  wait_for_predecessors();

  Vec<T, kVec> held[kHeld], added[kAdd ? kHeld : 1];
  float squares = 0.0f;
  for (int base = 0; base < (kOnce ? 1 : vectors); base += span) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int at = base + h * lanes + lane;
      held[h] = at < vectors ? load_vec<T, kVec>(x + at * kVec) : Vec<T, kVec>{};
      if (kAdd) added[kAdd ? h : 0] = at < vectors ? load_vec<T, kVec>(delta + at * kVec) : Vec<T, kVec>{};
    }
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int at = base + h * lanes + lane;
      if (at >= vectors) continue;
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        if (kAdd) held[h].data[i] = from_float<T>(to_float(held[h].data[i]) + to_float(added[kAdd ? h : 0].data[i]));
        const float value = to_float(held[h].data[i]);
        squares = fmaf(value, value, squares);
      }
      if (kAdd) store_vec(sum + at * kVec, held[h]);
    }
  }
  const float scale = fast_rsqrt(fmaf(group_sum(squares, lanes), inverse_width, work.eps));

  for (int base = 0; base < (kOnce ? 1 : vectors); base += span) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int at = base + h * lanes + lane;
      if (at >= vectors) continue;
      if (!kOnce) {
        held[h] = load_vec<T, kVec>((kAdd ? sum : x) + at * kVec);
        weight[h] = load_vec<float, kVec>(work.weight + at * kVec);
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i)
        held[h].data[i] = from_float<T>(to_float(held[h].data[i]) * scale * weight[h].data[i]);
      store_vec(out + at * kVec, held[h]);
    }
  }
}

template <class T, int kVec, int kHeld, bool kOnce, bool kAdd>
void launch_norm(const ExecutionContext& context, NormWork work) {
  const int vectors = work.width / kVec;
  unsigned threads = block_threads(divide_up(vectors, kHeld), kNormThreads);
  work.lanes = static_cast<int>(threads);
  if (vectors <= kNarrowLanes) {
    for (work.lanes = 1; work.lanes < vectors;) work.lanes *= 2;
    threads = block_threads(std::int64_t{work.num_groups} * work.lanes, 128);
  }
  const unsigned groups_per_block = threads / static_cast<unsigned>(work.lanes);
  launch(rms_norm_kernel<T, kVec, kHeld, kOnce, kAdd>,
         dim3(static_cast<unsigned>(divide_up(work.num_groups, groups_per_block))), dim3(threads), 0,
         stream_of(context), work);
}

// A thread holds one vector or two; what is wider than all of them hold is read twice.
template <class T, int kVec, bool kAdd>
void launch_norm(const ExecutionContext& context, const NormWork& work) {
  if (work.width / kVec <= kNormThreads / 2)
    launch_norm<T, kVec, 1, true, kAdd>(context, work);
  else if (work.width / kVec <= kNormThreads * 2)
    launch_norm<T, kVec, 2, true, kAdd>(context, work);
  else
    launch_norm<T, kVec, 2, false, kAdd>(context, work);
}

template <bool kAdd>
void launch_norm(const ExecutionContext& context, DType dtype, const NormWork& work, bool vectors) {
  if (work.num_groups == 0) return;
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    if (vectors)
      launch_norm<T, kVecOf<T>, kAdd>(context, work);
    else
      launch_norm<T, 1, kAdd>(context, work);
  });
}

}  // namespace

void rms_norm(const ExecutionContext& context, const RmsNormParams& params) {
  const std::int64_t groups = params.x.cols / params.width;
  const bool vectors = has_vectors(params.x) && has_vectors(params.out) &&
                       params.width % (16 / size_of(params.x.dtype)) == 0 && is_aligned(params.weight);
  launch_norm<false>(context, params.x.dtype,
                     {.x = rows_of(params.x),
                      .delta = {},
                      .sum = {},
                      .out = rows_of(params.out),
                      .weight = params.weight,
                      .eps = params.eps,
                      .width = static_cast<int>(params.width),
                      .groups_per_row = static_cast<unsigned>(groups),
                      .lanes = 0,
                      .num_groups = static_cast<unsigned>(params.x.rows * groups)},
                     vectors);
}

void add_rms_norm(const ExecutionContext& context, const AddRmsNormParams& params) {
  const bool vectors = has_vectors(params.residual) && has_vectors(params.delta) && has_vectors(params.residual_out) &&
                       has_vectors(params.out) && is_aligned(params.weight);
  launch_norm<true>(context, params.residual.dtype,
                    {.x = rows_of(params.residual),
                     .delta = rows_of(params.delta),
                     .sum = rows_of(params.residual_out),
                     .out = rows_of(params.out),
                     .weight = params.weight,
                     .eps = params.eps,
                     .width = static_cast<int>(params.residual.cols),
                     .groups_per_row = 1,
                     .lanes = 0,
                     .num_groups = static_cast<unsigned>(params.residual.rows)},
                    vectors);
}

}  // namespace paged::gpu
