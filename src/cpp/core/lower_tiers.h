// SPDX-License-Identifier: Apache-2.0
// Which cached blocks have copies below the device, in the host's memory, on its disk or in both, and in which slots. A
// copy is found as a block is (prefix_cache.h): by the content before it and its tokens; it keeps the content id of the
// block, so that what continues it is still found when the block has gone from the device and come back.
//
// Every copy is reachable: the content before it is on the device or has a copy too. A slot that is being read or
// written stays as it is; of the others of its tier the least recently used is given to a new copy. What has its last
// slot taken takes with it what continued it, unless the device has it; where that is just being moved, its slots are
// given back when that has ended.
//
// Of the host's slots only those are given away whose content is on the disk as well, or is not worth it, or where
// there is no disk: to_spill() tells what has to go there before.
//
// Operations are O(block_size), or O(1) for each copy that goes and each slot that is busy.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/prefix_cache.h"
#include "core/types.h"

namespace paged {

using TierSlot = std::int32_t;
inline constexpr TierSlot kNoSlot = -1;

struct TierSizes {
  std::int32_t host = 0;  // slots
  std::int32_t disk = 0;
  std::int32_t of(Tier tier) const { return tier == Tier::kHost ? host : tier == Tier::kDisk ? disk : 0; }
};

class LowerTiers {
 public:
  struct Slot {
    TierSlot index = kNoSlot;  // none: it has no copy there
    bool is_written = false;
    std::int32_t num_readers = 0;
    std::list<ContentId>::iterator place = {};  // by use

    bool exists() const { return index != kNoSlot; }
    bool is_busy() const { return exists() && (!is_written || num_readers > 0); }
  };
  struct Copy {
    ContentId content = 0;
    ContentId parent = 0;
    std::vector<TokenId> tokens = {};
    std::int32_t depth = 0;  // blocks before it
    double used_at = 0.0;
    std::int32_t num_loads = 0;  // that are under way
    std::array<Slot, 2> slots = {};

    const Slot& in(Tier tier) const { return slots[tier == Tier::kHost ? 0 : 1]; }
    Slot& in(Tier tier) { return slots[tier == Tier::kHost ? 0 : 1]; }
    bool is_in(Tier tier) const { return in(tier).is_written; }
    Tier nearest() const {
      return is_in(Tier::kHost) ? Tier::kHost : is_in(Tier::kDisk) ? Tier::kDisk : Tier::kNowhere;
    }
  };
  // Whether a copy is worth its place on the disk.
  using IsWorthDisk = std::function<bool(const Copy&)>;

  // `device`: what has not gone from there.
  LowerTiers(const TierSizes& sizes, PrefixCache& device, BlockHash hash, IsWorthDisk is_worth_disk);

  const Copy* find(ContentId parent, std::span<const TokenId> tokens) const;
  const Copy* find(ContentId content) const;
  void touch(ContentId content);
  // The copy goes before all others of its tier.
  void expose(ContentId content, Tier tier);
  void set_now(double seconds) { now_ = seconds; }

  // A slot for a copy of the device's block, or of one on the host for the disk; kNoSlot: there is none to be given.
  // Until end_store() it is no copy; `is_done`: false: it never will be.
  TierSlot begin_store(BlockId block, std::int32_t depth, Tier tier);
  TierSlot begin_spill(ContentId content);
  void end_store(ContentId content, Tier tier, bool is_done);
  void begin_read(ContentId content, Tier tier) { ++copies_.at(content).in(tier).num_readers; }
  void end_read(ContentId content, Tier tier);
  void begin_load(ContentId content, Tier tier);  // of one on its way to the device
  void end_load(ContentId content, Tier tier);
  // What could not be read is no copy any more.
  void discard(ContentId content, Tier tier);

  // The content has gone from the device.
  void left_device(ContentId content);

  // What must be copied to the disk, the least recently used first, for so many slots of the host to be there to give.
  std::vector<ContentId> to_spill(std::int32_t num_ready) const;
  // Nothing more is written to the disk; what is there can be read.
  void seal_disk() { disk_is_sealed_ = true; }
  bool is_sealed(Tier tier) const { return tier == Tier::kDisk && disk_is_sealed_; }

  std::int32_t size(Tier tier) const;  // slots that are used
  const TierSizes& sizes() const { return sizes_; }
  std::int32_t num_continuations(ContentId content) const {
    return static_cast<std::int32_t>(continuations_.count(content));
  }

  bool continues_in(ContentId content, Tier tier) const;  // what continues it has a slot there

  // Throws InternalError with what is wrong.
  void check_integrity() const;

 private:
  bool is_on_device(const Copy& copy) const { return device_.find(copy.parent, copy.tokens) != kNoBlock; }
  bool waits_for_disk(const Copy& copy) const;
  Copy& at(ContentId content);
  std::int32_t num_free(Tier tier) const {
    return sizes_.of(tier) - num_used_[tier == Tier::kHost ? 0 : 1] +
           static_cast<std::int32_t>(free_slots(tier).size());
  }
  std::vector<TierSlot>& free_slots(Tier tier) { return free_slots_[tier == Tier::kHost ? 0 : 1]; }
  const std::vector<TierSlot>& free_slots(Tier tier) const { return free_slots_[tier == Tier::kHost ? 0 : 1]; }
  std::list<ContentId>& by_use(Tier tier) { return by_use_[tier == Tier::kHost ? 0 : 1]; }
  const std::list<ContentId>& by_use(Tier tier) const { return by_use_[tier == Tier::kHost ? 0 : 1]; }
  TierSlot take_slot(Tier tier);
  void put_into(Copy& copy, Tier tier, TierSlot slot);
  bool make_room(Tier tier);
  void give_back(Copy& copy, Tier tier);
  void give_up(ContentId content, Tier tier);
  void forget(ContentId content);
  void forget_continuations(ContentId content);
  void settle_forgotten(Copy& copy, Tier tier);

  TierSizes sizes_;
  PrefixCache& device_;
  BlockHash hash_;
  IsWorthDisk is_worth_disk_;
  double now_ = 0.0;
  bool disk_is_sealed_ = false;
  std::array<std::vector<TierSlot>, 2> free_slots_;  // that were used before
  std::array<TierSlot, 2> num_used_ = {};            // slots from here on never were
  std::array<std::list<ContentId>, 2> by_use_;       // the least recently used first
  std::unordered_map<ContentId, Copy> copies_;
  std::unordered_multimap<std::uint64_t, ContentId> by_hash_;
  std::unordered_multimap<ContentId, ContentId> continuations_;  // copies by what is before them
  std::unordered_map<ContentId, Copy> forgotten_;                // that are being moved
};

}  // namespace paged
