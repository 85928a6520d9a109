// SPDX-License-Identifier: Apache-2.0
// A model whose next token is a hash of all tokens before it, read back through the block tables from a pool that holds
// token ids where a real one holds keys and values. Any mistake of paging changes its output. Like a device it runs a
// launched step late, when it is awaited, on its own copies of the batch, of the block tables and of the last samples.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "core/scheduler.h"
#include "exec/executor.h"

namespace paged::test {

inline constexpr std::int32_t kFakeVocab = 61;

inline SchedulerConfig small_config() {
  SchedulerConfig config;
  config.num_blocks = 24;
  config.block_size = 4;
  config.max_num_sequences = 8;
  config.max_num_batched_tokens = 16;
  config.max_model_len = 64;
  return config;
}

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

// The pool's blocks as bytes. Writes can be made to wait, so that tests know what has not begun.
class FakeBlocks final : public KvBlocks {
 public:
  FakeBlocks(std::vector<TokenId>& slots, std::int32_t block_size) : slots_(slots), block_size_(block_size) {}

  std::int64_t block_bytes() const override { return block_size_ * std::int64_t{sizeof(TokenId)}; }
  std::string_view layout() const override { return "fake"; }
  std::shared_ptr<std::byte> allocate_host(std::int64_t num_bytes) const override {
    return {new std::byte[static_cast<std::size_t>(num_bytes)], std::default_delete<std::byte[]>()};
  }
  void read(std::int32_t block, std::byte* to) override {
    std::memcpy(to, at(block), static_cast<std::size_t>(block_bytes()));
  }
  void write(std::int32_t block, const std::byte* from) override {
    ++num_writes;
    num_writes.notify_all();
    is_held.wait(true);
    std::memcpy(at(block), from, static_cast<std::size_t>(block_bytes()));
  }

  std::atomic<int> num_writes = 0;  // begun
  std::atomic<bool> is_held = false;

 private:
  TokenId* at(std::int32_t block) { return slots_.data() + block * block_size_; }

  std::vector<TokenId>& slots_;
  std::int32_t block_size_;
};

class FakeModel final : public Executor {
 public:
  FakeModel(std::int32_t num_blocks, std::int32_t block_size, std::int32_t max_steps_in_flight = 1)
      : block_size_(block_size),
        max_steps_in_flight_(max_steps_in_flight),
        slots_(static_cast<std::size_t>(num_blocks * block_size), -1),
        blocks(slots_, block_size) {}

  TokenId poison_token = -1;  // a sequence whose last token is this gets logits of NaN
  TokenId fatal_token = -1;   // a batch that holds this makes wait() throw

  std::int32_t vocab_size() const override { return kFakeVocab; }
  std::int32_t max_steps_in_flight() const override { return max_steps_in_flight_; }

  ExtraOutputs extra_outputs() const override { return {}; }
  KvBlocks* kv_blocks() override { return &blocks; }

  void launch(const StepInput& step) override {
    if (std::ssize(steps_) == max_steps_in_flight_) throw std::logic_error("too many steps in flight");
    const BatchView& batch = step.batch;
    Step copy;
    copy.stride = batch.block_table_stride;
    for (const std::int32_t entry : step.changed_table_entries)
      copy.changes.emplace_back(entry, batch.block_tables[entry]);
    copy.copy_sources.assign(step.copy_sources.begin(), step.copy_sources.end());
    copy.copy_destinations.assign(step.copy_destinations.begin(), step.copy_destinations.end());
    copy.token_ids.assign(batch.token_ids, batch.token_ids + batch.num_tokens);
    copy.slot_mapping.assign(batch.slot_mapping, batch.slot_mapping + batch.num_tokens);
    for (std::int32_t row = 0, s = 0; row < batch.num_logits_rows; ++row) {
      while (batch.query_start[s + 1] <= batch.logits_rows[row]) ++s;
      copy.samples.push_back({batch.sampled_table_rows[row], batch.seq_lens[s]});
    }
    steps_.push_back(std::move(copy));
  }

  std::span<const std::int32_t> wait() override {
    const Step step = std::move(steps_.front());
    steps_.pop_front();
    for (const auto& [entry, block] : step.changes) at(block_tables_, entry) = block;
    for (std::size_t i = 0; i < step.copy_sources.size(); ++i)
      for (std::int32_t offset = 0; offset < block_size_; ++offset)
        slot(step.copy_destinations[i] * block_size_ + offset) = slot(step.copy_sources[i] * block_size_ + offset);
    for (std::size_t t = 0; t < step.token_ids.size(); ++t) {
      const TokenId token = step.token_ids[t];
      if (token >= 0 && token == fatal_token) throw std::runtime_error("the fake model met its fatal token");
      slot(step.slot_mapping[t]) = token < 0 ? at(last_sampled_, -1 - token) : token;
    }
    sampled_.clear();
    for (const Sample& each : step.samples) {
      sampled_.push_back(sample(each, step.stride));
      at(last_sampled_, each.table_row) = sampled_.back();
    }
    return sampled_;
  }

 private:
  struct Sample {
    std::int32_t table_row;
    std::int32_t seq_len;
  };
  struct Step {
    std::int32_t stride = 0;
    std::vector<std::pair<std::int32_t, std::int32_t>> changes;  // entry of the block tables and its new value
    std::vector<std::int32_t> copy_sources;
    std::vector<std::int32_t> copy_destinations;
    std::vector<TokenId> token_ids;
    std::vector<std::int32_t> slot_mapping;
    std::vector<Sample> samples;
  };

  // Grows as a step needs it: only the batch knows the limits.
  static std::int32_t& at(std::vector<std::int32_t>& values, std::int32_t index) {
    const auto i = static_cast<std::size_t>(index);
    if (i >= values.size()) values.resize(i + 1, -1);
    return values[i];
  }
  TokenId& slot(std::int32_t index) { return slots_.at(static_cast<std::size_t>(index)); }

  TokenId sample(const Sample& each, std::int32_t stride) {
    std::vector<TokenId> tokens;
    for (std::int32_t p = 0; p < each.seq_len; ++p)
      tokens.push_back(
          slot(at(block_tables_, each.table_row * stride + p / block_size_) * block_size_ + p % block_size_));
    return tokens.back() == poison_token ? -1 : fake_next_token(tokens);
  }

  std::int32_t block_size_;
  std::int32_t max_steps_in_flight_;
  std::vector<TokenId> slots_;
  std::vector<std::int32_t> block_tables_;  // [rows, stride]
  std::vector<TokenId> last_sampled_;       // by row of the block tables
  std::deque<Step> steps_;                  // launched and not yet awaited, the oldest first
  std::vector<TokenId> sampled_;

 public:
  FakeBlocks blocks;
};

}  // namespace paged::test
