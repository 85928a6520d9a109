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

// Brings the device's copies of a step's inputs up to date, before all other ops of the step. All pointers are the
// device's; the staging was written by the host for this step.
struct BeginStepParams {
  const std::int32_t* staged_token_ids;  // [num_tokens] -1 - row: what the sequence in that row sampled last
  const std::int32_t* last_tokens;       // [max_sequences] by row
  std::int32_t num_tokens;
  std::int32_t* token_ids;            // [num_tokens] out
  const std::int32_t* table_changes;  // [2 * *num_table_changes] flat index into block_tables, then its new value
  const std::int32_t* num_table_changes;
  std::int32_t* block_tables;
};
void begin_step(const ExecutionContext& context, const BeginStepParams& params);

std::int64_t attention_plan_bytes(const GpuContext& gpu, const AttentionLimits& limits);
std::int64_t attention_workspace_bytes(const GpuContext& gpu, const AttentionLimits& limits);
std::int64_t sample_workspace_bytes(const GpuContext& gpu, std::int64_t max_rows, std::int64_t vocab_size);

// Stacks the sources, of one width, into one row-major matrix [sum of rows, cols] of `dtype` on the current device.
// Quantised and other types are converted on the way (exactly the checkpoint's own dequantisation, then rounded).
WeightMatrixPtr upload_matrix(std::span<const WeightSource> sources, DType dtype, ThreadPool& threads);

}  // namespace paged::gpu
