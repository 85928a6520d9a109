// SPDX-License-Identifier: Apache-2.0
// Runs a recorded program on the CPU's threads. Owns the arena of activations, the KV pool and the workspaces; all are
// allocated once, here, and freed with it. Not thread-safe: one thread runs it.
#pragma once

#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "cpu/thread_pool.h"
#include "exec/executor.h"
#include "exec/program.h"

namespace paged {

struct KvPoolLimits {
  std::int32_t max_seq_len = 0;
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
};

class ProgramExecutor final : public Executor {
 public:
  ProgramExecutor(std::shared_ptr<const Program> program, const KvPoolLimits& limits,
                  std::shared_ptr<ThreadPool> threads);

  std::int32_t vocab_size() const override { return program_->vocab_size(); }
  void copy_blocks(std::span<const std::int32_t> source, std::span<const std::int32_t> destination) override;
  const float* run(const BatchView& batch) override;

  // Seconds each op took since profiling was switched on, summed over the runs; empty while it is off.
  void set_profiling(bool enabled);
  const std::vector<double>& op_seconds() const { return op_seconds_; }

  std::int64_t kv_cache_bytes() const { return kv_pool_.num_bytes(); }
  std::int64_t workspace_bytes() const { return arena_.num_bytes() + attention_workspace_.num_bytes(); }

 private:
  void run_op(const Op& op, const BatchView& batch);
  void run_linear(const Op& op, const BatchView& batch);
  void run_attention(const Op& op, const BatchView& batch);
  void run_rope_store_kv(const Op& op, const BatchView& batch);
  MatrixView view(const Value& value, const BatchView& batch) const;
  KvCacheView cache(std::int32_t layer) const;
  RopeParams rope_params(const Op& op, const Value& input, const Value& output, const BatchView& batch) const;
  const float* vector_data(const Op& op) const { return op.vector < 0 ? nullptr : program_->vector(op.vector).data(); }

  std::shared_ptr<const Program> program_;
  KvPoolLimits kv_limits_;
  std::shared_ptr<ThreadPool> threads_;
  ExecutionContext context_;
  AlignedBuffer arena_;
  AlignedBuffer kv_pool_;
  AlignedBuffer attention_workspace_;
  std::vector<double> op_seconds_;
};

}  // namespace paged
