// SPDX-License-Identifier: Apache-2.0
// Edits of logits, row by row. Only the rows that ask come here.
#include "ops/logits_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/cpu_ops.h"
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

bool is_likelier(const ScoredToken& a, const ScoredToken& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The num_top most likely by their logits, those below `least` as -infinity, in order.
void find_top(const float* logits, std::int64_t vocab, float least, ScoredToken* top, std::int32_t num_top) {
  if (num_top == 0) return;
  std::int32_t size = 0;
  for (std::int32_t id = 0; id < vocab; ++id) {
    const ScoredToken token{id, 0, logits[id] >= least ? logits[id] : kForbidden};
    if (size < num_top) {
      top[size++] = token;
      std::push_heap(top, top + size, is_likelier);
    } else if (is_likelier(token, top[0])) {
      std::pop_heap(top, top + size, is_likelier);
      top[size - 1] = token;
      std::push_heap(top, top + size, is_likelier);
    }
  }
  std::sort_heap(top, top + size, is_likelier);
}

// log(sum(exp(logit / temperature))) over the logits of at least `least`.
double log_mass(const float* logits, std::int64_t vocab, const ScoredRow& row, float least, void* workspace) {
  const float largest = kernels().row_max(logits, vocab);
  const float inverse = std::min(1.0f / row.temperature, std::numeric_limits<float>::max());
  float* weights = static_cast<float*>(workspace);
  const std::int64_t num_blocks = (vocab + kSumBlock - 1) / kSumBlock;
  auto* sums = reinterpret_cast<double*>(weights + (vocab + 31) / 16 * 16);
  kernels().exp_row({logits, vocab, largest, inverse, weights, sums});
  double total = 0.0;
  if (least == kForbidden)
    for (std::int64_t block = 0; block < num_blocks; ++block) total += sums[block];
  else
    for (std::int64_t id = 0; id < vocab; ++id)
      if (logits[id] >= least) total += static_cast<double>(weights[id]);
  return std::log(total) + static_cast<double>(largest) * static_cast<double>(inverse);
}

void score_row(const ScoreLogitsParams& params, const ScoredRow& row, void* workspace) {
  const std::int64_t vocab = params.logits.cols;
  const float* logits = row.unedited >= 0
                            ? params.unedited + row.unedited * vocab
                            : static_cast<const float*>(params.logits.data) + row.row * params.logits.row_stride;
  const bool cuts = row.top_k > 0 || row.top_p < 1.0f;
  const float least =
      cuts ? least_kept_logit(logits, vocab, {row.temperature, row.top_p, row.top_k}, workspace) : kForbidden;
  ScoredToken* out = params.out + row.first_out;
  const std::int32_t id = row.token >= 0 ? row.token : std::max(params.sampled[row.row], 0);
  out[0] = {id, 0, logits[id] >= least ? logits[id] : kForbidden};
  for (std::int64_t other = 0; other < vocab; ++other)
    out[0].rank += logits[other] >= least && logits[other] >= logits[id] ? 1 : 0;
  find_top(logits, vocab, least, out + 1, row.num_top);
  const double log_total = row.normalised ? log_mass(logits, vocab, row, least, workspace) : 0.0;
  for (std::int32_t i = 0; i <= row.num_top; ++i) {
    if (i > 0) out[i].rank = i;
    const double scaled = static_cast<double>(out[i].value) / static_cast<double>(row.temperature);
    out[i].value = static_cast<float>(scaled - log_total);
  }
}

}  // namespace

void score_logits(ThreadPool& threads, const ScoreLogitsParams& params) {
  const std::int64_t stride = sample_workspace_bytes(1, params.logits.cols);
  threads.parallel_for(params.num_rows, [&](std::int64_t i, int thread) {
    score_row(params, params.rows[i], static_cast<std::byte*>(params.workspace) + thread * stride);
  });
}

void edit_logits(ThreadPool& threads, const EditLogitsParams& params) {
  threads.parallel_for(params.num_rows, [&](std::int64_t i, int) { edit_row(params, params.rows[i]); });
}

}  // namespace paged::cpu
