// SPDX-License-Identifier: Apache-2.0
// What one request asks of its logits beyond a SamplingRow, kept current as its tokens come. Requests that ask for
// nothing have none. Used by the engine thread alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/types.h"
#include "engine/request.h"
#include "exec/executor.h"

namespace paged {

// Owns what a StepExtras shows.
struct StepExtrasBuffer {
  std::vector<EditedRow> edited;
  std::vector<std::uint32_t> masks;
  std::vector<LogitBan> bans;
  std::vector<LogitBias> biases;
  std::vector<TokenCount> counts;
  std::vector<ScoredRow> scored;
  std::vector<std::int32_t> unedited;
  std::int32_t num_scores = 0;
  std::vector<std::int32_t> exported;

  void clear();
  bool empty() const { return edited.empty() && scored.empty() && exported.empty(); }
  StepExtras view() const { return {edited, masks, bans, biases, counts, scored, unedited, num_scores, exported}; }
  void score(ScoredRow row);  // its place in the output is filled in
};

// Where a step samples the request's next token.
struct NextToken {
  std::int32_t logits_row = 0;
  std::int32_t num_generated = 0;  // tokens before it, one in flight included
  std::int32_t pending_row = -1;   // of the block tables, where a token is in flight
};

class LogitsPolicy {
 public:
  // Null if it asks for nothing.
  static std::unique_ptr<LogitsPolicy> make(const RequestSpec& spec, std::int32_t vocab_size);

  void append(TokenId token);  // has been committed

  // For the next token alone: only what is set in the mask.
  void allow(std::vector<std::uint32_t> mask) { mask_ = std::move(mask); }

  // Its edits of the row, if there are any for this token, and what is to be scored of it.
  void write(const NextToken& next, StepExtrasBuffer& out);
  // That a prompt token's probability is asked of a row.
  void write_prompt_score(std::int32_t logits_row, TokenId token, StepExtrasBuffer& out) const;

 private:
  LogitsPolicy(const SamplingParams& params, bool edited_elsewhere)
      : params_(params), edited_elsewhere_(edited_elsewhere) {}
  bool has_penalties() const;
  void write_mask(EditedRow& row, StepExtrasBuffer& out);
  void write_bans(const NextToken& next, EditedRow& row, StepExtrasBuffer& out) const;
  bool write_edits(const NextToken& next, StepExtrasBuffer& out);
  void write_score(std::int32_t logits_row, bool edited, StepExtrasBuffer& out) const;
  std::optional<LogitBan> ban_of(const std::vector<TokenId>& word, bool pending) const;
  void count(TokenId token, std::int32_t times);

  const SamplingParams& params_;                    // the request's
  const bool edited_elsewhere_;                     // logits processors see the rows first
  std::vector<std::uint32_t> allowed_;              // of allowed_token_ids; empty: all
  std::vector<std::uint32_t> mask_;                 // of a guide, for the next token
  std::vector<TokenId> generated_;                  // where bad words of several tokens are to be found
  std::vector<TokenCount> counts_;                  // where there are penalties
  std::unordered_map<TokenId, std::size_t> index_;  // into counts_
  float min_p_gap_ = -1.0f;
};

}  // namespace paged
