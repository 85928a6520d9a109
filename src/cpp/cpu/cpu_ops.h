// SPDX-License-Identifier: Apache-2.0
// The CPU's side of ops.h: shapes are already checked. These functions cut an op into items and give them to the pool;
// the kernels of the running instruction set do the rest. Nothing is allocated.
#pragma once

#include "cpu/thread_pool.h"
#include "ops/ops.h"

namespace paged::cpu {

void embedding(ThreadPool& threads, const EmbeddingParams& params);
void linear(ThreadPool& threads, const LinearParams& params);
void gated_linear(ThreadPool& threads, const GatedLinearParams& params);
void rms_norm(ThreadPool& threads, const RmsNormParams& params);
void add_rms_norm(ThreadPool& threads, const AddRmsNormParams& params);
void add(ThreadPool& threads, const AddParams& params);
void rope(ThreadPool& threads, const RopeParams& params);
void store_kv(ThreadPool& threads, const StoreKvParams& params);
void rope_store_kv(ThreadPool& threads, const RopeStoreKvParams& params);
void attention(ThreadPool& threads, const AttentionParams& params);
void gated_activation(ThreadPool& threads, const GatedActivationParams& params);
void gather_rows(ThreadPool& threads, const GatherRowsParams& params);
void softcap(ThreadPool& threads, const SoftcapParams& params);
void sample(ThreadPool& threads, const SampleParams& params);
// The smallest logit that sampling keeps of a row that is a distribution; the workspace is one thread's.
float least_kept_logit(const float* logits, std::int64_t vocab_size, const SamplingRow& how, void* workspace);
void copy_blocks(ThreadPool& threads, const CopyBlocksParams& params);

std::int64_t linear_workspace_bytes(std::int64_t max_rows, std::int64_t max_cols, int num_threads);
std::int64_t attention_workspace_bytes(int max_tokens, int num_heads, int head_dim, int max_seq_len);
std::int64_t sample_workspace_bytes(int num_threads, std::int64_t vocab_size);

}  // namespace paged::cpu
