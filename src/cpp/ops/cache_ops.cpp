// SPDX-License-Identifier: Apache-2.0
#include "cpu/cpu_ops.h"
#include "ops/gpu_ops.h"
#include "ops/shape_checks.h"

namespace paged::ops {
namespace {

void check_rope(std::string_view op, const RopeParams& params) {
  check_matrix(op, "x", params.x, {params.x.rows, params.x.cols});
  PAGED_CHECK(params.head_dim > 0 && params.head_dim <= 512 && params.x.cols % params.head_dim == 0, op, ": head_dim ",
              params.head_dim, " must be at most 512 and divide the ", params.x.cols, " columns");
  PAGED_CHECK(params.rotary_dim > 0 && params.rotary_dim % 2 == 0 && params.rotary_dim <= params.head_dim, op,
              ": rotary_dim must be even and at most head_dim ", params.head_dim, ", got ", params.rotary_dim);
}

void check_store(std::string_view op, const MatrixView& k, const MatrixView& v, const KvCacheView& cache) {
  check_cache(op, cache);
  check_matrix(op, "k", k, {k.rows, std::int64_t{cache.num_kv_heads} * cache.head_dim});
  check_like(op, "v", v, k);
}

}  // namespace

void rope(const ExecutionContext& context, const RopeParams& params) {
  check_rope("rope", params);
  check_like("rope", "out", params.out, params.x);
  if (context.device == Device::kGpu) return gpu::rope(context, params);
  cpu::rope(pool_of(context), params);
}

void store_kv(const ExecutionContext& context, const StoreKvParams& params) {
  check_store("store_kv", params.k, params.v, params.cache);
  if (context.device == Device::kGpu) return gpu::store_kv(context, params);
  cpu::store_kv(pool_of(context), params);
}

void rope_store_kv(const ExecutionContext& context, const RopeStoreKvParams& params) {
  check_rope("rope_store_kv", params.q);
  check_rope("rope_store_kv", params.k);
  check_like("rope_store_kv", "q.out", params.q.out, params.q.x);
  check_store("rope_store_kv", params.k.x, params.v, params.cache);
  PAGED_CHECK(params.q.x.rows == params.k.x.rows && params.q.x.dtype == params.k.x.dtype, "rope_store_kv: q has ",
              params.q.x.rows, " rows of ", name_of(params.q.x.dtype), ", k ", params.k.x.rows, " of ",
              name_of(params.k.x.dtype));
  PAGED_CHECK(params.k.head_dim == params.cache.head_dim, "rope_store_kv: k has head_dim ", params.k.head_dim,
              ", the cache ", params.cache.head_dim);
  PAGED_CHECK((params.q_norm == nullptr) == (params.k_norm == nullptr), "rope_store_kv: one norm without the other");
  if (context.device == Device::kGpu) return gpu::rope_store_kv(context, params);
  RopeStoreKvParams rest = params;
  if (params.q_norm != nullptr) {
    cpu::rms_norm(pool_of(context), {params.q.x, params.q_norm, params.q.head_dim, params.norm_eps, params.q.out});
    cpu::rms_norm(pool_of(context), {params.k.x, params.k_norm, params.k.head_dim, params.norm_eps, params.k.x});
    rest.q.x = params.q.out;
  }
  cpu::rope_store_kv(pool_of(context), rest);
}

void copy_blocks(const ExecutionContext& context, const CopyBlocksParams& params) {
  check_cache("copy_blocks", params.cache);
  if (context.device == Device::kGpu) return gpu::copy_blocks(context, params);
  cpu::copy_blocks(pool_of(context), params);
}

}  // namespace paged::ops
