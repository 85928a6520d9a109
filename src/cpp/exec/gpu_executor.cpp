// SPDX-License-Identifier: Apache-2.0
#include "exec/gpu_executor.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "ops/gpu_ops.h"

namespace paged {
namespace {

// Larger batches run without a graph: their kernels are long enough to hide their launches.
constexpr std::int32_t kMaxBucket = 512;
constexpr std::int64_t kPieceAlignment = 256;

std::int64_t aligned(std::int64_t bytes) { return (bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment; }

std::vector<std::int32_t> bucket_sizes(std::int32_t max_num_sequences) {
  std::vector<std::int32_t> sizes;
  const std::int32_t largest = std::min(max_num_sequences, kMaxBucket);
  for (std::int32_t size = 1; size < largest; size += size < 4 ? size : size < 32 ? 4 : size < 128 ? 8 : 16)
    sizes.push_back(size);
  sizes.push_back(largest);
  return sizes;
}

template <typename T>
T* as(const gpu::DeviceBuffer& buffer) {
  return reinterpret_cast<T*>(buffer.data());
}

std::int64_t ints(std::int64_t count) { return count * std::int64_t{sizeof(std::int32_t)}; }

std::int32_t blocks_per_sequence(const KvPoolLimits& limits) {
  const std::int64_t tokens =
      std::min(std::int64_t{limits.max_seq_len}, std::int64_t{limits.num_blocks} * limits.block_size);
  return static_cast<std::int32_t>((tokens + limits.block_size - 1) / limits.block_size);
}

}  // namespace

GpuExecutor::Slot::Slot(const StagingLimits& limits)
    : inputs(GpuStaging::max_bytes(limits)), staging(limits, inputs.data()), sampled(ints(limits.max_sequences)) {}

std::unique_ptr<GpuExecutor> GpuExecutor::make(std::shared_ptr<const Program> program,
                                               const GpuExecutorOptions& options) {
  PAGED_CHECK(program->kv_cache().dtype != DType::kInt8, "a GPU has no int8 KV cache: keep keys and values as floats");
  const gpu::UseDevice scope(options.device);
  return std::unique_ptr<GpuExecutor>(new GpuExecutor(std::move(program), options));
}

GpuExecutor::GpuExecutor(std::shared_ptr<const Program> program, const GpuExecutorOptions& options)
    : program_(std::move(program)),
      options_(options),
      attention_limits_{{max_num_heads(*program_), program_->kv_cache().num_kv_heads, program_->kv_cache().head_dim,
                         options.kv_pool.block_size, program_->kv_cache().dtype},
                        program_->arena().max_tokens,
                        options.max_num_sequences,
                        options.kv_pool.max_seq_len},
      blas_(gpu::Blas::load(options.blas_folders, &blas_problem_)),
      scratch_(GpuContext::kScratchBytes),
      counters_(GpuContext::kCounters * std::int64_t{sizeof(std::uint32_t)}),
      gpu_(make_context()),
      context_{Device::kGpu, nullptr, &gpu_},
      arena_(program_->arena().num_bytes),
      kv_pool_(kv_pool_bytes(program_->kv_cache(), options.kv_pool)),
      attention_plans_(aligned(gpu::attention_plan_bytes(gpu_, attention_limits_)) *
                       std::ssize(attention_windows(*program_))),
      attention_workspace_(gpu::attention_workspace_bytes(gpu_, attention_limits_)),
      sample_workspace_(gpu::sample_workspace_bytes(gpu_, program_->arena().max_logits_rows, program_->vocab_size())),
      inputs_(GpuStaging::max_bytes(staging_limits())),
      token_ids_(ints(program_->arena().max_tokens)),
      block_tables_(ints(std::int64_t{options.max_num_sequences} * blocks_per_sequence(options.kv_pool))),
      last_tokens_(ints(std::int64_t{options.max_num_sequences} + 1)),
      sampled_(ints(options.max_num_sequences)),
      num_steps_(sizeof(std::uint32_t)),
      kv_blocks_(kv_pool_span(kv_pool_.data(), program_->kv_cache(), options.kv_pool), options.device),
      runner_(*program_, options.kv_pool, context_, buffers()),
      slots_{Slot(staging_limits()), Slot(staging_limits())},
      finished_(sizeof(std::uint32_t)) {
  for (std::int32_t size : bucket_sizes(std::min(options.max_num_sequences, program_->arena().max_logits_rows)))
    buckets_.push_back({size, {}, {}});
  gpu::fill_zero(counters_.data(), counters_.num_bytes(), stream_.handle());
  gpu::fill_zero(block_tables_.data(), block_tables_.num_bytes(), stream_.handle());
  gpu::fill_zero(last_tokens_.data(), last_tokens_.num_bytes(), stream_.handle());
  std::memset(finished_.data(), 0, sizeof(std::uint32_t));
  gpu::fill_zero(num_steps_.data(), num_steps_.num_bytes(), stream_.handle());
  stream_.synchronize();
}

GpuExecutor::~GpuExecutor() {
  try {
    stream_.synchronize();  // steps that nobody awaited still use the buffers
  } catch (const gpu::DeviceError&) {
    // The device has failed; whoever waited for a step was told.
  }
}

GpuContext GpuExecutor::make_context() {
  const gpu::DeviceProperties properties = gpu::device_properties(options_.device);
  return {.stream = stream_.handle(),
          .compute_capability = properties.compute_capability,
          .num_multiprocessors = properties.num_multiprocessors,
          .batch_invariant = options_.batch_invariant,
          .scratch = scratch_.data(),
          .scratch_bytes = scratch_.num_bytes(),
          .counters = as<std::uint32_t>(counters_),
          .blas = blas_.get()};
}

ExecutorLimits GpuExecutor::limits() const {
  const KvPoolLimits& pool = options_.kv_pool;
  return {pool.num_blocks, pool.block_size, pool.max_seq_len, program_->arena().max_tokens, options_.max_num_sequences};
}

StagingLimits GpuExecutor::staging_limits() const {
  return {program_->arena().max_tokens, options_.max_num_sequences, blocks_per_sequence(options_.kv_pool)};
}

OpBuffers GpuExecutor::buffers() {
  upload_vectors();
  OpBuffers buffers{arena_.data(), kv_pool_.data(), attention_workspace_.data()};
  std::int64_t offset = 0;
  for (const std::vector<float>& vector : program_->vectors()) {
    buffers.vectors.push_back(reinterpret_cast<const float*>(vectors_.data() + offset));
    offset += aligned(std::ssize(vector) * std::int64_t{sizeof(float)});
  }
  buffers.attention_limits = &attention_limits_;
  std::byte* plan = attention_plans_.data();
  for (std::int32_t window : attention_windows(*program_)) {
    buffers.attention_plans.emplace_back(window, plan);
    plan += aligned(gpu::attention_plan_bytes(gpu_, attention_limits_));
  }
  return buffers;
}

void GpuExecutor::upload_vectors() {
  std::int64_t total = 0;
  for (const std::vector<float>& vector : program_->vectors())
    total += aligned(std::ssize(vector) * std::int64_t{sizeof(float)});
  vectors_ = gpu::DeviceBuffer(total);
  std::int64_t offset = 0;
  for (const std::vector<float>& vector : program_->vectors()) {
    const std::int64_t bytes = std::ssize(vector) * std::int64_t{sizeof(float)};
    gpu::copy_to_device(vectors_.data() + offset, vector.data(), bytes, stream_.handle());
    offset += aligned(bytes);
  }
  stream_.synchronize();
}

std::int64_t GpuExecutor::workspace_bytes() const {
  std::int64_t total = 0;
  for (const gpu::DeviceBuffer* buffer :
       {&scratch_, &counters_, &arena_, &attention_plans_, &attention_workspace_, &sample_workspace_, &inputs_,
        &token_ids_, &block_tables_, &last_tokens_, &sampled_, &num_steps_})
    total += buffer->num_bytes();
  return total + extras_.num_bytes();
}

// Null where the step is no plain decode step.
GpuExecutor::Bucket* GpuExecutor::bucket_for(const StepInput& step) {
  const BatchView& batch = step.batch;
  const bool decodes = batch.num_decodes == batch.num_sequences && batch.num_tokens == batch.num_sequences &&
                       batch.num_logits_rows == batch.num_sequences;
  if (!decodes || !step.copy_sources.empty() || !op_seconds_.empty()) return nullptr;
  const auto found = std::lower_bound(buckets_.begin(), buckets_.end(), batch.num_sequences,
                                      [](const Bucket& bucket, std::int32_t size) { return bucket.size < size; });
  return found == buckets_.end() ? nullptr : &*found;
}

void GpuExecutor::launch(const StepInput& step) {
  PAGED_INVARIANT(num_launched_ - num_awaited_ < kSlots, "a third step was launched before the first was awaited");
  const gpu::UseDevice scope(options_.device);
  Slot& slot = slots_[static_cast<std::size_t>(slot_of(num_launched_))];
  Bucket* bucket = bucket_for(step);
  const BatchView batch = stage(step, bucket == nullptr ? 0 : bucket->size);
  if (step.extras == nullptr) {
    record_or_run(bucket == nullptr ? nullptr : &bucket->step, [&] {
      enqueue_ops(batch);
      enqueue_end(batch);
    });
  } else {
    record_or_run(bucket == nullptr ? nullptr : &bucket->logits, [&] { enqueue_ops(batch); });
    const GpuExtras::Step extras{slot_of(num_launched_), step.extras, runner_.logits(batch.num_logits_rows),
                                 as<std::int32_t>(last_tokens_), as<std::int32_t>(sampled_)};
    extras_.enqueue_before(context_, extras);
    enqueue_end(batch);
    extras_.enqueue_after(context_, extras);
  }
  slot.num_sampled = step.batch.num_logits_rows;
  if (bucket == nullptr || bucket != last_bucket_ || step.extras != nullptr) num_alike_ = 0;
  last_bucket_ = bucket;
  slot.is_like_others = ++num_alike_ > 2;
  if (!slot.is_like_others) slot.done.record(stream_.handle());
  ++num_launched_;
}

template <class Body>
void GpuExecutor::record_or_run(Recording* recording, Body&& body) {
  if (recording == nullptr || recording->state == GraphState::kUnmet) {
    body();
    if (recording != nullptr) recording->state = GraphState::kMet;
    return;
  }
  if (recording->state == GraphState::kMet) {
    recording->graph = gpu::Graph::capture(stream_.handle(), body);
    recording->state = GraphState::kRecorded;
  }
  recording->graph.launch(stream_.handle());
}

// Writes the inputs where the step will fetch them and copies blocks; what follows depends on nothing that a graph
// cannot hold.
BatchView GpuExecutor::stage(const StepInput& step, std::int32_t padded) {
  GpuStaging& staging = slots_[static_cast<std::size_t>(slot_of(num_launched_))].staging;
  BatchView batch = staging.write(step, padded, inputs_.data());
  batch.token_ids = as<std::int32_t>(token_ids_);
  batch.block_tables = as<std::int32_t>(block_tables_);
  runner_.check_size(batch);
  const auto num_copies = static_cast<std::int32_t>(step.copy_sources.size());
  if (num_copies == 0) return batch;
  const std::int64_t at = staging.copies_offset();
  gpu::copy_to_device(inputs_.data() + at, staging.data() + at, 2 * ints(num_copies), stream_.handle());
  const auto* copies = reinterpret_cast<const std::int32_t*>(staged(at));
  runner_.copy_blocks(copies, copies + num_copies, num_copies);
  return batch;
}

void GpuExecutor::begin_step(const BatchView& batch) {
  const StagingLayout layout(batch.num_tokens, batch.num_sequences, batch.num_logits_rows);
  gpu::begin_step(context_, {.staging = {slots_[0].staging.data(), slots_[1].staging.data()},
                             .num_steps = as<std::uint32_t>(num_steps_),
                             .inputs = inputs_.data(),
                             .num_bytes = layout.num_table_changes,
                             .staged_token_ids = layout.token_ids,
                             .num_table_changes = layout.num_table_changes,
                             .table_changes = layout.table_changes,
                             .num_tokens = batch.num_tokens,
                             .last_tokens = as<std::int32_t>(last_tokens_),
                             .token_ids = as<std::int32_t>(token_ids_),
                             .block_tables = as<std::int32_t>(block_tables_)});
}

void GpuExecutor::enqueue_ops(const BatchView& batch) {
  begin_step(batch);
  for (const auto& [window, plan] : runner_.attention_plans())
    gpu::plan_attention(context_, {&batch, &attention_limits_, window, plan});
  if (!op_seconds_.empty()) return profile_ops(batch);
  for (const Op& op : program_->ops())
    if (!OpRunner::is_idle(op, batch)) runner_.run(op, batch);
}

void GpuExecutor::enqueue_end(const BatchView& batch) {
  const StagingLayout layout(batch.num_tokens, batch.num_sequences, batch.num_logits_rows);
  if (batch.num_logits_rows > 0)
    ops::sample(context_, {runner_.logits(batch.num_logits_rows),
                           reinterpret_cast<const SamplingRow*>(staged(layout.sampling)), sample_workspace_.data(),
                           as<std::int32_t>(sampled_), batch.sampled_table_rows, as<std::int32_t>(last_tokens_)});
  const auto results = [&](std::size_t slot) { return reinterpret_cast<std::int32_t*>(slots_[slot].sampled.data()); };
  gpu::end_step(context_, {as<std::int32_t>(sampled_),
                           batch.num_logits_rows,
                           {results(0), results(1)},
                           as<std::uint32_t>(num_steps_),
                           reinterpret_cast<std::uint32_t*>(finished_.data())});
}

void GpuExecutor::profile_ops(const BatchView& batch) {
  const std::vector<Op>& ops = program_->ops();
  std::vector<std::unique_ptr<gpu::Event>> events;
  const auto mark = [&] {
    events.push_back(std::make_unique<gpu::Event>(true));
    events.back()->record(stream_.handle());
  };
  mark();
  for (const Op& op : ops) {
    if (!OpRunner::is_idle(op, batch)) runner_.run(op, batch);
    mark();
  }
  stream_.synchronize();
  for (std::size_t i = 0; i < ops.size(); ++i) op_seconds_[i] += events[i + 1]->seconds_since(*events[i]);
}

std::span<const std::int32_t> GpuExecutor::wait() {
  PAGED_INVARIANT(num_awaited_ < num_launched_, "wait() without a launched step");
  Slot& slot = slots_[static_cast<std::size_t>(slot_of(num_awaited_++))];
  const auto awaited = static_cast<std::uint32_t>(num_awaited_);
  auto& finished = *reinterpret_cast<std::uint32_t*>(finished_.data());
  const auto is_done = [&] {
    return static_cast<std::int32_t>(std::atomic_ref(finished).load(std::memory_order_acquire) - awaited) >= 0;
  };
  if (slot.is_like_others && waiter_.wait(is_done))
    return {reinterpret_cast<const std::int32_t*>(slot.sampled.data()), static_cast<std::size_t>(slot.num_sampled)};
  if (slot.is_like_others)
    stream_.synchronize();  // throws if the device has failed
  else
    slot.done.synchronize();
  waiter_.note_end();
  return {reinterpret_cast<const std::int32_t*>(slot.sampled.data()), static_cast<std::size_t>(slot.num_sampled)};
}

std::vector<float> GpuExecutor::run(const BatchView& batch) {
  PAGED_INVARIANT(num_awaited_ == num_launched_, "run() while steps are in flight");
  const std::int32_t max_entries = options_.max_num_sequences * blocks_per_sequence(options_.kv_pool);
  const std::int32_t num_entries = batch.num_sequences * batch.block_table_stride;
  PAGED_CHECK(batch.num_sequences <= options_.max_num_sequences && num_entries <= max_entries, "block tables of ",
              batch.num_sequences, " x ", batch.block_table_stride, " entries; the executor holds ",
              options_.max_num_sequences, " sequences and ", max_entries, " entries");
  std::vector<std::int32_t> entries(static_cast<std::size_t>(num_entries));
  for (std::int32_t i = 0; i < num_entries; ++i) entries[static_cast<std::size_t>(i)] = i;
  const gpu::UseDevice scope(options_.device);
  const BatchView on_device = stage({batch, entries, {}, {}, {}}, 0);
  enqueue_ops(on_device);
  const MatrixView logits = runner_.logits(batch.num_logits_rows);
  std::vector<float> values(static_cast<std::size_t>(logits.rows * logits.cols));
  gpu::copy_to_host(values.data(), logits.data, std::ssize(values) * std::int64_t{sizeof(float)}, stream_.handle());
  stream_.synchronize();
  return values;
}

void GpuExecutor::set_profiling(bool enabled) { op_seconds_.assign(enabled ? program_->ops().size() : 0, 0.0); }

}  // namespace paged
