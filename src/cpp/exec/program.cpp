// SPDX-License-Identifier: Apache-2.0
#include "exec/program.h"

#include <array>
#include <iterator>
#include <utility>

#include "base/checked_product.h"
#include "ops/gpu_ops.h"

namespace paged {
namespace {

// What each kind of op takes. A range for the few that vary; vector: 0 none, 1 required, 2 optional.
struct Signature {
  OpKind kind;
  std::string_view name;
  std::size_t inputs;
  std::size_t outputs;
  std::size_t min_matrices;
  std::size_t max_matrices;
  int vector;
};

constexpr std::size_t kMaxParts = 8;
constexpr std::int32_t kMaxHeadDim = 512;
constexpr std::array kSignatures = {
    Signature{OpKind::kEmbedding, "embedding", 0, 1, 1, 1, 0},
    Signature{OpKind::kLinear, "linear", 1, 1, 1, kMaxParts, 2},
    Signature{OpKind::kRmsNorm, "rms_norm", 1, 1, 0, 0, 1},
    Signature{OpKind::kAddRmsNorm, "add_rms_norm", 2, 2, 0, 0, 1},
    Signature{OpKind::kAdd, "add", 2, 1, 0, 0, 0},
    Signature{OpKind::kRope, "rope", 1, 1, 0, 0, 1},
    Signature{OpKind::kStoreKv, "store_kv", 2, 0, 0, 0, 0},
    Signature{OpKind::kRopeStoreKv, "rope_store_kv", 3, 1, 0, 0, 1},
    Signature{OpKind::kAttention, "attention", 1, 1, 0, 0, 2},
    Signature{OpKind::kGatedActivation, "gated_activation", 2, 1, 0, 0, 0},
    Signature{OpKind::kGatedLinear, "gated_linear", 1, 2, 1, 2, 0},
    Signature{OpKind::kGatherRows, "gather_rows", 1, 1, 0, 0, 0},
    Signature{OpKind::kSoftcap, "softcap", 1, 1, 0, 0, 0},
};

const Signature& signature_of(OpKind kind) {
  for (const Signature& signature : kSignatures)
    if (signature.kind == kind) return signature;
  detail::throw_invalid_argument("unknown op kind ", static_cast<int>(kind));
}

void check_arity(const Op& op, const Signature& expected) {
  PAGED_CHECK(op.inputs.size() == expected.inputs && op.outputs.size() == expected.outputs, expected.name,
              ": expected ", expected.inputs, " inputs and ", expected.outputs, " outputs, got ", op.inputs.size(),
              " and ", op.outputs.size());
  PAGED_CHECK(op.matrices.size() >= expected.min_matrices && op.matrices.size() <= expected.max_matrices, expected.name,
              ": expected ", expected.min_matrices, " to ", expected.max_matrices, " matrices, got ",
              op.matrices.size());
  const bool has_vector = op.vector >= 0;
  PAGED_CHECK(expected.vector == 2 || has_vector == (expected.vector == 1), expected.name,
              has_vector ? ": takes no vector" : ": needs a vector");
}

}  // namespace

OpKind parse_op_kind(std::string_view name) {
  for (const Signature& signature : kSignatures)
    if (signature.name == name) return signature.kind;
  detail::throw_invalid_argument("unknown op '", name, "'");
}

Activation parse_activation(std::string_view name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "gelu_erf") return Activation::kGeluErf;
  detail::throw_invalid_argument("unknown activation '", name, "'; known: silu, gelu_tanh, gelu_erf");
}

Program::Program(const KvCacheSpec& kv_cache, const ArenaPlan& arena, std::int32_t vocab_size,
                 std::int32_t max_positions)
    : kv_cache_(kv_cache), arena_(arena), vocab_size_(vocab_size), max_positions_(max_positions) {
  PAGED_CHECK(arena.num_bytes < std::int64_t{1} << 48 && kv_cache.head_dim <= kMaxHeadDim, "an arena of ",
              arena.num_bytes, " bytes, heads of ", kv_cache.head_dim, ": too large");
  PAGED_CHECK(kv_cache.num_layers > 0 && kv_cache.num_kv_heads > 0 && kv_cache.head_dim > 0,
              "KV cache: layers, heads and head size must be positive, got ", kv_cache.num_layers, ", ",
              kv_cache.num_kv_heads, ", ", kv_cache.head_dim);
  PAGED_CHECK(
      arena.num_bytes > 0 && arena.max_tokens > 0 && arena.max_logits_rows > 0 && vocab_size > 0 && max_positions > 0,
      "arena, rows, vocabulary and positions must be positive");
}

