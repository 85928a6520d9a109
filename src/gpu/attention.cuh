// SPDX-License-Identifier: Apache-2.0
// Attention over the paged KV cache: who computes a batch's decodes and its prefills, and the kernel for everything
// that no vendor's fast path takes. One CTA computes one token's query heads of one kv head (as many as its registers
// hold). Its warps take tiles of 64 keys, so that a K or V element is read once for all those heads. The reduction tree
// is fixed by absolute positions: tiles of 64, merged in order inside leaves of 256, leaves merged in order. Where
// a batch has too few tokens to fill the device, several CTAs share the leaves of one. So a result depends neither on
// the other tokens of the batch nor on how the context got into the cache.
#pragma once

#include <algorithm>

#include "base/check.h"
#include "gpu/attention_tile.cuh"
#include "gpu/fast_paths.h"
#include "gpu/gpu.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

// The leaves that one CTA computes, out of those that its token sees.
struct LeafShare {
  int first_leaf, num_leaves;  // that the token sees
  int begin, end;              // of this CTA, from first_leaf
  int num_shares;

  __device__ LeafShare(const AttentionQuery& query, const AttentionWork& work)
      : first_leaf(query.lowest / (kTileKeys * kLeafTiles)),
        num_leaves(query.position / (kTileKeys * kLeafTiles) + 1 - first_leaf) {
    int leaves = (num_leaves + work.num_shares - 1) / work.num_shares;
    if (leaves < kMinShare) leaves = kMinShare;
    num_shares = (num_leaves + leaves - 1) / leaves;
    begin = static_cast<int>(blockIdx.z) * leaves;
    end = begin + leaves < num_leaves ? begin + leaves : num_leaves;
  }
};

// What a thread keeps: elements threadIdx.x, + kAttentionThreads, ... of the CTA's rows, of head_dim each.
template <int kOwned>
struct OwnedStates {
  SoftmaxState state[kOwned];
  int elements, head_dim;

  template <class Fn>
  __device__ void each(Fn&& fn) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int e = static_cast<int>(threadIdx.x) + i * kAttentionThreads;
      if (e < elements) fn(state[i], e / head_dim, e % head_dim);
    }
  }
};

__device__ __forceinline__ SoftmaxState load_state(const float* from, int head_dim, int d) {
  return {from[head_dim], from[head_dim + 1], from[d]};
}
__device__ __forceinline__ void store_state(float* to, int head_dim, int d, const SoftmaxState& state) {
  to[d] = state.acc;
  if (d != 0) return;
  to[head_dim] = state.max;
  to[head_dim + 1] = state.sum;
}

// Whether all other CTAs of the token's rows have stored their leaves, which every thread may then read.
__device__ __forceinline__ bool is_last_share(std::uint32_t* counter, int num_shares) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    thread_fence();
    is_last = atomic_add(counter, 1u) == static_cast<std::uint32_t>(num_shares - 1);
    if (is_last) *counter = 0;
    thread_fence();
  }
  __syncthreads();
  return is_last;
}

// Adds the extra logit of the head, if any, and normalises.
__device__ __forceinline__ float finish(SoftmaxState state, const AttentionParams& op, int head) {
  if (op.sinks != nullptr) state.merge({op.sinks[head] * kLog2e, 1.0f, 0.0f});
  return state.acc / state.sum;
}

