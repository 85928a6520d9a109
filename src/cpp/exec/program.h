// SPDX-License-Identifier: Apache-2.0
// A recorded model as data: a flat list of ops over values at planned offsets of one arena, with its weights. Written
// once at load (by python/paged/program), read at every step, never changed in between.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "ops/ops.h"

namespace paged {

enum class OpKind : std::uint8_t {
  kEmbedding,
  kLinear,
  kRmsNorm,
  kAddRmsNorm,
  kAdd,
  kRope,
  kStoreKv,
  kRopeStoreKv,
  kAttention,
  kGatedActivation,
  kGatedLinear,
  kGatherRows,
  kSoftcap,
};

OpKind parse_op_kind(std::string_view name);         // "embedding", "linear", ...
Activation parse_activation(std::string_view name);  // "silu", "gelu_tanh", "gelu_erf"

// How many rows a value has is known only at run time: all scheduled tokens, or those that sample.
enum class Rows : std::uint8_t { kTokens, kLogits };

struct Value {
  std::int64_t offset = 0;  // bytes from the start of the arena
  Rows rows = Rows::kTokens;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // in elements; > cols for a view of some columns
  DType dtype = DType::kFloat32;
};

// The union of what ops need; each op reads its own (see ops.h for meanings).
struct OpAttributes {
  float eps = 0.0f;
  float scale = 1.0f;
  float softcap = 0.0f;
  std::int32_t width = 0;
  std::int32_t layer = 0;
  std::int32_t num_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t rotary_dim = 0;
  std::int32_t window = 0;
  bool interleaved = false;
  Activation activation = Activation::kSilu;
};

struct Op {
  OpKind kind;
  std::vector<Value> inputs;
  std::vector<Value> outputs;
  std::vector<std::int32_t> matrices;  // indices into Program's matrices
  std::int32_t vector = -1;            // norm weight, bias, rope table or sinks: an index, or -1 for none
  std::int32_t head_norms = -1;        // of rope_store_kv: the norm weights of q's heads, then of k's, or -1
  OpAttributes attributes;
};

struct KvCacheSpec {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  DType dtype = DType::kFloat32;
};

// What the offsets of the values were planned for.
struct ArenaPlan {
  std::int64_t num_bytes = 0;
  std::int32_t max_tokens = 0;       // rows of a kTokens value
  std::int32_t max_logits_rows = 0;  // rows of a kLogits value
};

class Program {
 public:
  Program(const KvCacheSpec& kv_cache, const ArenaPlan& arena, std::int32_t vocab_size, std::int32_t max_positions);

  // For the CPU: packed, in the types they arrived in. Returns the index of the first; the others follow.
  std::int32_t add_matrices(std::span<const WeightSource> sources, ThreadPool& threads);
  // For the GPU that is the thread's current device: the sources under each other as one matrix of `dtype`.
  std::int32_t add_stacked_matrix(std::span<const WeightSource> sources, DType dtype, ThreadPool& threads);
  std::int32_t add_vector(std::vector<float> values);
  void add_op(Op op);  // checks arity, weight indices and that every row of every value lies inside the arena

  const std::vector<Op>& ops() const { return ops_; }
  const KvCacheSpec& kv_cache() const { return kv_cache_; }
  const WeightMatrix* matrix(std::int32_t index) const { return matrices_[static_cast<std::size_t>(index)].get(); }
  const std::vector<std::vector<float>>& vectors() const { return vectors_; }
  const ArenaPlan& arena() const { return arena_; }
  std::int32_t vocab_size() const { return vocab_size_; }
  std::int32_t max_positions() const { return max_positions_; }
  std::vector<std::int64_t> matrix_bytes() const;  // of each matrix as packed
  std::int64_t weight_bytes() const;

 private:
  void check_vector(const Op& op, std::string_view name) const;
  void check_value(const Value& value, std::string_view op) const;

  KvCacheSpec kv_cache_;
  ArenaPlan arena_;
  std::int32_t vocab_size_;
  std::int32_t max_positions_;
  std::vector<Op> ops_;
  std::vector<WeightMatrixPtr> matrices_;
  std::vector<std::vector<float>> vectors_;
};

}  // namespace paged
