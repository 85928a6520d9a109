// SPDX-License-Identifier: Apache-2.0
// Host side of the prefill attention of mma_prefill_attention.cuh.
#include <algorithm>
#include <bit>

#include "attention_paths.h"
#include "base/check.h"
#include "mma_prefill_attention.cuh"

namespace paged::gpu {
namespace {

// Calls fn with the configuration of a head size.
template <class T, class Fn>
void with_config(int head_dim, Fn&& fn) {
  switch (head_dim) {
    case 64: return fn(PrefillConfig<T, 64, 4, 2, 64, 2>{});
    case 96: return fn(PrefillConfig<T, 96, 4, 2, 64, 2>{});
    case 128: return fn(PrefillConfig<T, 128, 4, 2, 64, 2>{});
    case 256: return fn(PrefillConfig<T, 256, 8, 1, 64, 1>{});
  }
}

int tokens_per_item(const AttentionShape& shape) {
  int rows = 0;
  with_config<BFloat16>(shape.head_dim, [&]<class C>(C) { rows = C::kRows; });
  return rows / (shape.num_heads / shape.num_kv_heads);
}

std::int64_t max_items(const AttentionLimits& limits) { return std::max(limits.max_tokens, limits.max_sequences); }

// True where the host knows that no sequence is in prefill.
bool is_all_decode(const BatchView& batch) { return batch.num_decodes == batch.num_sequences; }

class MmaPrefillAttention final : public FastAttention {
 public:
  std::int64_t plan_bytes(const GpuContext&, const AttentionLimits& limits) const override {
    return PrefillPlan::num_bytes(max_items(limits));
  }
  std::int64_t workspace_bytes(const GpuContext&, const AttentionLimits&) const override { return 0; }

  bool takes(const GpuContext& gpu, const AttentionShape& shape) const override {
    const bool dim = shape.head_dim == 64 || shape.head_dim == 96 || shape.head_dim == 128 || shape.head_dim == 256;
    return (gpu.compute_capability >= 80 || gpu.compute_capability == 0) && shape.dtype != DType::kFloat32 && dim &&
           shape.block_size >= 16 && std::has_single_bit(static_cast<unsigned>(shape.block_size)) &&
           shape.num_heads / shape.num_kv_heads <= 64;
  }

  void plan(const ExecutionContext& context, const AttentionPlanParams& params) const override {
    if (is_all_decode(*params.batch)) return;
    const PrefillPlan plan = PrefillPlan::at(params.plan, max_items(*params.limits));
    const ItemList list{*params.batch, false,      tokens_per_item(params.limits->shape),
                        params.window, plan.items, plan.costs};
    launch(plan_prefill_kernel, dim3(1), dim3(kPlanThreads), 0, static_cast<Stream>(context.gpu->stream), list,
           plan.num_items);
  }

  void run(const ExecutionContext& context, const AttentionParams& params) const override {
    const BatchView& batch = *params.batch;
    if (is_all_decode(batch)) return;
    const KvCacheView& cache = params.cache;
    PAGED_INVARIANT(takes(*context.gpu, params.limits->shape) && cache.dtype == params.q.dtype,
                    "prefill attention of a shape it does not take");
    const PrefillArguments arguments{.q = params.q.data,
                                     .out = params.out.data,
                                     .q_stride = params.q.row_stride,
                                     .out_stride = params.out.row_stride,
                                     .cache = cache.data,
                                     .block_tables = batch.block_tables,
                                     .block_table_stride = batch.block_table_stride,
                                     .plan = PrefillPlan::at(const_cast<void*>(params.plan), max_items(*params.limits)),
                                     .sinks = params.sinks,
                                     .scale = ScoreScale::of(params.scale, params.softcap),
                                     .num_kv_heads = cache.num_kv_heads,
                                     .group = params.num_heads / cache.num_kv_heads,
                                     .window = params.window,
                                     .block_shift = std::countr_zero(static_cast<unsigned>(cache.block_size))};
    // An upper bound of the items: every sequence may end with one that is not full.
    const int num_items =
        std::min(batch.num_tokens / tokens_per_item(params.limits->shape) + batch.num_sequences, batch.num_tokens);
    const dim3 grid(static_cast<unsigned>(cache.num_kv_heads), static_cast<unsigned>(num_items));
    const auto start = [&]<class C>(C) {
      launch(mma_prefill_kernel<C>, grid, dim3(C::kThreads), C::kSharedBytes, static_cast<Stream>(context.gpu->stream),
             arguments);
    };
    cache.dtype == DType::kBFloat16 ? with_config<BFloat16>(cache.head_dim, start)
                                    : with_config<Float16>(cache.head_dim, start);
  }
};

}  // namespace

const FastAttention* mma_prefill_attention() {
  static const MmaPrefillAttention attention;
  return &attention;
}

}  // namespace paged::gpu
