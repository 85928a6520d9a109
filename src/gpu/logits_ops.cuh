// SPDX-License-Identifier: Apache-2.0
// Edits of logits on a GPU, by the definition of cpu/logits_ops.cpp. A CTA does one row; edits that may meet in one
// logit are kept apart by barriers.
#pragma once

#include "gpu/gpu.h"
#include "ops/logits_ops.h"

namespace paged::gpu {
namespace {

constexpr int kEditThreads = 512;
constexpr float kForbidden = -__builtin_inff();

struct EditShared {
  float of_warp[kEditThreads / 32];
  int pending_was_counted;
};

__device__ __forceinline__ float penalised(float logit, const EditedRow& row, std::int32_t count) {
  logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
  logit -= row.frequency * static_cast<float>(count);
  return count > 0 ? logit - row.presence : logit;
}

// Everything but penalties and min_p.
__device__ __forceinline__ void forbid_and_bias(const EditLogitsParams& op, const EditedRow& row, float* logits,
                                                std::int32_t pending) {
  const int thread = static_cast<int>(threadIdx.x), vocab = static_cast<int>(op.logits.cols);
  if (row.mask >= 0) {
    const std::uint32_t* mask = op.masks + row.mask * mask_words(vocab);
    for (int id = thread; id < vocab; id += kEditThreads)
      if ((mask[id / 32] >> (id % 32) & 1u) == 0) logits[id] = kForbidden;
  }
  for (int i = thread; i < row.num_bans; i += kEditThreads) {
    const LogitBan ban = op.bans[row.first_ban + i];
    if (ban.after < 0 || ban.after == pending) logits[ban.id] = kForbidden;
  }
  __syncthreads();
  for (int i = thread; i < row.num_biases; i += kEditThreads) {
    const LogitBias bias = op.biases[row.first_bias + i];
    logits[bias.id] += bias.bias;
  }
  __syncthreads();
}

__device__ __forceinline__ void penalise(const EditLogitsParams& op, const EditedRow& row, float* logits,
                                         std::int32_t pending, EditShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) shared.pending_was_counted = pending < 0 ? 1 : 0;
  __syncthreads();
  for (int i = thread; i < row.num_counts; i += kEditThreads) {
    const TokenCount token = op.counts[row.first_count + i];
    const bool once_more = token.id == pending;
    logits[token.id] = penalised(logits[token.id], row, token.count + (once_more ? 1 : 0));
    if (once_more) shared.pending_was_counted = 1;
  }
  __syncthreads();
  if (thread == 0 && shared.pending_was_counted == 0) logits[pending] = penalised(logits[pending], row, 1);
  __syncthreads();
}

__device__ __forceinline__ void drop_unlikely(const EditLogitsParams& op, const EditedRow& row, float* logits,
                                              EditShared& shared) {
  const int thread = static_cast<int>(threadIdx.x), vocab = static_cast<int>(op.logits.cols);
  float largest = kForbidden;
  for (int id = thread; id < vocab; id += kEditThreads) largest = fmaxf(largest, logits[id]);
  largest = warp_max(largest);
  if (thread % kWarp == 0) shared.of_warp[thread / kWarp] = largest;
  __syncthreads();
  for (int warp = 0; warp < kEditThreads / kWarp; ++warp) largest = fmaxf(largest, shared.of_warp[warp]);
  const float least = largest - row.min_p_gap;
  for (int id = thread; id < vocab; id += kEditThreads)
    if (logits[id] < least) logits[id] = kForbidden;
}

__global__ void __launch_bounds__(kEditThreads) edit_logits_kernel(const EditLogitsParams op) {
  __shared__ EditShared shared;
  release_dependents();
  wait_for_predecessors();
  const EditedRow row = op.rows[blockIdx.x];
  float* logits = static_cast<float*>(op.logits.data) + row.row * op.logits.row_stride;
  const std::int32_t pending = row.pending_row < 0 ? -1 : op.last_tokens[row.pending_row];
  forbid_and_bias(op, row, logits, pending);
  if (row.repetition != 1.0f || row.presence != 0.0f || row.frequency != 0.0f)
    penalise(op, row, logits, pending, shared);
  if (row.min_p_gap >= 0.0f) drop_unlikely(op, row, logits, shared);
}

}  // namespace

void edit_logits(const ExecutionContext& context, const EditLogitsParams& params) {
  launch(edit_logits_kernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kEditThreads), 0,
         static_cast<Stream>(context.gpu->stream), params);
}

}  // namespace paged::gpu