template <class T, int kVec, int kPieces, int kRows>
__global__ void __launch_bounds__(kAttentionThreads, kPieces == 1 ? 2 : 1) attention_kernel(const AttentionWork work) {
  constexpr int kOwned = kRows * kPieces * kVec * kMaxLanesPerKey / kAttentionThreads;
  constexpr int kWarps = kAttentionThreads / kWarp;  // a multiple of kLeafTiles: a round is whole leaves
  GPU_DYN_SHARED(float, q);                          // [kRows][width], then the states of a tile each
  release_dependents();
  wait_for_predecessors();
  const AttentionParams& op = work.op;
  const int token = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y) / work.row_tiles;
  const int first_row = static_cast<int>(blockIdx.y) % work.row_tiles * kRows;
  const int first_head = kv_head * work.group + first_row;
  const int rows = work.group - first_row < kRows ? work.group - first_row : kRows;
  const AttentionQuery query = query_of(work, token);
  if (!query.computed) return;
  const int head_dim = op.cache.head_dim, stride = head_dim + 2;
  T* out = static_cast<T*>(op.out.data) + token * op.out.row_stride + static_cast<std::int64_t>(first_head) * head_dim;
  OwnedStates<kOwned> total{{}, rows * head_dim, head_dim};
  if (query.position < 0) {
    total.each([&](SoftmaxState&, int row, int d) { out[row * head_dim + d] = from_float<T>(0.0f); });
    return;
  }
  const LeafShare share(query, work);
  if (share.begin >= share.num_leaves) return;
  const auto reader = reader_of<T, kVec, kPieces>(work, query, kv_head);
  const T* q_row =
      static_cast<const T*>(op.q.data) + token * op.q.row_stride + static_cast<std::int64_t>(first_head) * head_dim;
  const int width = kPieces * reader.lanes * kVec;
  for (int e = thread; e < kRows * width; e += kAttentionThreads) {
    const int row = e / width, d = e % width;
    q[e] = row < rows && d < head_dim ? to_float(q_row[row * head_dim + d]) : 0.0f;
  }
  __syncthreads();
  float* states = q + kRows * width;
  float* leaves =
      work.leaves + (static_cast<std::int64_t>(token) * op.num_heads + first_head) * work.max_leaves * stride;
  const int first_tile = query.lowest / kTileKeys, last_tile = query.position / kTileKeys;
  const int end = (share.first_leaf + share.end) * kLeafTiles;
  for (int base = (share.first_leaf + share.begin) * kLeafTiles; base < end; base += kWarps) {
    const int mine = base + thread / kWarp;
    if (mine >= first_tile && mine <= last_tile && mine < end)
      attend_tile<T, kVec, kPieces, kRows>(reader, op, mine * kTileKeys, q, states + thread / kWarp * kRows * stride);
    __syncthreads();
    total.each([&](SoftmaxState& sum, int row, int d) {
      SoftmaxState leaf;
#pragma unroll 1
      for (int tile = base; tile < base + kWarps && tile < end; ++tile) {
        if (tile < first_tile || tile > last_tile) continue;
        leaf.merge(load_state(states + ((tile - base) * kRows + row) * stride, head_dim, d));
        if (tile % kLeafTiles != kLeafTiles - 1 && tile != last_tile) continue;
        const int at = tile / kLeafTiles - share.first_leaf;
        if (share.num_shares > 1)
          store_state(leaves + (row * work.max_leaves + at) * static_cast<std::int64_t>(stride), head_dim, d, leaf);
        else
          sum.merge(leaf);
        leaf = {};
      }
    });
    __syncthreads();
  }
  if (share.num_shares > 1) {
    if (!is_last_share(work.counters + token * gridDim.y + blockIdx.y, share.num_shares)) return;
    total.each([&](SoftmaxState& sum, int row, int d) {
#pragma unroll 1
      for (int at = 0; at < share.num_leaves; ++at)
        sum.merge(load_state(leaves + (row * work.max_leaves + at) * static_cast<std::int64_t>(stride), head_dim, d));
    });
  }
  total.each([&](SoftmaxState& sum, int row, int d) {
    out[row * head_dim + d] = from_float<T>(finish(sum, op, first_head + row));
  });
}

// So many CTAs for a token's rows that the device is full, as far as scratch and counters allow.
int num_shares_of(const GpuContext& gpu, const AttentionWork& work, int max_seq_len) {
  const std::int64_t ctas = std::int64_t{work.batch.num_tokens} * work.op.cache.num_kv_heads * work.row_tiles;
  const int max_leaves = max_seq_len / (kTileKeys * kLeafTiles) + 1;
  const std::int64_t leaf_bytes = std::int64_t{work.batch.num_tokens} * work.op.num_heads * max_leaves *
                                  (work.op.cache.head_dim + 2) * static_cast<std::int64_t>(sizeof(float));
  if (ctas > GpuContext::kCounters || leaf_bytes > gpu.scratch_bytes) return 1;
  const std::int64_t wanted = 2 * gpu.num_multiprocessors / ctas;
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, (max_leaves + kMinShare - 1) / kMinShare));
}

template <class T, int kVec, int kPieces, int kRows>
void launch_attention(const GpuContext& gpu, AttentionWork work) {
  const int vectors = (work.op.cache.head_dim + kVec - 1) / kVec;
  work.lanes_per_key = kMinLanesPerKey;
  while (work.lanes_per_key < std::min(vectors, kMaxLanesPerKey)) work.lanes_per_key *= 2;
  work.row_tiles = (work.group + kRows - 1) / kRows;
  // The queries, and a state for each warp: the most there are are those of 32 threads.
  const int width = kPieces * work.lanes_per_key * kVec, states = kAttentionThreads / 32 * (work.op.cache.head_dim + 2);
  const std::size_t shared = sizeof(float) * static_cast<std::size_t>(kRows * (width + states));
  work.num_shares = num_shares_of(gpu, work, work.op.limits->max_seq_len);
  const dim3 grid(static_cast<unsigned>(work.batch.num_tokens),
                  static_cast<unsigned>(work.op.cache.num_kv_heads * work.row_tiles),
                  static_cast<unsigned>(work.num_shares));
  launch(attention_kernel<T, kVec, kPieces, kRows>, grid, dim3(kAttentionThreads), shared,
         static_cast<Stream>(gpu.stream), work);
}

