// SPDX-License-Identifier: Apache-2.0
// A device without a model, which runs its steps late: in order, each when the host waits for it. Its pool holds in
// every slot a fingerprint of the whole prefix up to its token, salt included, as real keys and values do. It knows of
// the host only what a launch hands over, keeps its own copies of the block tables and of the last sampled tokens, and
// computes each fingerprint from the one before it. Every position that a sequence attends must hold exactly its own
// fingerprint, and the token "sampled" is read from the pool, so a wrong token, a wrong slot, a wrong hit, a stale
// table entry, a lost copy or a block handed out too early shows at once.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "core/scheduler.h"

namespace paged::test {

inline std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state = (state ^ value) * 0xD6E8FEB86659FD93;
  return state ^ (state >> 32);
}

inline std::uint64_t salt_fingerprint(const std::string& salt) { return mix(1, std::hash<std::string>{}(salt)); }

// Sequences whose ids agree modulo 2 sample alike, so that some of them write equal blocks and others part ways.
inline TokenId next_token(std::uint64_t fingerprint, SequenceId id) {
  return static_cast<TokenId>((mix(fingerprint, id % 2) >> 7) % 3);
}

// All that a sequence is and would become if it never stopped, worked out from its first tokens alone.
class Future {
 public:
  Future(SequenceId id, std::vector<TokenId> tokens, const std::string& salt)
      : id_(id), tokens_(std::move(tokens)), salt_(salt_fingerprint(salt)) {}

  TokenId token(std::size_t position) {
    while (tokens_.size() <= position) tokens_.push_back(next_token(fingerprint(tokens_.size() - 1), id_));
    return tokens_[position];
  }
  // Of all tokens up to and with this position.
  std::uint64_t fingerprint(std::size_t position) {
    while (fingerprints_.size() <= position) {
      const auto value = static_cast<std::uint64_t>(token(fingerprints_.size()));
      fingerprints_.push_back(mix(fingerprints_.empty() ? salt_ : fingerprints_.back(), value));
    }
    return fingerprints_[position];
  }
  std::uint64_t salt() const { return salt_; }

 private:
  SequenceId id_;
  std::vector<TokenId> tokens_;
  std::vector<std::uint64_t> fingerprints_;
  std::uint64_t salt_;
};

class FakeDevice {
 public:
  explicit FakeDevice(const SchedulerConfig& config)
      : block_size_(config.block_size),
        pool_(static_cast<std::size_t>(config.num_blocks) * static_cast<std::size_t>(config.block_size)),
        last_sampled_(static_cast<std::size_t>(config.max_num_sequences), -1) {}

  std::map<SequenceId, Future> futures;  // of every sequence there ever was
  std::int64_t num_blocks_copied = 0;

  // Copies everything: the batch may be overwritten.
  void launch(const StepPlan& plan, const StepBatch& batch) {
    block_tables_.resize(batch.block_tables.size(), kNoBlock);
    stride_ = batch.block_table_stride;
    Step step{plan.sequences, plan.block_copies, {}, {}, {}, {}};
    const auto num_tokens = static_cast<std::ptrdiff_t>(plan.num_tokens);
    step.token_ids.assign(batch.token_ids.begin(), batch.token_ids.begin() + num_tokens);
    step.slot_mapping.assign(batch.slot_mapping.begin(), batch.slot_mapping.begin() + num_tokens);
    for (const std::int32_t entry : batch.changed_table_entries)
      step.changes.emplace_back(entry, batch.block_tables.at(static_cast<std::size_t>(entry)));
    for (const ScheduledSequence& scheduled : plan.sequences)
      for (std::int32_t p = 0; p < scheduled.sampled_position(); p += block_size_)
        step.blocks.insert(batch.block_tables.at(table_entry(scheduled.row, p)));
    step.blocks.insert(plan.block_copies.sources.begin(), plan.block_copies.sources.end());
    steps_.push_back(std::move(step));
  }

  // Runs the oldest step launched. Its sampled tokens, one for each row of logits.
  std::vector<TokenId> run() {
    const Step step = std::move(steps_.front());
    steps_.pop_front();
    for (const auto& [entry, block] : step.changes) block_tables_[static_cast<std::size_t>(entry)] = block;
    copy_blocks(step.copies);
    write(step);
    return attend_and_sample(step);
  }

  // A transfer that has begun: what it writes means nothing until it has ended.
  void begin(const BlockTransfer& transfer) {
    for (const auto& [from, to] : transfer.copies)
      for (std::int32_t offset = 0; offset < block_size_; ++offset) at(to, offset) = 0xDEAD;
  }
  // So many copies of it were made.
  void end(const BlockTransfer& transfer, std::int32_t num_done) {
    for (const auto& [from, to] : std::span(transfer.copies).first(static_cast<std::size_t>(num_done)))
      for (std::int32_t offset = 0; offset < block_size_; ++offset) at(to, offset) = at(from, offset);
    (transfer.is_load() ? num_blocks_loaded : num_blocks_stored) += num_done;
  }
  std::int64_t num_blocks_stored = 0, num_blocks_loaded = 0;

