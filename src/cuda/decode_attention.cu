// SPDX-License-Identifier: Apache-2.0
// Host side of the decode attention of decode_attention.cuh.
#include <algorithm>
#include <bit>

#include "attention_paths.h"
#include "base/check.h"
#include "decode_kernel.cuh"

namespace paged::gpu {
namespace {

constexpr std::int64_t kSharedBytes = 227 * 1024;          // that a block, and
constexpr std::int64_t kMultiprocessorBytes = 228 * 1024;  // that all blocks of a multiprocessor may have together

// What is tuned for a head size: stages of the rings, blocks that a multiprocessor holds if shared memory allows.
template <int dim, int stages, int blocks>
struct Tuning {
  static constexpr int kDim = dim, kStages = stages, kBlocksEach = blocks;
};
// At 128 a third stage is worth 2 to 10 % where two blocks of it still fit: with up to four query heads to a kv head.
template <class Fn>
void with_tuning(int head_dim, int group, Fn&& fn) {
  switch (head_dim) {
    case 64: return fn(Tuning<64, 3, 2>{});
    case 96: return fn(Tuning<96, 3, 2>{});
    case 128: return group <= 4 ? fn(Tuning<128, 3, 2>{}) : fn(Tuning<128, 2, 2>{});
    case 256: return fn(Tuning<256, 2, 1>{});
  }
}

int group_of(const AttentionShape& shape) { return shape.num_heads / shape.num_kv_heads; }

std::int64_t shared_bytes(const AttentionShape& shape, int num_rows) {
  std::int64_t bytes = 0;
  with_tuning(shape.head_dim, group_of(shape), [&]<class Tuned>(Tuned) {
    bytes = DecodeShared<BFloat16, Tuned::kDim, Tuned::kStages>::num_bytes(num_rows);
  });
  return bytes;
}

// How a step runs. Only steps with a query longer than one token pack several tokens into a tile of rows.
struct Schedule {
  int tokens_per_item, num_rows, num_blocks;

  Schedule(const GpuContext& gpu, const AttentionShape& shape, bool single_tokens) {
    const int group = group_of(shape);
    int rows = 16;
    while (rows > group && shared_bytes(shape, rows) > kSharedBytes) rows /= 2;
    tokens_per_item = single_tokens ? 1 : std::max(1, rows / group);
    num_rows = tokens_per_item * group;
    std::int64_t each = kMultiprocessorBytes / (shared_bytes(shape, num_rows) + 1024);
    with_tuning(shape.head_dim, group,
                [&]<class Tuned>(Tuned) { each = std::min<std::int64_t>(each, Tuned::kBlocksEach); });
    num_blocks = std::min(static_cast<int>(each) * gpu.num_multiprocessors, kPlanThreads - 1);
  }
};

Schedule schedule_of(const GpuContext& gpu, const AttentionShape& shape, const BatchView& batch) {
  return {gpu, shape, batch.num_tokens == batch.num_sequences};
}

std::int64_t max_items(const AttentionLimits& limits) { return std::max(limits.max_tokens, limits.max_sequences); }

class DecodeAttention final : public FastAttention {
 public:
  std::int64_t plan_bytes(const GpuContext&, const AttentionLimits& limits) const override {
    return DecodePlan::num_bytes(max_items(limits));
  }

  std::int64_t workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits) const override {
    const std::int64_t nodes = (limits.max_seq_len + kNodeTiles * kTileKeys - 1) / (kNodeTiles * kTileKeys);
    std::int64_t bytes = 0;
    for (const bool single_tokens : {false, true}) {
      // At most one shared pair begins in a block, and each cut adds less than the leaves of a node.
      const Schedule schedule(gpu, limits.shape, single_tokens);
      const std::int64_t pieces = schedule.num_blocks * (nodes + kNodeTiles / kLeafTiles - 1);
      bytes = std::max(bytes, pieces * piece_floats(schedule.num_rows, limits.shape.head_dim) * 4);
    }
    return bytes;
  }

  bool takes(const GpuContext& gpu, const AttentionShape& shape) const override {
    const bool dim = shape.head_dim == 64 || shape.head_dim == 96 || shape.head_dim == 128 || shape.head_dim == 256;
    return (gpu.compute_capability >= 80 || gpu.compute_capability == 0) && shape.dtype != DType::kFloat32 && dim &&
           shape.block_size >= 16 && std::has_single_bit(static_cast<unsigned>(shape.block_size)) &&
           group_of(shape) <= 16 && shared_bytes(shape, group_of(shape)) <= kSharedBytes;
  }

  void plan(const ExecutionContext& context, const AttentionPlanParams& params) const override {
    const AttentionShape& shape = params.limits->shape;
    const Schedule schedule = schedule_of(*context.gpu, shape, *params.batch);
    const DecodePlan at = DecodePlan::at(params.plan, max_items(*params.limits));
    const ItemList list{*params.batch, true, schedule.tokens_per_item, params.window, at.items, at.costs};
    const DecodePlanArguments arguments{list, at, shape.num_kv_heads, schedule.num_blocks};
    launch(plan_decode_kernel, dim3(1), dim3(kPlanThreads), 0, static_cast<Stream>(context.gpu->stream), arguments);
  }

  void run(const ExecutionContext& context, const AttentionParams& params) const override {
    const KvCacheView& cache = params.cache;
    PAGED_INVARIANT(takes(*context.gpu, params.limits->shape) && cache.dtype == params.q.dtype,
                    "decode attention of a shape it does not take");
    const Schedule schedule = schedule_of(*context.gpu, params.limits->shape, *params.batch);
    const DecodeArguments arguments{.q = params.q.data,
                                    .out = params.out.data,
                                    .q_stride = params.q.row_stride,
                                    .out_stride = params.out.row_stride,
                                    .cache = cache.data,
                                    .block_tables = params.batch->block_tables,
                                    .block_table_stride = params.batch->block_table_stride,
                                    .plan = DecodePlan::at(const_cast<void*>(params.plan), max_items(*params.limits)),
                                    .pieces = static_cast<float*>(params.workspace),
                                    .counters = context.gpu->counters,
                                    .sinks = params.sinks,
                                    .scale = ScoreScale::of(params.scale, params.softcap),
                                    .num_kv_heads = cache.num_kv_heads,
                                    .group = params.num_heads / cache.num_kv_heads,
                                    .window = params.window,
                                    .num_rows = schedule.num_rows,
                                    .block_shift = std::countr_zero(static_cast<unsigned>(cache.block_size)),
                                    .single_tokens = params.batch->num_tokens == params.batch->num_sequences,
                                    .seq_lens = params.batch->seq_lens,
                                    .query_start = params.batch->query_start,
                                    .num_sequences = params.batch->num_sequences};
    with_tuning(cache.head_dim, group_of(params.limits->shape), [&]<class Tuned>(Tuned) {
      constexpr int kDim = Tuned::kDim, kStages = Tuned::kStages;
      const auto start = [&]<class T>(T) {
        launch(decode_attention_kernel<T, kDim, kStages, Tuned::kBlocksEach>,
               dim3(static_cast<unsigned>(schedule.num_blocks)), dim3(kDecodeThreads),
               DecodeShared<T, kDim, kStages>::num_bytes(schedule.num_rows), static_cast<Stream>(context.gpu->stream),
               arguments);
      };
      cache.dtype == DType::kBFloat16 ? start(BFloat16{}) : start(Float16{});
    });
  }
};

}  // namespace

const FastAttention* mma_decode_attention() {
  static const DecodeAttention attention;
  return &attention;
}

}  // namespace paged::gpu
