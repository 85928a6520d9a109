// SPDX-License-Identifier: Apache-2.0
// Prefill attention on Hopper: the kernel, the step's plan of its work, and the face towards the dispatch.
#pragma once

#include <algorithm>
#include <bit>

#include "attention_paths.h"
#include "base/check.h"
#include "prefill_sm90_consumer.h"
#include "prefill_sm90_producer.h"

namespace paged::gpu {
namespace prefill_sm90 {

template <class T, class Tl, bool with_softcap>
__global__ void __launch_bounds__(Tl::kThreads, 1)
    prefill_kernel(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
                   const __grid_constant__ Arguments a) {
#if PAGED_SM90A
  constexpr int kConsumerWarps = Tl::kConsumers * 4;
  GPU_DYN_SHARED(Shared<Tl>, shared);
  release_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tl::kQStages; ++i) {
      init_barrier(&shared->q_full[i], 1);
      init_barrier(&shared->q_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < Tl::kStages; ++i) {
      init_barrier(&shared->k_full[i], 1);
      init_barrier(&shared->k_empty[i], kConsumerWarps);
      init_barrier(&shared->v_full[i], 1);
      init_barrier(&shared->v_empty[i], kConsumerWarps);
    }
    init_barrier(&shared->v_landed, 1);
    fence_barrier_init();
    prefetch_tensor_map(&q_map);
    prefetch_tensor_map(&kv_map);
  }
  __syncthreads();
  wait_for_predecessors();
  if (threadIdx.x < kGroupThreads) {
    decrease_registers<Tl::kConsumers == 2 ? 40 : 32>();
    if (threadIdx.x < kWarp) Producer<Tl>(*shared, a, &q_map, &kv_map).run();
  } else {
    increase_registers<Tl::kConsumers == 2 ? 232 : 160>();
    Consumer<T, Tl, with_softcap>(*shared, a).run();
  }
#endif
}

// Lists the tiles of all sequences that are not decoding, those with the most keys first: a counting sort by the number
// of tiles of keys, in one block. The order inside a bucket is the threads' and decides nothing but when a tile is
// done.
constexpr int kPlanThreads = 1024;
constexpr int kBuckets = 1024;

struct PlanArguments {
  const std::int32_t* query_start;
  const std::int32_t* seq_lens;
  const std::int32_t* table_rows;
  const std::int32_t* is_decode;
  std::int32_t num_sequences;
  std::int32_t tokens_per_tile;
  std::int32_t keys_per_bucket;
  std::int32_t window;
  std::int32_t num_kv_heads;
  std::int32_t key_bytes;  // of K and V, of one kv head
  std::int32_t num_multiprocessors;
  std::int32_t num_slots;  // of chunks in the workspace
  Plan* plan;
};

// CTAs that run at the same time share keys through L2 if they are few kv heads'. All heads at once if everything fits.
constexpr std::int64_t kKeyBytesAtOnce = 16 << 20;
__device__ __forceinline__ int heads_at_once(const PlanArguments& a, int num_keys) {
  int heads = a.num_kv_heads;
  while (heads > 1 && std::int64_t{num_keys} * a.key_bytes * heads > kKeyBytesAtOnce) heads = (heads + 1) / 2;
  return heads;
}

// A pair has one slot for each chunk that is worth a CTA of its own: there are too few pairs, and room in the
// workspace.
__device__ __forceinline__ int chunks_per_pair(const PlanArguments& a, int num_tiles, int max_chunks) {
  const std::int64_t pairs = std::int64_t{num_tiles} * a.num_kv_heads;
  return max_chunks > 1 && pairs < a.num_multiprocessors && pairs * max_chunks <= a.num_slots ? max_chunks : 0;
}

// Calls fn(tile, bucket) for every tile of queries; warps share out the sequences, lanes their tiles.
template <class Fn>
__device__ __forceinline__ void for_each_tile(const PlanArguments& a, Fn&& fn) {
  for (int i = static_cast<int>(threadIdx.x) / kWarp; i < a.num_sequences; i += kPlanThreads / kWarp) {
    if (a.is_decode[i] != 0) continue;
    const int start = a.query_start[i], num_queries = a.query_start[i + 1] - start, seq_len = a.seq_lens[i];
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int at = lane * a.tokens_per_tile; at < num_queries; at += kWarp * a.tokens_per_tile) {
      PlannedTile tile{};
      tile.first_token = start + at;
      tile.num_tokens = std::min(a.tokens_per_tile, num_queries - at);
      tile.first_position = seq_len - num_queries + at;
      tile.seq_len = seq_len;
      tile.table_row = a.table_rows[i];
      const KeyRange keys = key_range(tile, a.window);
      fn(tile, kBuckets - 1 - std::min((keys.last - keys.first) / a.keys_per_bucket, kBuckets - 1));
    }
  }
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const PlanArguments a) {
  __shared__ int starts[kBuckets];
  __shared__ int sums[kBuckets];
  __shared__ int num_keys, max_chunks;
  release_dependents();
  wait_for_predecessors();
  const int thread = static_cast<int>(threadIdx.x);
  starts[thread] = 0;
  num_keys = max_chunks = 0;
  __syncthreads();
  for_each_tile(a, [&](const PlannedTile& tile, int bucket) {
    atomic_add(&starts[bucket], 1);
    atomic_max(&max_chunks, key_range(tile, a.window).num_chunks());
  });
  for (int i = thread; i < a.num_sequences; i += kPlanThreads)
    if (a.is_decode[i] == 0) atomic_add(&num_keys, a.window > 0 ? std::min(a.seq_lens[i], a.window) : a.seq_lens[i]);
  __syncthreads();
  sums[thread] = starts[thread];
  __syncthreads();
  for (int step = 1; step < kBuckets; step *= 2) {
    const int before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  starts[thread] = sums[thread] - starts[thread];
  if (thread == kBuckets - 1) {
    a.plan->num_tiles = sums[thread];
    a.plan->heads_at_once = heads_at_once(a, num_keys);
    a.plan->chunks_per_pair = chunks_per_pair(a, sums[thread], max_chunks);
  }
  __syncthreads();
  for_each_tile(a, [&](const PlannedTile& tile, int bucket) { a.plan->tiles[atomic_add(&starts[bucket], 1)] = tile; });
}
static_assert(kPlanThreads == kBuckets);

inline int group_of(const AttentionShape& shape) { return shape.num_heads / shape.num_kv_heads; }
inline int tokens_per_tile(const AttentionShape& shape) { return num_rows(shape.head_dim) / group_of(shape); }
inline std::int64_t max_tiles(std::int64_t num_tokens, std::int64_t num_sequences, const AttentionShape& shape) {
  return num_tokens / tokens_per_tile(shape) + num_sequences;
}

// Chunks in the workspace: one a CTA while it goes through a pair's, or those of all shared pairs. None are needed
// where a sequence is one chunk; 64 MiB of them let 32 pairs (a hundred tokens of 32/8 heads) be shared up to 64k keys.
inline int num_slots(const GpuContext& gpu, const AttentionLimits& limits) {
  const std::int64_t chunks = (limits.max_seq_len + kChunkKeys - 1) / kChunkKeys, most = gpu.num_multiprocessors;
  if (chunks <= 1) return 0;
  const std::int64_t affordable = (std::int64_t{64} << 20) / (4 * slot_floats(limits.shape.head_dim));
  return static_cast<int>(std::max(most, std::min(most * chunks, affordable)));
}

// Queries [tokens][kv heads][group][head_dim]; a box is one kv head's group of as many tokens as fill the rows.
inline TensorMap query_map(const AttentionParams& params) {
  const auto dim = static_cast<std::uint64_t>(params.cache.head_dim);
  const auto group = static_cast<std::uint64_t>(params.num_heads / params.cache.num_kv_heads);
  return make_swizzled_tensor_map(
      {.data = params.q.data,
       .rank = 4,
       .sizes = {dim, group, static_cast<std::uint64_t>(params.cache.num_kv_heads),
                 static_cast<std::uint64_t>(params.q.rows)},
       .strides = {0, dim * 2, group * dim * 2, static_cast<std::uint64_t>(params.q.row_stride) * 2},
       .box = {64, static_cast<std::uint32_t>(group), 1,
               static_cast<std::uint32_t>(num_rows(params.cache.head_dim)) / static_cast<std::uint32_t>(group)}});
}

// The cache as [pieces][block_size / 8][head_dim / 64][8][64]; a box is at most one piece.
template <class Tl>
TensorMap cache_map(const KvCacheView& cache) {
  constexpr std::uint64_t kRow = Tl::kHeadDim * 2;
  const auto block_size = static_cast<std::uint64_t>(cache.block_size);
  const std::uint64_t pieces =
      std::uint64_t{2} * static_cast<std::uint64_t>(cache.num_blocks) * static_cast<std::uint64_t>(cache.num_kv_heads);
  return make_swizzled_tensor_map(
      {.data = cache.data,
       .rank = 5,
       .sizes = {Tl::kWholeRows ? 64 : Tl::kHeadDim, 8, Tl::kBoxColumnTiles, block_size / 8, pieces},
       .strides = {0, kRow, 128, 8 * kRow, block_size * kRow},
       .box = {64, 8, Tl::kBoxColumnTiles, static_cast<std::uint32_t>(std::min(cache.block_size, int{Tl::kKeys})) / 8,
               1}});
}

template <class T, int head_dim, bool with_softcap>
void launch_prefill(const ExecutionContext& context, const AttentionParams& params, const Arguments& arguments) {
  using Tl = Tiling<head_dim>;
  const std::int64_t pairs =
      max_tiles(params.batch->num_tokens, params.batch->num_sequences, params.limits->shape) * arguments.num_kv_heads;
  const std::int64_t items = params.limits->max_seq_len > kChunkKeys ? context.gpu->num_multiprocessors : pairs;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(items, context.gpu->num_multiprocessors));
  launch(prefill_kernel<T, Tl, with_softcap>, dim3(grid), dim3(Tl::kThreads), sizeof(Shared<Tl>),
         static_cast<Stream>(context.gpu->stream), query_map(params), cache_map<Tl>(params.cache), arguments);
}

