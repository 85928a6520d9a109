// SPDX-License-Identifier: Apache-2.0
// A model whose next token is a hash of all tokens before it, read back through the block tables from a pool that holds
// token ids where a real one holds keys and values. Any mistake of paging changes its output.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include "core/types.h"
#include "exec/executor.h"

namespace paged::test {

inline constexpr std::int32_t kFakeVocab = 61;

inline TokenId fake_next_token(std::span<const TokenId> tokens) {
  std::uint64_t hash = 1469598103934665603ull;
  for (TokenId token : tokens) hash = (hash ^ static_cast<std::uint64_t>(token)) * 1099511628211ull;
  return static_cast<TokenId>(hash >> 33) % kFakeVocab;
}

inline std::vector<TokenId> fake_completion(std::vector<TokenId> tokens, std::size_t count) {
  const std::size_t prompt = tokens.size();
  for (std::size_t i = 0; i < count; ++i) tokens.push_back(fake_next_token(tokens));
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt), tokens.end()};
}

class FakeModel final : public Executor {
 public:
  FakeModel(std::int32_t num_blocks, std::int32_t block_size)
      : block_size_(block_size), slots_(static_cast<std::size_t>(num_blocks * block_size), -1) {}

  TokenId poison_token = -1;  // a sequence whose last token is this gets logits of NaN
  TokenId fatal_token = -1;   // a batch that holds this makes run() throw

  std::int32_t vocab_size() const override { return kFakeVocab; }

  void copy_blocks(std::span<const std::int32_t> source, std::span<const std::int32_t> destination) override {
    for (std::size_t i = 0; i < source.size(); ++i)
      for (std::int32_t offset = 0; offset < block_size_; ++offset)
        slot(destination[i] * block_size_ + offset) = slot(source[i] * block_size_ + offset);
  }

  const float* run(const BatchView& batch) override {
    for (std::int32_t t = 0; t < batch.num_tokens; ++t) {
      if (batch.token_ids[t] == fatal_token) throw std::runtime_error("the fake model met its fatal token");
      slot(batch.slot_mapping[t]) = batch.token_ids[t];
    }
    logits_.assign(static_cast<std::size_t>(batch.num_logits_rows * kFakeVocab), 0.0f);
    for (std::int32_t row = 0, s = 0; row < batch.num_logits_rows; ++row) {
      while (batch.query_start[s + 1] <= batch.logits_rows[row]) ++s;
      write_logits(batch, s, logits_.data() + row * kFakeVocab);
    }
    return logits_.data();
  }

 private:
  TokenId& slot(std::int32_t index) { return slots_[static_cast<std::size_t>(index)]; }

  void write_logits(const BatchView& batch, std::int32_t sequence, float* logits) {
    const std::int32_t* block_table = batch.block_table(sequence);
    std::vector<TokenId> tokens;
    for (std::int32_t p = 0; p < batch.seq_lens[sequence]; ++p)
      tokens.push_back(slot(block_table[p / block_size_] * block_size_ + p % block_size_));
    logits[fake_next_token(tokens)] = 1.0f;
    if (tokens.back() != poison_token) return;
    for (std::int32_t i = 0; i < kFakeVocab; ++i) logits[i] = std::numeric_limits<float>::quiet_NaN();
  }

  std::int32_t block_size_;
  std::vector<TokenId> slots_;
  std::vector<float> logits_;
};

}  // namespace paged::test
