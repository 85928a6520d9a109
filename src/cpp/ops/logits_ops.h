// SPDX-License-Identifier: Apache-2.0
// What few requests ask of their logits and most do not: edits before they are sampled, and log-probabilities. Each is
// one op for all rows of a step that ask; what a row asks lies in flat arrays, so that one copy brings it to a device.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace paged {

// Added to one logit. Of a row, each id at most once.
struct LogitBias {
  std::int32_t id;
  float bias;
};

// A token that is forbidden; with after >= 0 only if that is the last token of the sequence, which the device alone
// knows yet.
struct LogitBan {
  std::int32_t id;
  std::int32_t after;  // -1: always
};

// A token of a sequence. Of a row, each id at most once.
struct TokenCount {
  std::int32_t id;
  std::int32_t count;  // how often it was generated; 0: it is in the prompt alone
};

// The edits of one row, made in this order; those at their defaults change nothing. Ranges are [first, first + num).
struct EditedRow {
  std::int32_t row = 0;    // of the logits
  std::int32_t mask = -1;  // index of the mask of allowed tokens
  std::int32_t first_ban = 0, num_bans = 0;
  std::int32_t first_bias = 0, num_biases = 0;
  // repetition: logits of tokens in the prompt or generated are divided by it if positive, else multiplied; presence is
  // subtracted from those of generated tokens, frequency once for each time.
  float repetition = 1.0f, presence = 0.0f, frequency = 0.0f;
  std::int32_t first_count = 0, num_counts = 0;
  std::int32_t pending_row = -1;  // of last_tokens: one more generated token, which is not in the counts yet
  float min_p_gap = -1.0f;        // logits that are further below the largest are dropped; negative: none
};

struct EditLogitsParams {
  MatrixView logits;  // [rows, vocab] float32, edited in place
  const EditedRow* rows;
  std::int32_t num_rows;
  const std::uint32_t* masks;  // [num_masks, mask_words(vocab)] bit id % 32 of word id / 32: allowed
  const LogitBan* bans;
  const LogitBias* biases;
  const TokenCount* counts;
  const std::int32_t* last_tokens;  // null where no row has a pending token
};

// A row whose logits or log-probabilities are wanted: of one token, and of the num_top most likely.
struct ScoredRow {
  std::int32_t row = 0;        // of the logits
  std::int32_t unedited = -1;  // index of the copy that was made of the row before its edits, which counts; -1: none
  std::int32_t token = -1;     // -1: the one that the row sampled
  std::int32_t num_top = 0;
  std::int32_t first_out = 0;  // of 1 + num_top entries
  bool normalised = true;      // log-probabilities
  // Of what the row samples from: temperature above 0, and what top_k and top_p cut off is -infinity. At their defaults
  // they change nothing.
  float temperature = 1.0f;
  float top_p = 1.0f;
  std::int32_t top_k = 0;
};

struct ScoredToken {
  std::int32_t id;
  std::int32_t rank;  // tokens that are at least as likely, itself included
  float value;
};

struct ScoreLogitsParams {
  MatrixView logits;      // [rows, vocab] float32
  const float* unedited;  // [copies, vocab]
  const ScoredRow* rows;
  std::int32_t num_rows;
  const std::int32_t* sampled;  // [logits.rows]
  void* workspace;              // on the CPU: sample_workspace_bytes(...)
  ScoredToken* out;             // of each row its token, then the most likely ones in falling order, the lower id first
};

constexpr std::int64_t mask_words(std::int64_t vocab_size) { return (vocab_size + 31) / 32; }

namespace ops {

void edit_logits(const ExecutionContext& context, const EditLogitsParams& params);
void score_logits(const ExecutionContext& context, const ScoreLogitsParams& params);

}  // namespace ops

namespace cpu {

void edit_logits(ThreadPool& threads, const EditLogitsParams& params);
void score_logits(ThreadPool& threads, const ScoreLogitsParams& params);

}  // namespace cpu

namespace gpu {

void edit_logits(const ExecutionContext& context, const EditLogitsParams& params);
void score_logits(const ExecutionContext& context, const ScoreLogitsParams& params);

}  // namespace gpu
}  // namespace paged