template <class T, int head_dim>
void launch_prefill(const ExecutionContext& context, const AttentionParams& params, const Arguments& arguments) {
  if (params.softcap > 0.0f) return launch_prefill<T, head_dim, true>(context, params, arguments);
  launch_prefill<T, head_dim, false>(context, params, arguments);
}

template <class T>
void launch_prefill(const ExecutionContext& context, const AttentionParams& params, const Arguments& arguments) {
  switch (params.cache.head_dim) {
    case 64: return launch_prefill<T, 64>(context, params, arguments);
    case 96: return launch_prefill<T, 96>(context, params, arguments);
    case 128: return launch_prefill<T, 128>(context, params, arguments);
    case 256: return launch_prefill<T, 256>(context, params, arguments);
    default: PAGED_INVARIANT(false, "prefill attention: head size ", params.cache.head_dim);
  }
}

class PrefillSm90 final : public FastAttention {
 public:
  std::int64_t plan_bytes(const GpuContext&, const AttentionLimits& limits) const override {
    return static_cast<std::int64_t>(
        sizeof(Plan) + sizeof(PlannedTile) *
                           static_cast<std::size_t>(max_tiles(limits.max_tokens, limits.max_sequences, limits.shape)));
  }
  std::int64_t workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits) const override {
    return std::int64_t{4} * slot_floats(limits.shape.head_dim) * num_slots(gpu, limits);
  }

  bool takes(const GpuContext& gpu, const AttentionShape& shape) const override {
    const bool head_dim =
        shape.head_dim == 64 || shape.head_dim == 96 || shape.head_dim == 128 || shape.head_dim == 256;
    return has_sm90(gpu) && head_dim && shape.dtype != DType::kFloat32 && group_of(shape) <= kMaxGroup &&
           shape.block_size >= 8 && std::has_single_bit(static_cast<unsigned>(shape.block_size));
  }

  void plan(const ExecutionContext& context, const AttentionPlanParams& params) const override {
    const BatchView& batch = *params.batch;
    if (batch.num_decodes == batch.num_sequences) return;
    const AttentionLimits& limits = *params.limits;
    launch(plan_kernel, dim3(1), dim3(kPlanThreads), 0, static_cast<Stream>(context.gpu->stream),
           PlanArguments{.query_start = batch.query_start,
                         .seq_lens = batch.seq_lens,
                         .table_rows = batch.block_table_rows,
                         .is_decode = batch.is_decode,
                         .num_sequences = batch.num_sequences,
                         .tokens_per_tile = prefill_sm90::tokens_per_tile(limits.shape),
                         .keys_per_bucket = std::max(128, limits.max_seq_len / kBuckets + 1),
                         .window = params.window,
                         .num_kv_heads = limits.shape.num_kv_heads,
                         .key_bytes = 4 * limits.shape.head_dim,
                         .num_multiprocessors = context.gpu->num_multiprocessors,
                         .num_slots = num_slots(*context.gpu, limits),
                         .plan = static_cast<Plan*>(params.plan)});
  }

  void run(const ExecutionContext& context, const AttentionParams& params) const override {
    const BatchView& batch = *params.batch;
    if (batch.num_decodes == batch.num_sequences) return;
    const KvCacheView& cache = params.cache;
    const bool capped = params.softcap > 0.0f;
    const Arguments arguments{
        .plan = static_cast<const Plan*>(params.plan),
        .counters = context.gpu->counters,
        .slots = static_cast<float*>(params.workspace),
        .block_tables = batch.block_tables,
        .sinks = params.sinks,
        .out = params.out.data,
        .out_stride = params.out.row_stride,
        .block_table_stride = batch.block_table_stride,
        .log2_block_size = std::countr_zero(static_cast<unsigned>(cache.block_size)),
        .num_kv_heads = cache.num_kv_heads,
        .num_pieces = 2 * cache.num_blocks * cache.num_kv_heads,
        .group = params.num_heads / cache.num_kv_heads,
        .window = params.window,
        .scale = capped ? 2.0f * kLog2E * params.scale / params.softcap : kLog2E * params.scale,
        .softcap = params.softcap * kLog2E,
    };
    if (cache.dtype == DType::kBFloat16) return launch_prefill<BFloat16>(context, params, arguments);
    launch_prefill<Float16>(context, params, arguments);
  }
};

}  // namespace prefill_sm90

const FastAttention* prefill_attention_sm90() {
  static const prefill_sm90::PrefillSm90 kernel;
  return &kernel;
}

}  // namespace paged::gpu