void generic_attention(const GpuContext& gpu, const AttentionParams& params, bool decodes, bool prefills) {
  AttentionWork work{.op = params,
                     .batch = *params.batch,
                     .group = params.num_heads / params.cache.num_kv_heads,
                     .row_tiles = 1,
                     .lanes_per_key = 1,
                     .block_shift = 0,
                     .decodes = decodes,
                     .prefills = prefills,
                     .num_shares = 1,
                     .max_leaves = params.limits->max_seq_len / (kTileKeys * kLeafTiles) + 1,
                     .leaves = static_cast<float*>(gpu.scratch),
                     .counters = gpu.counters};
  while (1 << work.block_shift < params.cache.block_size) ++work.block_shift;
  with_type(params.cache.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int kVec = 16 / sizeof(T);
    const int head_dim = params.cache.head_dim;
    if (head_dim % kVec != 0)
      launch_attention<T, 2, 8, 2>(gpu, work);
    else if (head_dim <= kVec * kMaxLanesPerKey)
      launch_attention<T, kVec, 1, 4>(gpu, work);
    else
      launch_attention<T, kVec, 16 / kVec, 2>(gpu, work);
  });
}

// Each fast path's part of the plan and of the workspace: the decodes' first.
struct AttentionPaths {
  const FastAttention* decode;
  const FastAttention* prefill;
};
AttentionPaths paths_of(const GpuContext& gpu, const AttentionShape& shape) {
  return {fast_decode_attention(gpu, shape), fast_prefill_attention(gpu, shape)};
}
std::int64_t part_of_plan(const FastAttention* path, const GpuContext& gpu, const AttentionLimits& limits) {
  return path == nullptr ? 0 : (path->plan_bytes(gpu, limits) + 255) / 256 * 256;
}
std::int64_t part_of_workspace(const FastAttention* path, const GpuContext& gpu, const AttentionLimits& limits) {
  return path == nullptr ? 0 : (path->workspace_bytes(gpu, limits) + 255) / 256 * 256;
}

}  // namespace

std::int64_t attention_plan_bytes(const GpuContext& gpu, const AttentionLimits& limits) {
  const AttentionPaths paths = paths_of(gpu, limits.shape);
  return part_of_plan(paths.decode, gpu, limits) + part_of_plan(paths.prefill, gpu, limits);
}

std::int64_t attention_workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits) {
  const AttentionPaths paths = paths_of(gpu, limits.shape);
  return part_of_workspace(paths.decode, gpu, limits) + part_of_workspace(paths.prefill, gpu, limits);
}

void plan_attention(const ExecutionContext& context, const AttentionPlanParams& params) {
  const GpuContext& gpu = *context.gpu;
  const AttentionPaths paths = paths_of(gpu, params.limits->shape);
  if (paths.decode != nullptr && params.batch->num_decodes > 0) paths.decode->plan(context, params);
  if (paths.prefill == nullptr || params.batch->num_decodes == params.batch->num_sequences) return;
  AttentionPlanParams own = params;
  own.plan = static_cast<std::byte*>(params.plan) + part_of_plan(paths.decode, gpu, *params.limits);
  paths.prefill->plan(context, own);
}

void attention(const ExecutionContext& context, const AttentionParams& params) {
  PAGED_INVARIANT(params.limits != nullptr, "attention on a GPU needs the engine's limits");
  PAGED_CHECK(params.q.dtype == params.cache.dtype, "attention: queries of ", name_of(params.q.dtype),
              " and a cache of ", name_of(params.cache.dtype));
  const GpuContext& gpu = *context.gpu;
  const AttentionPaths paths = paths_of(gpu, params.limits->shape);
  const bool decodes = params.batch->num_decodes > 0;
  const bool prefills = params.batch->num_decodes < params.batch->num_sequences;
  if (decodes && paths.decode != nullptr) paths.decode->run(context, params);
  if (prefills && paths.prefill != nullptr) {
    AttentionParams own = params;
    own.plan = static_cast<const std::byte*>(params.plan) + part_of_plan(paths.decode, gpu, *params.limits);
    own.workspace = static_cast<std::byte*>(params.workspace) + part_of_workspace(paths.decode, gpu, *params.limits);
    paths.prefill->run(context, own);
  }
  const bool generic_decodes = decodes && paths.decode == nullptr;
  const bool generic_prefills = prefills && paths.prefill == nullptr;
  if (params.batch->num_tokens == 0 || (!generic_decodes && !generic_prefills)) return;
  generic_attention(gpu, params, generic_decodes, generic_prefills);
}

}  // namespace paged::gpu
