// SPDX-License-Identifier: Apache-2.0
#include "engine/check_request.h"

#include <algorithm>

#include "base/check.h"

namespace paged {
namespace {

constexpr std::int32_t kMaxLogprobs = 1024;  // the time to find them grows with their number

void check_token(const char* name, TokenId id, std::int32_t vocab_size) {
  PAGED_CHECK(id >= 0 && id < vocab_size, name, " has token id ", id, "; this model's ids lie in [0, ", vocab_size,
              ")");
}

void check_logits_params(const SamplingParams& s, std::int32_t vocab_size) {
  PAGED_CHECK(s.min_p >= 0.0f && s.min_p <= 1.0f, "min_p must be in [0, 1], got ", s.min_p);
  PAGED_CHECK(s.repetition_penalty > 0.0f && s.repetition_penalty <= 1e4f,
              "repetition_penalty must be in (0, 10000], got ", s.repetition_penalty);
  for (const float penalty : {s.presence_penalty, s.frequency_penalty})
    PAGED_CHECK(penalty >= -2.0f && penalty <= 2.0f, "presence_penalty and frequency_penalty must be in [-2, 2], got ",
                penalty);
  for (const auto& [id, bias] : s.logit_bias) {
    check_token("logit_bias", id, vocab_size);
    PAGED_CHECK(bias >= -100.0f && bias <= 100.0f, "logit_bias must be in [-100, 100], got ", bias, " for ", id);
  }
  for (const TokenId id : s.allowed_token_ids) check_token("allowed_token_ids", id, vocab_size);
  for (const std::vector<TokenId>& word : s.bad_words) {
    PAGED_CHECK(!word.empty(), "bad_words has an empty word");
    for (const TokenId id : word) check_token("bad_words", id, vocab_size);
  }
  if (s.min_tokens > 0)
    for (const TokenId id : s.stop_token_ids) check_token("stop_token_ids", id, vocab_size);
}

}  // namespace

void check_request(const RequestSpec& spec, std::int32_t vocab_size, bool has_tokenizer) {
  for (std::size_t i = 0; i < spec.prompt.size(); ++i)
    PAGED_CHECK(spec.prompt[i] >= 0 && spec.prompt[i] < vocab_size, "prompt token ", i, " is ", spec.prompt[i],
                "; this model's ids lie in [0, ", vocab_size, ")");
  const SamplingParams& s = spec.sampling;
  PAGED_CHECK(s.temperature >= 0.0f && s.temperature <= 1e4f, "temperature must be in [0, 10000], got ", s.temperature);
  PAGED_CHECK(s.top_p > 0.0f && s.top_p <= 1.0f, "top_p must be in (0, 1], got ", s.top_p);
  PAGED_CHECK(s.top_k >= -1, "top_k must be -1 or 0 (all) or positive, got ", s.top_k);
  check_logits_params(s, vocab_size);
  for (const std::int32_t count : {s.num_logprobs, s.num_prompt_logprobs})
    PAGED_CHECK(count >= -1 && count <= std::min(vocab_size, kMaxLogprobs),
                "logprobs and prompt_logprobs of a vocabulary of ", vocab_size, " must be in [0, ",
                std::min(vocab_size, kMaxLogprobs), "], got ", count);
  PAGED_CHECK(s.first_prompt_logprob >= 1, "prompt_logprobs can begin with token 1, got ", s.first_prompt_logprob);
  PAGED_CHECK(s.max_tokens >= 1, "max_tokens must be at least 1, got ", s.max_tokens);
  PAGED_CHECK(s.min_tokens >= 0 && s.min_tokens <= s.max_tokens,
              "min_tokens must be in [0, max_tokens = ", s.max_tokens, "], got ", s.min_tokens);
  PAGED_CHECK(s.stop.empty() || has_tokenizer, "stop strings need a tokenizer, and this model has none");
}

void check_fits(const SchedulerConfig& config, const ExecutorLimits& limits) {
  const auto check = [](const char* name, std::int32_t asked, std::int32_t limit) {
    PAGED_CHECK(limit == 0 || asked <= limit, name, " is ", asked, ", but the executor was made for ", limit);
  };
  check("num_blocks", config.num_blocks, limits.num_blocks);
  check("max_model_len", config.max_model_len, limits.max_seq_len);
  check("max_num_batched_tokens", config.max_num_batched_tokens, limits.max_tokens);
  check("max_num_sequences", std::min(config.max_num_sequences, config.max_num_batched_tokens), limits.max_sequences);
  PAGED_CHECK(limits.block_size == 0 || config.block_size == limits.block_size, "block_size is ", config.block_size,
              ", but the executor was made for ", limits.block_size);
}

}  // namespace paged
