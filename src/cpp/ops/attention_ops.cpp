// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_ops.h"
#include "ops/gpu_ops.h"
#include "ops/shape_checks.h"

namespace paged::ops {

void attention(const ExecutionContext& context, const AttentionParams& params) {
  const KvCacheView& cache = params.cache;
  check_cache("attention", cache);
  PAGED_CHECK(params.num_heads > 0 && params.num_heads % cache.num_kv_heads == 0, "attention: ", params.num_heads,
              " query heads do not fall into groups over ", cache.num_kv_heads, " kv heads");
  const Shape shape{params.batch->num_tokens, std::int64_t{params.num_heads} * cache.head_dim};
  check_matrix("attention", "q", params.q, shape);
  check_matrix("attention", "out", params.out, shape);
  check_dtype("attention", "out", params.out.dtype, params.q.dtype);
  PAGED_CHECK(params.window >= 0 && params.softcap >= 0.0f, "attention: window ", params.window, " and softcap ",
              params.softcap, " must not be negative (0 turns them off)");
  if (context.device == Device::kGpu) return gpu::attention(context, params);
  cpu::attention(pool_of(context), params);
}

std::int64_t attention_workspace_bytes(int max_tokens, int num_heads, int head_dim, int max_seq_len) {
  return cpu::attention_workspace_bytes(max_tokens, num_heads, head_dim, max_seq_len);
}

}  // namespace paged::ops
