// SPDX-License-Identifier: Apache-2.0
#include "exec/program_executor.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

namespace paged {
namespace {

std::int64_t layer_bytes(const KvCacheSpec& spec, const KvPoolLimits& limits) {
  return std::int64_t{2} * limits.num_blocks * limits.block_size * spec.num_kv_heads * spec.head_dim *
         size_of(spec.dtype);
}

std::int32_t max_heads(const Program& program) {
  std::int32_t heads = 1;
  for (const Op& op : program.ops()) heads = std::max(heads, op.attributes.num_heads);
  return heads;
}

void check_logits(const Program& program) {
  PAGED_CHECK(!program.ops().empty() && !program.ops().back().outputs.empty(), "the program computes nothing");
  const Value& logits = program.ops().back().outputs[0];
  PAGED_CHECK(logits.rows == Rows::kLogits && logits.dtype == DType::kFloat32 && logits.cols == program.vocab_size() &&
                  logits.row_stride == logits.cols,
              "a program ends in contiguous float32 logits of ", program.vocab_size(), " columns");
}

}  // namespace

ProgramExecutor::ProgramExecutor(std::shared_ptr<const Program> program, const KvPoolLimits& limits,
                                 std::shared_ptr<ThreadPool> threads)
    : program_(std::move(program)), kv_limits_(limits), threads_(std::move(threads)) {
  PAGED_CHECK(limits.num_blocks > 0 && limits.block_size > 0 && limits.max_seq_len > 0,
              "the KV pool's limits must be positive, got ", limits.num_blocks, " blocks of ", limits.block_size,
              " tokens, sequences of ", limits.max_seq_len);
  check_logits(*program_);
  context_.threads = threads_.get();
  arena_ = AlignedBuffer(program_->arena().num_bytes);
  kv_pool_ = AlignedBuffer(layer_bytes(program_->kv_cache(), limits) * program_->kv_cache().num_layers);
  attention_workspace_ = AlignedBuffer(ops::attention_workspace_bytes(
      program_->arena().max_tokens, max_heads(*program_), program_->kv_cache().head_dim, limits.max_seq_len));
}

MatrixView ProgramExecutor::view(const Value& value, const BatchView& batch) const {
  const std::int64_t rows = value.rows == Rows::kTokens ? batch.num_tokens : batch.num_logits_rows;
  return {arena_.data() + value.offset, rows, value.cols, value.row_stride, value.dtype};
}

KvCacheView ProgramExecutor::cache(std::int32_t layer) const {
  const KvCacheSpec& spec = program_->kv_cache();
  return {kv_pool_.data() + layer * layer_bytes(spec, kv_limits_),
          kv_limits_.num_blocks,
          kv_limits_.block_size,
          spec.num_kv_heads,
          spec.head_dim,
          spec.dtype};
}

RopeParams ProgramExecutor::rope_params(const Op& op, const Value& input, const Value& output,
                                        const BatchView& batch) const {
  const OpAttributes& a = op.attributes;
  return {view(input, batch), batch.positions, vector_data(op), program_->max_positions(),
          a.head_dim,         a.rotary_dim,    a.interleaved,   view(output, batch)};
}

void ProgramExecutor::run_linear(const Op& op, const BatchView& batch) {
  std::array<const WeightMatrix*, 8> parts{};
  for (std::size_t i = 0; i < op.matrices.size(); ++i) parts[i] = program_->matrix(op.matrices[i]);
  ops::linear(context_, {view(op.inputs[0], batch), parts.data(), static_cast<std::int32_t>(op.matrices.size()),
                         vector_data(op), view(op.outputs[0], batch)});
}

void ProgramExecutor::run_attention(const Op& op, const BatchView& batch) {
  const OpAttributes& a = op.attributes;
  ops::attention(context_,
                 {view(op.inputs[0], batch), cache(a.layer), &batch, a.num_heads, a.window, a.scale, a.softcap,
                  vector_data(op), attention_workspace_.data(), view(op.outputs[0], batch), nullptr});
}

void ProgramExecutor::run_rope_store_kv(const Op& op, const BatchView& batch) {
  ops::rope_store_kv(context_, {rope_params(op, op.inputs[0], op.outputs[0], batch),
                                rope_params(op, op.inputs[1], op.inputs[1], batch), view(op.inputs[2], batch),
                                batch.slot_mapping, cache(op.attributes.layer)});
}

void ProgramExecutor::run_op(const Op& op, const BatchView& batch) {
  const OpAttributes& a = op.attributes;
  const auto in = [&](std::size_t i) { return view(op.inputs[i], batch); };
  const auto out = [&](std::size_t i) { return view(op.outputs[i], batch); };
  switch (op.kind) {
    case OpKind::kEmbedding:
      return ops::embedding(context_, {batch.token_ids, program_->matrix(op.matrices[0]), out(0), a.scale});
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
    case OpKind::kGatherRows: return ops::gather_rows(context_, {in(0), batch.logits_rows, out(0)});
    case OpKind::kSoftcap: return ops::softcap(context_, {in(0), a.softcap, out(0)});
  }
}

const float* ProgramExecutor::run(const BatchView& batch) {
  const ArenaPlan& arena = program_->arena();
  PAGED_INVARIANT(batch.num_tokens <= arena.max_tokens && batch.num_logits_rows <= arena.max_logits_rows, "batch of ",
                  batch.num_tokens, " tokens and ", batch.num_logits_rows, " rows exceeds the limits");
  using Clock = std::chrono::steady_clock;
  const std::vector<Op>& ops = program_->ops();
  for (std::size_t i = 0; i < ops.size(); ++i) {
    // Nothing samples in this step: what only feeds the logits has no rows.
    if (batch.num_logits_rows == 0 && !ops[i].outputs.empty() && ops[i].outputs[0].rows == Rows::kLogits) continue;
    if (op_seconds_.empty()) {
      run_op(ops[i], batch);
      continue;
    }
    const Clock::time_point start = Clock::now();
    run_op(ops[i], batch);
    op_seconds_[i] += std::chrono::duration<double>(Clock::now() - start).count();
  }
  if (batch.num_logits_rows == 0) return nullptr;
  return reinterpret_cast<const float*>(arena_.data() + ops.back().outputs[0].offset);
}

void ProgramExecutor::copy_blocks(std::span<const std::int32_t> source, std::span<const std::int32_t> destination) {
  PAGED_INVARIANT(source.size() == destination.size(), "block copies: ", source.size(), " sources, ",
                  destination.size(), " destinations");
  if (source.empty()) return;
  for (std::int32_t layer = 0; layer < program_->kv_cache().num_layers; ++layer)
    ops::copy_blocks(context_,
                     {cache(layer), source.data(), destination.data(), static_cast<std::int32_t>(source.size())});
}

void ProgramExecutor::set_profiling(bool enabled) { op_seconds_.assign(enabled ? program_->ops().size() : 0, 0.0); }

}  // namespace paged
