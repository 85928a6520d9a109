// SPDX-License-Identifier: Apache-2.0
// Runs a recorded program on a GPU, on a stream of its own, one step ahead of the host: while a step runs the next one
// is already queued behind it. Sampled tokens stay on the device and feed the next step; the host learns them late.
//
// A step in which every sequence decodes is one graph launch: one graph for each batch bucket, recorded when the bucket
// is first met for the second time (the first one runs plainly, so that whatever a library or the driver sets up on
// first use happens outside of a recording). Where rows have extras the graph ends with the logits, and what follows is
// launched as it is asked for. All other steps launch their kernels one by one.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"
#include "exec/executor.h"
#include "exec/gpu_extras.h"
#include "exec/gpu_staging.h"
#include "exec/op_runner.h"
#include "exec/step_waiter.h"
#include "gpu/blas.h"
#include "gpu/runtime.h"

namespace paged {

struct GpuExecutorOptions {
  KvPoolLimits kv_pool;
  std::int32_t max_num_sequences = 0;
  int device = 0;
  bool batch_invariant = false;
  std::vector<std::string> blas_folders;  // where the vendor's GEMM library may lie
};

class GpuExecutor final : public Executor {
 public:
  // The program's matrices lie on the device already. Throws gpu::DeviceError when memory is short.
  static std::unique_ptr<GpuExecutor> make(std::shared_ptr<const Program> program, const GpuExecutorOptions& options);
  ~GpuExecutor() override;

  std::int32_t vocab_size() const override { return program_->vocab_size(); }
  ExecutorLimits limits() const override;
  std::int32_t max_steps_in_flight() const override { return kSlots; }
  void launch(const StepInput& step) override;
  std::span<const std::int32_t> wait() override;
  ExtraOutputs extra_outputs() const override { return extras_.outputs(slot_of(num_awaited_ - 1)); }

  KvBlocks* kv_blocks() override { return &kv_blocks_; }

  // One step over a batch in host memory, for tests: its logits, [num_logits_rows, vocab_size].
  std::vector<float> run(const BatchView& batch);

  // Seconds each op took since profiling was switched on, summed over the steps, measured on the device; such steps run
  // without graphs. Empty while it is off.
  void set_profiling(bool enabled);
  const std::vector<double>& op_seconds() const { return op_seconds_; }

  std::int64_t kv_cache_bytes() const { return kv_pool_.num_bytes(); }
  std::int64_t workspace_bytes() const;
  const std::string& blas_problem() const { return blas_problem_; }  // why there is no GEMM library; empty if there is

 private:
  static constexpr int kSlots = 2;

  GpuExecutor(std::shared_ptr<const Program> program, const GpuExecutorOptions& options);  // on the current device

  // What one step in flight has of its own.
  struct Slot {
    explicit Slot(const StagingLimits& limits);
    gpu::PinnedBuffer inputs;
    GpuStaging staging;         // in `inputs`
    gpu::PinnedBuffer sampled;  // int32 [max_sequences]
    std::int32_t num_sampled = 0;
    bool is_like_others = false;  // the two steps before: likely to take as long. Else `done` is recorded.
    gpu::Event done{};
  };
  enum class GraphState : std::uint8_t { kUnmet, kMet, kRecorded };
  struct Recording {
    GraphState state = GraphState::kUnmet;
    gpu::Graph graph;
  };
  struct Bucket {
    std::int32_t size = 0;
    Recording step;    // all of it
    Recording logits;  // up to the logits
  };

  GpuContext make_context();
  OpBuffers buffers();
  StagingLimits staging_limits() const;
  void begin_step(const BatchView& batch);
  void upload_vectors();
  Bucket* bucket_for(const StepInput& step);
  BatchView stage(const StepInput& step, std::int32_t padded);
  static int slot_of(std::int64_t launch) { return static_cast<int>(launch % kSlots); }
  template <class Body>
  void record_or_run(Recording* recording, Body&& body);
  void enqueue_ops(const BatchView& batch);
  void enqueue_end(const BatchView& batch);  // what follows the logits
  void profile_ops(const BatchView& batch);
  const std::byte* staged(std::int64_t offset) const { return inputs_.data() + offset; }

  std::shared_ptr<const Program> program_;
  GpuExecutorOptions options_;
  AttentionLimits attention_limits_;
  std::string blas_problem_;
  std::unique_ptr<gpu::Blas> blas_;
  gpu::OwnedStream stream_;
  gpu::DeviceBuffer scratch_, counters_;
  GpuContext gpu_;
  ExecutionContext context_;
  gpu::DeviceBuffer arena_, kv_pool_, vectors_, attention_plans_, attention_workspace_, sample_workspace_;
  // The step's inputs, and what is made of them or outlives a step.
  gpu::DeviceBuffer inputs_, token_ids_, block_tables_, last_tokens_, sampled_, num_steps_;
  GpuKvBlocks kv_blocks_;
  OpRunner runner_;
  std::array<Slot, kSlots> slots_;
  GpuExtras extras_;
  std::int64_t num_launched_ = 0, num_awaited_ = 0;
  gpu::PinnedBuffer finished_;           // one word: how many steps the device has finished
  const Bucket* last_bucket_ = nullptr;  // of the step launched last, and how many steps have had it in a row
  int num_alike_ = 0;
  StepWaiter waiter_;
  std::vector<Bucket> buckets_;  // ascending
  std::vector<double> op_seconds_;
};

}  // namespace paged
