// SPDX-License-Identifier: Apache-2.0
// Runs a recorded program on the CPU's threads. Owns the arena of activations, the KV pool and the workspaces; all are
// allocated once, here, and freed with it. Not thread-safe: one thread runs it.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "cpu/thread_pool.h"
#include "exec/executor.h"
#include "exec/host_sampler.h"
#include "exec/op_runner.h"

namespace paged {

class ProgramExecutor final : public Executor {
 public:
  ProgramExecutor(std::shared_ptr<const Program> program, const KvPoolLimits& limits,
                  std::shared_ptr<ThreadPool> threads);

  std::int32_t vocab_size() const override { return program_->vocab_size(); }
  ExecutorLimits limits() const override;
  void launch(const StepInput& step) override;  // runs it to its end
  std::span<const std::int32_t> wait() override { return sampler_.token_ids(); }
  ExtraOutputs extra_outputs() const override { return sampler_.extra_outputs(); }
  KvBlocks* kv_blocks() override { return &kv_blocks_; }

  // The step's logits, [num_logits_rows, vocab_size], or null when there are none; valid until the next run.
  float* run(const BatchView& batch);

  // Seconds each op took since profiling was switched on, summed over the runs; empty while it is off.
  void set_profiling(bool enabled);
  const std::vector<double>& op_seconds() const { return op_seconds_; }

  std::int64_t kv_cache_bytes() const { return kv_pool_.num_bytes(); }
  std::int64_t workspace_bytes() const {
    return arena_.num_bytes() + attention_workspace_.num_bytes() + linear_workspace_.num_bytes();
  }

 private:
  OpBuffers buffers() const;

  std::shared_ptr<const Program> program_;
  KvPoolLimits kv_pool_limits_;
  std::shared_ptr<ThreadPool> threads_;
  HostSampler sampler_;
  AlignedBuffer arena_;
  AlignedBuffer kv_pool_;
  HostKvBlocks kv_blocks_;
  AlignedBuffer attention_workspace_;
  AlignedBuffer linear_workspace_;
  OpRunner runner_;
  std::vector<double> op_seconds_;
};

}  // namespace paged
