// SPDX-License-Identifier: Apache-2.0
#include "engine/logits_policy.h"

#include <algorithm>
#include <cmath>

namespace paged {

void StepExtrasBuffer::clear() {
  edited.clear();
  masks.clear();
  bans.clear();
  biases.clear();
  counts.clear();
  scored.clear();
  unedited.clear();
  num_scores = 0;
  exported.clear();
}

void StepExtrasBuffer::score(ScoredRow row) {
  row.first_out = num_scores;
  num_scores += 1 + row.num_top;
  scored.push_back(row);
}

std::unique_ptr<LogitsPolicy> LogitsPolicy::make(const RequestSpec& spec, std::int32_t vocab_size) {
  const SamplingParams& params = spec.sampling;
  std::unique_ptr<LogitsPolicy> policy(new LogitsPolicy(params, spec.guide == GuideKind::kToken));
  if (params.min_p > 0.0f && params.temperature > 0.0f)
    policy->min_p_gap_ = -params.temperature * std::log(params.min_p);
  const bool forbids = params.min_tokens > 0 && !params.stop_token_ids.empty();
  if (!forbids && policy->min_p_gap_ < 0.0f && !policy->has_penalties() && params.logit_bias.empty() &&
      params.allowed_token_ids.empty() && params.bad_words.empty() && spec.guide == GuideKind::kNone &&
      params.num_logprobs < 0 && params.num_prompt_logprobs < 0)
    return nullptr;
  if (!params.allowed_token_ids.empty()) {
    policy->allowed_.resize(static_cast<std::size_t>(mask_words(vocab_size)));
    for (const TokenId id : params.allowed_token_ids)
      policy->allowed_[static_cast<std::size_t>(id / 32)] |= 1u << (id % 32);
  }
  if (policy->has_penalties())
    for (const TokenId token : spec.prompt) policy->count(token, 0);
  return policy;
}

bool LogitsPolicy::has_penalties() const {
  return params_.repetition_penalty != 1.0f || params_.presence_penalty != 0.0f || params_.frequency_penalty != 0.0f;
}

void LogitsPolicy::count(TokenId token, std::int32_t times) {
  const auto [position, is_new] = index_.try_emplace(token, counts_.size());
  if (is_new)
    counts_.push_back({token, times});
  else
    counts_[position->second].count += times;
}

void LogitsPolicy::append(TokenId token) {
  if (has_penalties()) count(token, 1);
  if (!params_.bad_words.empty()) generated_.push_back(token);
}

void LogitsPolicy::write(const NextToken& next, StepExtrasBuffer& out) {
  const bool edited = write_edits(next, out) || edited_elsewhere_;
  if (params_.num_logprobs >= 0) write_score(next.logits_row, edited, out);
}

void LogitsPolicy::write_prompt_score(std::int32_t logits_row, TokenId token, StepExtrasBuffer& out) const {
  ScoredRow row;
  row.row = logits_row;
  row.token = token;
  row.num_top = params_.num_prompt_logprobs;
  row.normalised =
      params_.logprobs_mode == LogprobsMode::kRawLogprobs || params_.logprobs_mode == LogprobsMode::kProcessedLogprobs;
  out.score(row);
}

void LogitsPolicy::write_score(std::int32_t logits_row, bool edited, StepExtrasBuffer& out) const {
  const LogprobsMode mode = params_.logprobs_mode;
  ScoredRow row;
  row.row = logits_row;
  row.num_top = params_.num_logprobs;
  row.normalised = mode == LogprobsMode::kRawLogprobs || mode == LogprobsMode::kProcessedLogprobs;
  if (mode == LogprobsMode::kRawLogprobs || mode == LogprobsMode::kRawLogits) {
    if (edited) {
      row.unedited = static_cast<std::int32_t>(out.unedited.size());
      out.unedited.push_back(logits_row);
    }
  } else if (params_.temperature > 0.0f) {
    row.temperature = params_.temperature;
    row.top_p = params_.top_p;
    row.top_k = std::max(params_.top_k, 0);
  }
  out.score(row);
}

// False if there were none.
bool LogitsPolicy::write_edits(const NextToken& next, StepExtrasBuffer& out) {
  EditedRow row;
  row.row = next.logits_row;
  row.pending_row = next.pending_row;
  row.min_p_gap = min_p_gap_;
  write_mask(row, out);
  write_bans(next, row, out);
  row.first_bias = static_cast<std::int32_t>(out.biases.size());
  row.num_biases = static_cast<std::int32_t>(params_.logit_bias.size());
  for (const auto& [id, bias] : params_.logit_bias) out.biases.push_back({id, bias});
  if (has_penalties()) {
    row.repetition = params_.repetition_penalty;
    row.presence = params_.presence_penalty;
    row.frequency = params_.frequency_penalty;
    row.first_count = static_cast<std::int32_t>(out.counts.size());
    row.num_counts = static_cast<std::int32_t>(counts_.size());
    out.counts.insert(out.counts.end(), counts_.begin(), counts_.end());
  }
  const bool edits =
      row.mask >= 0 || row.num_bans > 0 || row.num_biases > 0 || has_penalties() || row.min_p_gap >= 0.0f;
  if (edits) out.edited.push_back(row);
  return edits;
}

void LogitsPolicy::write_mask(EditedRow& row, StepExtrasBuffer& out) {
  if (mask_.empty() && allowed_.empty()) return;
  const std::size_t num_words = std::max(mask_.size(), allowed_.size());
  row.mask = static_cast<std::int32_t>(out.masks.size() / num_words);
  for (std::size_t i = 0; i < num_words; ++i)
    out.masks.push_back((mask_.empty() ? ~0u : mask_[i]) & (allowed_.empty() ? ~0u : allowed_[i]));
  mask_.clear();
}

void LogitsPolicy::write_bans(const NextToken& next, EditedRow& row, StepExtrasBuffer& out) const {
  row.first_ban = static_cast<std::int32_t>(out.bans.size());
  if (next.num_generated < params_.min_tokens)
    for (const TokenId id : params_.stop_token_ids) out.bans.push_back({id, -1});
  for (const std::vector<TokenId>& word : params_.bad_words)
    if (const std::optional<LogitBan> ban = ban_of(word, next.pending_row >= 0)) out.bans.push_back(*ban);
  row.num_bans = static_cast<std::int32_t>(out.bans.size()) - row.first_ban;
}

// The last token of a word is forbidden where the others are the newest tokens generated.
std::optional<LogitBan> LogitsPolicy::ban_of(const std::vector<TokenId>& word, bool pending) const {
  std::ptrdiff_t prefix = std::ssize(word) - 1;
  const bool pending_decides = pending && prefix > 0;
  const LogitBan ban{word.back(), pending_decides ? word[static_cast<std::size_t>(prefix) - 1] : -1};
  if (pending_decides) --prefix;
  if (prefix > std::ssize(generated_)) return std::nullopt;
  if (!std::equal(word.begin(), word.begin() + prefix, generated_.end() - prefix)) return std::nullopt;
  return ban;
}

}  // namespace paged
