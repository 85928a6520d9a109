// SPDX-License-Identifier: Apache-2.0
#include "exec/program_executor.h"

#include <chrono>
#include <utility>

namespace paged {
namespace {

constexpr std::int64_t kSmallPagesOfLayer = std::int64_t{2} << 20;

}  // namespace

ProgramExecutor::ProgramExecutor(std::shared_ptr<const Program> program, const KvPoolLimits& limits,
                                 std::shared_ptr<ThreadPool> threads)
    : program_(std::move(program)),
      kv_pool_limits_(limits),
      threads_(std::move(threads)),
      sampler_(threads_, program_->vocab_size()),
      arena_(program_->arena().num_bytes),
      kv_pool_(AlignedBuffer::for_huge_pages(kv_pool_bytes(program_->kv_cache(), limits))),
      kv_blocks_(kv_pool_span(kv_pool_.data(), program_->kv_cache(), limits)),
      attention_workspace_(ops::attention_workspace_bytes(program_->arena().max_tokens, max_num_heads(*program_),
                                                          program_->kv_cache().head_dim, limits.max_seq_len)),
      linear_workspace_(ops::linear_workspace_bytes(program_->arena().max_tokens, max_matrix_cols(*program_),
                                                    threads_->num_threads())),
      runner_(*program_, limits, {Device::kCpu, threads_.get(), nullptr}, buffers()) {
  // A huge page is there as a whole once a byte of it is written. Short texts keep to the beginning of each layer,
  // which stays on small ones: or else a first token would cost two megabytes a layer.
  const KvPoolSpan pool = kv_pool_span(kv_pool_.data(), program_->kv_cache(), limits);
  for (std::int64_t layer = 0; layer < pool.num_layers; ++layer)
    kv_pool_.ask_for_huge_pages(layer * pool.layer_bytes + kSmallPagesOfLayer, (layer + 1) * pool.layer_bytes);
}

ExecutorLimits ProgramExecutor::limits() const {
  const ArenaPlan& arena = program_->arena();
  return {kv_pool_limits_.num_blocks, kv_pool_limits_.block_size, kv_pool_limits_.max_seq_len, arena.max_tokens,
          arena.max_logits_rows};
}

OpBuffers ProgramExecutor::buffers() const {
  OpBuffers buffers{arena_.data(), kv_pool_.data(), attention_workspace_.data(), linear_workspace_.data()};
  for (const std::vector<float>& vector : program_->vectors()) buffers.vectors.push_back(vector.data());
  return buffers;
}

void ProgramExecutor::launch(const StepInput& step) {
  PAGED_INVARIANT(step.copy_sources.size() == step.copy_destinations.size(), "block copies: ", step.copy_sources.size(),
                  " sources, ", step.copy_destinations.size(), " destinations");
  runner_.copy_blocks(step.copy_sources.data(), step.copy_destinations.data(),
                      static_cast<std::int32_t>(step.copy_sources.size()));
  sampler_.sample(run(step.batch), step.sampling, step.extras);
}

float* ProgramExecutor::run(const BatchView& batch) {
  runner_.check_size(batch);
  using Clock = std::chrono::steady_clock;
  const std::vector<Op>& ops = program_->ops();
  for (std::size_t i = 0; i < ops.size(); ++i) {
    if (OpRunner::is_idle(ops[i], batch)) continue;
    if (op_seconds_.empty()) {
      runner_.run(ops[i], batch);
      continue;
    }
    const Clock::time_point start = Clock::now();
    runner_.run(ops[i], batch);
    op_seconds_[i] += std::chrono::duration<double>(Clock::now() - start).count();
  }
  return batch.num_logits_rows == 0 ? nullptr : static_cast<float*>(runner_.logits(batch.num_logits_rows).data);
}

void ProgramExecutor::set_profiling(bool enabled) { op_seconds_.assign(enabled ? program_->ops().size() : 0, 0.0); }

}  // namespace paged
