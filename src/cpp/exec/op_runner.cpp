// SPDX-License-Identifier: Apache-2.0
#include "exec/op_runner.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/checked_product.h"
#include "ops/gpu_ops.h"

namespace paged {

std::int64_t kv_layer_bytes(const KvCacheSpec& spec, const KvPoolLimits& limits) {
  return checked_product("the KV cache", {limits.num_blocks, limits.block_size, spec.num_kv_heads,
                                          kv_token_bytes(spec.dtype, spec.head_dim)});
}

std::int64_t kv_pool_bytes(const KvCacheSpec& spec, const KvPoolLimits& limits) {
  return checked_product("the KV cache", {kv_layer_bytes(spec, limits), spec.num_layers});
}

KvPoolSpan kv_pool_span(std::byte* pool, const KvCacheSpec& spec, const KvPoolLimits& limits) {
  const std::int64_t layer_bytes = kv_layer_bytes(spec, limits);
  return {pool, layer_bytes, layer_bytes / limits.num_blocks, spec.num_layers};
}

std::vector<std::int32_t> attention_windows(const Program& program) {
  std::vector<std::int32_t> windows;
  for (const Op& op : program.ops())
    if (op.kind == OpKind::kAttention &&
        std::find(windows.begin(), windows.end(), op.attributes.window) == windows.end())
      windows.push_back(op.attributes.window);
  return windows;
}

std::int32_t max_num_heads(const Program& program) {
  std::int32_t heads = 1;
  for (const Op& op : program.ops())
    if (op.kind == OpKind::kAttention) heads = std::max(heads, op.attributes.num_heads);
  return heads;
}

std::int64_t max_matrix_cols(const Program& program) {
  std::int64_t cols = 0;
  for (const Op& op : program.ops())
    for (const std::int32_t index : op.matrices) cols = std::max(cols, program.matrix(index)->cols);
  return cols;
}

OpRunner::OpRunner(const Program& program, const KvPoolLimits& limits, const ExecutionContext& context,
                   OpBuffers buffers)
    : program_(program), limits_(limits), context_(context), buffers_(std::move(buffers)) {
  PAGED_CHECK(limits.num_blocks > 0 && limits.block_size > 0 && limits.max_seq_len > 0,
              "the KV pool's limits must be positive, got ", limits.num_blocks, " blocks of ", limits.block_size,
              " tokens, sequences of ", limits.max_seq_len);
  PAGED_CHECK(std::int64_t{limits.num_blocks} * limits.block_size < std::int64_t{1} << 31, "the KV pool's ",
              limits.num_blocks, " blocks of ", limits.block_size, " tokens have more slots than an int32 counts");
  PAGED_CHECK(limits.max_seq_len <= program.max_positions(), "sequences of ", limits.max_seq_len,
              " tokens in a program of ", program.max_positions(), " positions");
  PAGED_CHECK(!program.ops().empty() && !program.ops().back().outputs.empty(), "the program computes nothing");
  const Value& value = program.ops().back().outputs[0];
  PAGED_CHECK(value.rows == Rows::kLogits && value.dtype == DType::kFloat32 && value.cols == program.vocab_size() &&
                  value.row_stride == value.cols,
              "a program ends in contiguous float32 logits of ", program.vocab_size(), " columns");
}

void OpRunner::check_size(const BatchView& batch) const {
  const ArenaPlan& arena = program_.arena();
  PAGED_INVARIANT(batch.num_tokens <= arena.max_tokens && batch.num_logits_rows <= arena.max_logits_rows, "batch of ",
                  batch.num_tokens, " tokens and ", batch.num_logits_rows, " rows exceeds the limits");
}

MatrixView OpRunner::logits(std::int32_t rows) const {
  const Value& value = program_.ops().back().outputs[0];
  return {buffers_.arena + value.offset, rows, value.cols, value.row_stride, value.dtype};
}

MatrixView OpRunner::view(const Value& value, const BatchView& batch) const {
  const std::int64_t rows = value.rows == Rows::kTokens ? batch.num_tokens : batch.num_logits_rows;
  return {buffers_.arena + value.offset, rows, value.cols, value.row_stride, value.dtype};
}

KvCacheView OpRunner::cache(std::int32_t layer) const {
  const KvCacheSpec& spec = program_.kv_cache();
  return {buffers_.kv_pool + layer * kv_layer_bytes(spec, limits_),
          limits_.num_blocks,
          limits_.block_size,
          spec.num_kv_heads,
          spec.head_dim,
          spec.dtype};
}

const float* OpRunner::vector_data(const Op& op) const {
  return op.vector < 0 ? nullptr : buffers_.vectors[static_cast<std::size_t>(op.vector)];
}

const void* OpRunner::plan_for(std::int32_t window) const {
  for (const auto& [of, plan] : buffers_.attention_plans)
    if (of == window) return plan;
  return nullptr;
}

RopeParams OpRunner::rope_params(const Op& op, const Value& input, const Value& output, const BatchView& batch) const {
  const OpAttributes& a = op.attributes;
  return {view(input, batch), batch.positions, vector_data(op), program_.max_positions(),
          a.head_dim,         a.rotary_dim,    a.interleaved,   view(output, batch)};
}

void OpRunner::run_linear(const Op& op, const BatchView& batch) const {
  std::array<const WeightMatrix*, 8> parts{};
  for (std::size_t i = 0; i < op.matrices.size(); ++i) parts[i] = program_.matrix(op.matrices[i]);
  ops::linear(context_, {view(op.inputs[0], batch), parts.data(), static_cast<std::int32_t>(op.matrices.size()),
                         vector_data(op), view(op.outputs[0], batch), buffers_.linear_workspace});
}

void OpRunner::run_gated_linear(const Op& op, const BatchView& batch) const {
  const MatrixView x = view(op.inputs[0], batch), out = view(op.outputs[0], batch);
  const MatrixView products = view(op.outputs[1], batch);
  if (context_.device == Device::kGpu)
    return ops::gated_linear(context_, {x, program_.matrix(op.matrices[0]), op.attributes.activation, products, out});
  PAGED_CHECK(op.matrices.size() == 2, "gated_linear: on the CPU it takes two matrices, got ", op.matrices.size());
  ops::gated_linear(context_, {x, program_.matrix(op.matrices[0]), op.attributes.activation, products, out,
                               program_.matrix(op.matrices[1]), buffers_.linear_workspace});
}

void OpRunner::run_attention(const Op& op, const BatchView& batch) const {
  const OpAttributes& a = op.attributes;
  ops::attention(context_, {view(op.inputs[0], batch), cache(a.layer), &batch, a.num_heads, a.window, a.scale,
                            a.softcap, vector_data(op), buffers_.attention_workspace, view(op.outputs[0], batch),
                            buffers_.attention_limits, plan_for(a.window)});
}

void OpRunner::run_rope_store_kv(const Op& op, const BatchView& batch) const {
  const OpAttributes& a = op.attributes;
  const float* norms = op.head_norms < 0 ? nullptr : buffers_.vectors[static_cast<std::size_t>(op.head_norms)];
  ops::rope_store_kv(context_,
                     {rope_params(op, op.inputs[0], op.outputs[0], batch),
                      rope_params(op, op.inputs[1], op.inputs[1], batch), view(op.inputs[2], batch), batch.slot_mapping,
                      cache(a.layer), norms, norms == nullptr ? nullptr : norms + a.head_dim, a.eps});
}

void OpRunner::run(const Op& op, const BatchView& batch) const {
  const OpAttributes& a = op.attributes;
  const auto in = [&](std::size_t i) { return view(op.inputs[i], batch); };
  const auto out = [&](std::size_t i) { return view(op.outputs[i], batch); };
  switch (op.kind) {
    case OpKind::kEmbedding:
      return ops::embedding(context_, {batch.token_ids, program_.matrix(op.matrices[0]), out(0), a.scale});
    case OpKind::kLinear: return run_linear(op, batch);
    case OpKind::kRmsNorm:
      return ops::rms_norm(context_, {in(0), vector_data(op), a.width > 0 ? a.width : in(0).cols, a.eps, out(0)});
    case OpKind::kAddRmsNorm:
      return ops::add_rms_norm(context_, {in(0), in(1), vector_data(op), a.eps, out(0), out(1)});
    case OpKind::kAdd: return ops::add(context_, {in(0), in(1), out(0)});
    case OpKind::kRope: return ops::rope(context_, rope_params(op, op.inputs[0], op.outputs[0], batch));
    case OpKind::kStoreKv: return ops::store_kv(context_, {in(0), in(1), batch.slot_mapping, cache(a.layer)});
    case OpKind::kRopeStoreKv: return run_rope_store_kv(op, batch);
    case OpKind::kAttention: return run_attention(op, batch);
    case OpKind::kGatedActivation: return ops::gated_activation(context_, {in(0), in(1), a.activation, out(0)});
    case OpKind::kGatedLinear: return run_gated_linear(op, batch);
    case OpKind::kGatherRows: return ops::gather_rows(context_, {in(0), batch.logits_rows, out(0)});
    case OpKind::kSoftcap: return ops::softcap(context_, {in(0), a.softcap, out(0)});
  }
}

void OpRunner::copy_blocks(const std::int32_t* sources, const std::int32_t* destinations, std::int32_t count) const {
  for (std::int32_t layer = 0; count > 0 && layer < program_.kv_cache().num_layers; ++layer)
    ops::copy_blocks(context_, {cache(layer), sources, destinations, count});
}

}  // namespace paged