void Program::check_value(const Value& value, std::string_view op) const {
  const std::int64_t rows = value.rows == Rows::kTokens ? arena_.max_tokens : arena_.max_logits_rows;
  PAGED_CHECK(value.offset >= 0 && value.offset <= arena_.num_bytes && value.cols > 0 &&
                  value.row_stride >= value.cols && value.row_stride <= arena_.num_bytes,
              op, ": a value of ", value.cols, " columns, stride ", value.row_stride, ", at offset ", value.offset,
              " of ", arena_.num_bytes, " bytes");
  const std::int64_t size = checked_product(op, {rows, value.row_stride, size_of(value.dtype)});
  const std::int64_t end = value.offset + size - (value.row_stride - value.cols) * size_of(value.dtype);
  PAGED_CHECK(value.offset % size_of(value.dtype) == 0 && end <= arena_.num_bytes, op, ": a value of ", rows, " x ",
              value.cols, " (stride ", value.row_stride, ") at offset ", value.offset, " leaves the arena of ",
              arena_.num_bytes, " bytes");
}

std::int32_t Program::add_matrices(std::span<const WeightSource> sources, ThreadPool& threads) {
  for (WeightMatrixPtr& matrix : pack_matrices(sources, threads)) matrices_.push_back(std::move(matrix));
  return static_cast<std::int32_t>(matrices_.size() - sources.size());
}

std::int32_t Program::add_stacked_matrix(std::span<const WeightSource> sources, DType dtype, ThreadPool& threads) {
  matrices_.push_back(gpu::upload_matrix(sources, dtype, threads));
  return static_cast<std::int32_t>(matrices_.size()) - 1;
}

std::int32_t Program::add_vector(std::vector<float> values) {
  vectors_.push_back(std::move(values));
  return static_cast<std::int32_t>(vectors_.size()) - 1;
}

// As many values as the op reads; those of a rope table may be more.
void Program::check_vector(const Op& op, std::string_view name) const {
  if (op.vector < 0) return;
  const OpAttributes& a = op.attributes;
  std::int64_t expected = 0;
  switch (op.kind) {
    case OpKind::kLinear: expected = op.outputs[0].cols; break;
    case OpKind::kRmsNorm: expected = a.width > 0 ? a.width : op.inputs[0].cols; break;
    case OpKind::kAddRmsNorm: expected = op.inputs[0].cols; break;
    case OpKind::kAttention: expected = a.num_heads; break;
    case OpKind::kRope:
    case OpKind::kRopeStoreKv: expected = checked_product(name, {max_positions_, a.rotary_dim}); break;
    default: return;
  }
  const std::int64_t size = std::ssize(vectors_[static_cast<std::size_t>(op.vector)]);
  const bool is_table = op.kind == OpKind::kRope || op.kind == OpKind::kRopeStoreKv;
  PAGED_CHECK(is_table ? size >= expected : size == expected, name, ": a vector of ", size, " values where ", expected,
              " are read");
}

void Program::add_op(Op op) {
  const Signature& expected = signature_of(op.kind);
  check_arity(op, expected);
  for (const auto* values : {&op.inputs, &op.outputs})
    for (const Value& value : *values) check_value(value, expected.name);
  for (std::int32_t index : op.matrices)
    PAGED_CHECK(index >= 0 && index < static_cast<std::int32_t>(matrices_.size()), expected.name, ": no matrix ",
                index);
  PAGED_CHECK(op.vector < static_cast<std::int32_t>(vectors_.size()), expected.name, ": no vector ", op.vector);
  PAGED_CHECK(op.head_norms < std::ssize(vectors_), expected.name, ": no vector ", op.head_norms);
  const std::int64_t norm_size = op.head_norms < 0 ? 0 : std::ssize(vectors_[static_cast<std::size_t>(op.head_norms)]);
  PAGED_CHECK(
      op.head_norms < 0 || (op.kind == OpKind::kRopeStoreKv && norm_size == 2 * std::int64_t{op.attributes.head_dim}),
      expected.name, ": ", norm_size, " weights for the norms of two heads of ", op.attributes.head_dim);
  check_vector(op, expected.name);
  PAGED_CHECK(op.kind != OpKind::kEmbedding || matrix(op.matrices[0])->rows >= vocab_size_, expected.name, ": ",
              vocab_size_, " tokens, but the table has fewer rows");
  PAGED_CHECK(
      op.kind != OpKind::kAttention || std::int64_t{op.attributes.num_heads} * kv_cache_.head_dim == op.inputs[0].cols,
      expected.name, ": ", op.attributes.num_heads, " heads of ", kv_cache_.head_dim, " in ",
      op.inputs.empty() ? 0 : op.inputs[0].cols, " columns");
  PAGED_CHECK(op.attributes.layer >= 0 && op.attributes.layer < kv_cache_.num_layers, expected.name, ": layer ",
              op.attributes.layer, " of ", kv_cache_.num_layers);
  ops_.push_back(std::move(op));
}

std::vector<std::int64_t> Program::matrix_bytes() const {
  std::vector<std::int64_t> bytes;
  for (const WeightMatrixPtr& matrix : matrices_) bytes.push_back(matrix->num_bytes());
  return bytes;
}

std::int64_t Program::weight_bytes() const {
  std::int64_t total = 0;
  for (std::int64_t bytes : matrix_bytes()) total += bytes;
  for (const std::vector<float>& vector : vectors_) total += static_cast<std::int64_t>(vector.size() * sizeof(float));
  return total;
}

}  // namespace paged
