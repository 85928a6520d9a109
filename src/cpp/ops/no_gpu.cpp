// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"
#include "ops/gpu_ops.h"
#include "ops/logits_ops.h"

namespace paged::gpu {
namespace {

[[noreturn]] void no_gpu(const char* op) {
  detail::throw_invalid_argument(op, ": built without a GPU backend; reinstall with PAGED_GPU=cuda or hip");
}

}  // namespace

void embedding(const ExecutionContext&, const EmbeddingParams&) { no_gpu("embedding"); }
void linear(const ExecutionContext&, const LinearParams&) { no_gpu("linear"); }
void gated_linear(const ExecutionContext&, const GatedLinearParams&) { no_gpu("gated_linear"); }
void rms_norm(const ExecutionContext&, const RmsNormParams&) { no_gpu("rms_norm"); }
void add_rms_norm(const ExecutionContext&, const AddRmsNormParams&) { no_gpu("add_rms_norm"); }
void add(const ExecutionContext&, const AddParams&) { no_gpu("add"); }
void rope(const ExecutionContext&, const RopeParams&) { no_gpu("rope"); }
void store_kv(const ExecutionContext&, const StoreKvParams&) { no_gpu("store_kv"); }
void rope_store_kv(const ExecutionContext&, const RopeStoreKvParams&) { no_gpu("rope_store_kv"); }
void plan_attention(const ExecutionContext&, const AttentionPlanParams&) { no_gpu("plan_attention"); }
void attention(const ExecutionContext&, const AttentionParams&) { no_gpu("attention"); }
void gated_activation(const ExecutionContext&, const GatedActivationParams&) { no_gpu("gated_activation"); }
void gather_rows(const ExecutionContext&, const GatherRowsParams&) { no_gpu("gather_rows"); }
void softcap(const ExecutionContext&, const SoftcapParams&) { no_gpu("softcap"); }
void sample(const ExecutionContext&, const SampleParams&) { no_gpu("sample"); }
void edit_logits(const ExecutionContext&, const EditLogitsParams&) { no_gpu("edit_logits"); }
void score_logits(const ExecutionContext&, const ScoreLogitsParams&) { no_gpu("score_logits"); }
void copy_blocks(const ExecutionContext&, const CopyBlocksParams&) { no_gpu("copy_blocks"); }
void begin_step(const ExecutionContext&, const BeginStepParams&) { no_gpu("begin_step"); }
void end_step(const ExecutionContext&, const EndStepParams&) { no_gpu("end_step"); }

std::int64_t attention_plan_bytes(const GpuContext&, const AttentionLimits&) { no_gpu("attention_plan_bytes"); }
std::int64_t attention_workspace_bytes(const GpuContext&, const AttentionLimits&) { no_gpu("attention"); }
std::int64_t sample_workspace_bytes(const GpuContext&, std::int64_t, std::int64_t) { no_gpu("sample"); }

WeightMatrixPtr upload_matrix(std::span<const WeightSource>, DType, ThreadPool&) { no_gpu("upload_matrix"); }

}  // namespace paged::gpu
