// SPDX-License-Identifier: Apache-2.0
// The GPU's side of ops.h: shapes are already checked. Without a GPU backend no_gpu.cpp implements these by throwing.
#pragma once

#include <span>

#include "ops/ops.h"

namespace paged::gpu {

void embedding(const ExecutionContext& context, const EmbeddingParams& params);
void linear(const ExecutionContext& context, const LinearParams& params);
void gated_linear(const ExecutionContext& context, const GatedLinearParams& params);
void rms_norm(const ExecutionContext& context, const RmsNormParams& params);
void add_rms_norm(const ExecutionContext& context, const AddRmsNormParams& params);
void add(const ExecutionContext& context, const AddParams& params);
void rope(const ExecutionContext& context, const RopeParams& params);
void store_kv(const ExecutionContext& context, const StoreKvParams& params);
void rope_store_kv(const ExecutionContext& context, const RopeStoreKvParams& params);
void plan_attention(const ExecutionContext& context, const AttentionPlanParams& params);
void attention(const ExecutionContext& context, const AttentionParams& params);
void gated_activation(const ExecutionContext& context, const GatedActivationParams& params);
void gather_rows(const ExecutionContext& context, const GatherRowsParams& params);
void softcap(const ExecutionContext& context, const SoftcapParams& params);
void sample(const ExecutionContext& context, const SampleParams& params);
void copy_blocks(const ExecutionContext& context, const CopyBlocksParams& params);

// A step's inputs reach the device, before all other ops of the step. The host wrote them for steps of even and of odd
// number in turn; offsets are bytes from there.
struct BeginStepParams {
  const std::byte* staging[2];     // what a kernel can read: page-locked memory, 16-byte aligned
  const std::uint32_t* num_steps;  // ended so far
  std::byte* inputs;               // [num_bytes] out: a copy of the staging
  std::int64_t num_bytes;          // a multiple of 16
  std::int64_t staged_token_ids;   // int32 [num_tokens] -1 - row: what the sequence in that row sampled last
  std::int64_t num_table_changes;  // int32
  std::int64_t table_changes;      // int32 [2 * num_table_changes] flat index into block_tables, then its new value
  std::int32_t num_tokens;
  const std::int32_t* last_tokens;  // [max_sequences] by row
  std::int32_t* token_ids;          // [num_tokens] out
  std::int32_t* block_tables;
};
void begin_step(const ExecutionContext& context, const BeginStepParams& params);

// The step's sampled tokens reach the host; the last op of a step.
struct EndStepParams {
  const std::int32_t* sampled;  // [num_sampled]
  std::int32_t num_sampled;
  std::int32_t* results[2];  // page-locked, for steps of even and of odd number
  std::uint32_t* num_steps;  // one more afterwards
  std::uint32_t* finished;   // page-locked; becomes num_steps once the tokens are there
};
void end_step(const ExecutionContext& context, const EndStepParams& params);

std::int64_t attention_plan_bytes(const GpuContext& gpu, const AttentionLimits& limits);
std::int64_t attention_workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits);
std::int64_t sample_workspace_bytes(const GpuContext& gpu, std::int64_t max_rows, std::int64_t vocab_size);

// Stacks the sources, of one width, into one row-major matrix [sum of rows, cols] of `dtype` on the current device.
// Quantised and other types are converted on the way (exactly the checkpoint's own dequantisation, then rounded).
WeightMatrixPtr upload_matrix(std::span<const WeightSource> sources, DType dtype, ThreadPool& threads);

}  // namespace paged::gpu
