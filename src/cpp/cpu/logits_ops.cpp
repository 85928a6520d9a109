// SPDX-License-Identifier: Apache-2.0
// Edits of logits, row by row. Only the rows that ask come here.
#include "ops/logits_ops.h"

#include <limits>

#include "cpu/kernel_table.h"
#include "cpu/thread_pool.h"

namespace paged::cpu {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

void apply_mask(float* logits, std::int64_t vocab, const std::uint32_t* mask) {
  for (std::int64_t word = 0; word < mask_words(vocab); ++word) {
    const std::int64_t first = word * 32, count = vocab - first < 32 ? vocab - first : 32;
    if (mask[word] == ~0u) continue;
    for (std::int64_t i = 0; i < count; ++i)
      if ((mask[word] >> i & 1u) == 0) logits[first + i] = kForbidden;
  }
}

float penalised(float logit, const EditedRow& row, std::int32_t count) {
  logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
  logit -= row.frequency * static_cast<float>(count);
  return count > 0 ? logit - row.presence : logit;
}

void apply_penalties(float* logits, const EditedRow& row, const TokenCount* counts, std::int32_t pending) {
  for (std::int32_t i = 0; i < row.num_counts; ++i) {
    const TokenCount& token = counts[row.first_count + i];
    const bool once_more = token.id == pending;
    logits[token.id] = penalised(logits[token.id], row, token.count + (once_more ? 1 : 0));
    if (once_more) pending = -1;
  }
  if (pending >= 0) logits[pending] = penalised(logits[pending], row, 1);
}

void edit_row(const EditLogitsParams& params, const EditedRow& row) {
  const std::int64_t vocab = params.logits.cols;
  float* logits = static_cast<float*>(params.logits.data) + row.row * params.logits.row_stride;
  const std::int32_t pending = row.pending_row < 0 ? -1 : params.last_tokens[row.pending_row];
  if (row.mask >= 0) apply_mask(logits, vocab, params.masks + row.mask * mask_words(vocab));
  for (std::int32_t i = row.first_ban; i < row.first_ban + row.num_bans; ++i)
    if (params.bans[i].after < 0 || params.bans[i].after == pending) logits[params.bans[i].id] = kForbidden;
  for (std::int32_t i = row.first_bias; i < row.first_bias + row.num_biases; ++i)
    logits[params.biases[i].id] += params.biases[i].bias;
  if (row.repetition != 1.0f || row.presence != 0.0f || row.frequency != 0.0f)
    apply_penalties(logits, row, params.counts, pending);
  if (row.min_p_gap < 0.0f) return;
  const float least = kernels().row_max(logits, vocab) - row.min_p_gap;
  for (std::int64_t id = 0; id < vocab; ++id)
    if (logits[id] < least) logits[id] = kForbidden;
}

}  // namespace

void edit_logits(ThreadPool& threads, const EditLogitsParams& params) {
  threads.parallel_for(params.num_rows, [&](std::int64_t i, int) { edit_row(params, params.rows[i]); });
}

}  // namespace paged::cpu
