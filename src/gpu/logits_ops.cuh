// SPDX-License-Identifier: Apache-2.0
// Edits of logits and log-probabilities on a GPU, by the definitions of cpu/logits_ops.cpp. A CTA does one row; edits
// that may meet in one logit are kept apart by barriers. Masses are integers, as the sampler's are (sample_row.cuh), so
// that no sum depends on its order.
#pragma once

#include "gpu/gpu.h"
#include "gpu/sample_row.cuh"
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

// One row to be scored. A thread's share are the ids congruent to it.
struct ScoreRow {
  const float* logits;
  int vocab;
  RowPlan plan;
  float largest;
  std::uint32_t least;  // as ordered, of the logits that are kept

  __device__ __forceinline__ bool keeps(float logit) const { return ordered(logit) >= least; }
  // Falls with the logit, then rises with the id; what is cut off counts as -infinity.
  __device__ __forceinline__ Word place(int id) const {
    const std::uint32_t key = keeps(logits[id]) ? ordered(logits[id]) : ordered(kForbidden);
    return static_cast<Word>(key) << 32 | ~static_cast<std::uint32_t>(id);
  }
  // Of the whole row, what measure(logit) adds up to.
  template <class Measure>
  __device__ __forceinline__ Word sum(Block& block, Measure&& measure) const {
    Word own = 0;
    for (int id = static_cast<int>(threadIdx.x); id < vocab; id += kSampleThreads) own += measure(logits[id]);
    return block.sum(own);
  }
  __device__ __forceinline__ Word mass(float logit) const { return mass_of(logit, largest, plan.inverse); }
};

__device__ __forceinline__ Word larger_of(Word a, Word b) { return a > b ? a : b; }

// First the k largest, then the nucleus of those: bit by bit the largest number that logits enough are not below.
__device__ __forceinline__ std::uint32_t least_kept(const ScoreRow& row, Block& block) {
  std::uint32_t least = 0;
  for (int cut = 0; cut < 2; ++cut) {
    const bool by_count = cut == 0;
    if (by_count ? row.plan.top_k == 0 : !(row.plan.top_p < 1.0f)) continue;
    const auto from = [&](std::uint32_t trial) {
      return row.sum(block, [&](float logit) {
        return ordered(logit) < trial ? Word{0} : by_count ? Word{1} : row.mass(logit);
      });
    };
    const Word wanted = by_count ? static_cast<Word>(row.plan.top_k)
                                 : wanted_mass(static_cast<double>(row.plan.top_p), static_cast<double>(from(least)));
    std::uint32_t found = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
      if (from(found | bit) >= wanted) found |= bit;
    if (found > least) least = found;
  }
  return least;
}

// The best of one thread's share below `limit`, found by that thread's whole warp.
__device__ __forceinline__ Word best_of_share(const ScoreRow& row, int owner, Word limit) {
  Word best = 0;
  for (int id = owner + static_cast<int>(threadIdx.x) % kWarp * kSampleThreads; id < row.vocab;
       id += kWarp * kSampleThreads) {
    const Word place = row.place(id);
    if (place < limit) best = larger_of(best, place);
  }
  for (int mask = kWarp / 2; mask > 0; mask >>= 1) best = larger_of(best, shuffle_xor(best, mask));
  return best;
}

__device__ __forceinline__ void find_top(const ScoreRow& row, ScoredToken* top, int num_top, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  Word own = 0;
  for (int id = thread; id < row.vocab; id += kSampleThreads) own = larger_of(own, row.place(id));
  for (int i = 0; i < num_top; ++i) {
    const Word best = block.largest(own);
    const int id = static_cast<int>(~static_cast<std::uint32_t>(best)), owner = id % kSampleThreads;
    if (thread == 0) top[i] = {id, i + 1, row.keeps(row.logits[id]) ? row.logits[id] : kForbidden};
    if (thread / kWarp != owner / kWarp) continue;
    const Word next = best_of_share(row, owner, best);
    if (thread == owner) own = next;
  }
}

__global__ void __launch_bounds__(kSampleThreads) score_logits_kernel(const ScoreLogitsParams op) {
  __shared__ Block::Slots slots;
  release_dependents();
  wait_for_predecessors();
  const ScoredRow asked = op.rows[blockIdx.x];
  Block block(slots);
  const int thread = static_cast<int>(threadIdx.x), vocab = static_cast<int>(op.logits.cols);
  const float* logits = asked.unedited >= 0
                            ? op.unedited + static_cast<std::int64_t>(asked.unedited) * vocab
                            : static_cast<const float*>(op.logits.data) + asked.row * op.logits.row_stride;
  ScoreRow row{logits, vocab, RowPlan({asked.temperature, asked.top_p, asked.top_k}, vocab), 0.0f, 0};
  Word best = 0;
  for (int id = thread; id < vocab; id += kSampleThreads) best = larger_of(best, row.place(id));
  row.largest = from_ordered(static_cast<std::uint32_t>(block.largest(best) >> 32));
  row.least = least_kept(row, block);
  ScoredToken* out = op.out + asked.first_out;
  const std::int32_t sampled = asked.token >= 0 ? asked.token : op.sampled[asked.row];
  const std::int32_t token = sampled < 0 ? 0 : sampled;
  const std::uint32_t key = ordered(logits[token]);
  const Word rank =
      row.sum(block, [&](float logit) { return row.keeps(logit) && ordered(logit) >= key ? Word{1} : Word{0}; });
  if (thread == 0)
    out[0] = {token, static_cast<std::int32_t>(rank), row.keeps(logits[token]) ? logits[token] : kForbidden};
  find_top(row, out + 1, asked.num_top, block);
  double log_total = 0.0;
  if (asked.normalised) {
    const Word total = row.sum(block, [&](float logit) { return row.keeps(logit) ? row.mass(logit) : Word{0}; });
    log_total = log(static_cast<double>(total) / static_cast<double>(kUnitMass)) +
                static_cast<double>(row.largest) * static_cast<double>(row.plan.inverse);
  }
  __syncthreads();
  for (int i = thread; i <= asked.num_top; i += kSampleThreads)
    out[i].value =
        static_cast<float>(static_cast<double>(out[i].value) * static_cast<double>(row.plan.inverse) - log_total);
}

}  // namespace

void score_logits(const ExecutionContext& context, const ScoreLogitsParams& params) {
  launch(score_logits_kernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kSampleThreads), 0,
         static_cast<Stream>(context.gpu->stream), params);
}

void edit_logits(const ExecutionContext& context, const EditLogitsParams& params) {
  launch(edit_logits_kernel, dim3(static_cast<unsigned>(params.num_rows)), dim3(kEditThreads), 0,
         static_cast<Stream>(context.gpu->stream), params);
}

}  // namespace paged::gpu