  // Calls visit(block) for each block that a step not yet run reads or writes.
  template <typename Visit>
  void for_each_block_in_flight(Visit&& visit) const {
    for (const Step& step : steps_)
      for (const BlockId block : step.blocks) visit(block);
  }

 private:
  struct Step {
    std::vector<ScheduledSequence> sequences;
    BlockCopies copies;
    std::vector<TokenId> token_ids;
    std::vector<std::int32_t> slot_mapping;
    std::vector<std::pair<std::int32_t, BlockId>> changes;  // entry of block_tables and its new value
    std::set<BlockId> blocks;
  };

  static constexpr TokenId kMeansNothing = -99;  // of a row that only scores a prompt

  // Backwards: the order must not matter.
  void copy_blocks(const BlockCopies& copies) {
    const std::set<BlockId> destinations(copies.destinations.begin(), copies.destinations.end());
    CHECK_EQ(destinations.size(), copies.sources.size());
    for (std::size_t i = copies.sources.size(); i-- > 0;) {
      CHECK(!destinations.contains(copies.sources[i]), "a block is source and destination");
      for (std::int32_t offset = 0; offset < block_size_; ++offset)
        slot(copies.destinations[i] * block_size_ + offset) = slot(copies.sources[i] * block_size_ + offset);
    }
    num_blocks_copied += std::ssize(copies.sources);
  }

  void write(const Step& step) {
    std::set<std::int32_t> slots;
    std::size_t t = 0;
    for (const ScheduledSequence& scheduled : step.sequences) {
      Future& future = futures.at(scheduled.id);
      for (std::int32_t p = scheduled.num_computed_tokens; p < scheduled.sampled_position(); ++p, ++t) {
        TokenId token = step.token_ids[t];
        if (token < 0) token = last_sampled_.at(static_cast<std::size_t>(-1 - token));
        CHECK_EQ(token, future.token(static_cast<std::size_t>(p)), "sequence ", scheduled.id, " at position ", p);
        CHECK(slots.insert(step.slot_mapping[t]).second, "two tokens write slot ", step.slot_mapping[t]);
        const std::uint64_t before = p == 0 ? future.salt() : attended(scheduled.row, p - 1);
        slot(step.slot_mapping[t]) = mix(before, static_cast<std::uint64_t>(token));
      }
    }
  }

  std::vector<TokenId> attend_and_sample(const Step& step) {
    std::vector<TokenId> sampled;
    for (const ScheduledSequence& scheduled : step.sequences) {
      Future& future = futures.at(scheduled.id);
      for (std::int32_t p = 0; p < scheduled.sampled_position(); ++p)
        CHECK_EQ(attended(scheduled.row, p), future.fingerprint(static_cast<std::size_t>(p)), "sequence ", scheduled.id,
                 " at position ", p);
      sampled.resize(sampled.size() + static_cast<std::size_t>(scheduled.num_scored), kMeansNothing);
      if (!scheduled.samples) continue;
      sampled.push_back(next_token(attended(scheduled.row, scheduled.sampled_position() - 1), scheduled.id));
      last_sampled_.at(static_cast<std::size_t>(scheduled.row)) = sampled.back();
    }
    return sampled;
  }

  std::size_t table_entry(std::int32_t row, std::int32_t position) const {
    return static_cast<std::size_t>(row * stride_ + position / block_size_);
  }
  std::uint64_t attended(std::int32_t row, std::int32_t position) {
    return slot(block_tables_.at(table_entry(row, position)) * block_size_ + position % block_size_);
  }
  std::uint64_t& at(const Place& place, std::int32_t offset) {
    if (place.tier == Tier::kDevice) return slot(place.index * block_size_ + offset);
    return below_[{place.tier, place.index, offset}];
  }
  std::uint64_t& slot(std::int32_t index) { return pool_.at(static_cast<std::size_t>(index)); }

  std::int32_t block_size_;
  std::int32_t stride_ = 0;
  std::map<std::tuple<Tier, std::int32_t, std::int32_t>, std::uint64_t> below_;
  std::vector<std::uint64_t> pool_;    // [num_blocks * block_size]
  std::vector<BlockId> block_tables_;  // [max_num_sequences, stride_] changed by what launches say has changed
  std::vector<TokenId> last_sampled_;  // [max_num_sequences] by row
  std::deque<Step> steps_;             // launched and not yet run, the oldest first
};

}  // namespace paged::test
