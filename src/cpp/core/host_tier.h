// SPDX-License-Identifier: Apache-2.0
// Which cached blocks have a copy in the host's memory, and in which slot of it. A copy is found as a block is
// (prefix_cache.h): by the content before it and its tokens; it keeps the content id of the block, so that what
// continues it is still found when the block has gone from the device and come back.
//
// Every copy is reachable: the content before it is on the device or has a copy too. A copy that is being read or
// written stays; of the others the least recently used gives its slot to a new one, and what continued it goes with it
// unless the device has it.
//
// Operations are O(block_size), or O(1) for each copy that goes.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/prefix_cache.h"
#include "core/types.h"

namespace paged {

using HostSlot = std::int32_t;
inline constexpr HostSlot kNoSlot = -1;

class HostTier {
 public:
  struct Copy {
    ContentId content = 0;
    ContentId parent = 0;
    std::vector<TokenId> tokens = {};
    HostSlot slot = kNoSlot;
    bool is_written = false;
    std::int32_t num_readers = 0;
    std::list<ContentId>::iterator place = {};  // by use

    bool is_busy() const { return !is_written || num_readers > 0; }
  };

  // `device`: what has not gone from there.
  HostTier(std::int32_t num_slots, PrefixCache& device, BlockHash hash);

  const Copy* find(ContentId parent, std::span<const TokenId> tokens) const;
  const Copy* find(ContentId content) const;
  void touch(ContentId content);

  // A slot for a copy of the device's block, which has none; kNoSlot: all are busy. Until end_store() it is no copy.
  HostSlot begin_store(BlockId block);
  void end_store(ContentId content);
  void begin_read(ContentId content) { ++copies_.at(content).num_readers; }
  void end_read(ContentId content) { --copies_.at(content).num_readers; }

  // The content has gone from the device.
  void left_device(ContentId content);

  std::int32_t size() const { return static_cast<std::int32_t>(copies_.size()); }
  std::int32_t num_slots() const { return num_slots_; }

  // Throws InternalError with what is wrong.
  void check_integrity() const;

 private:
  bool is_on_device(const Copy& copy) const { return device_.find(copy.parent, copy.tokens) != kNoBlock; }
  bool make_room();
  void erase(ContentId content);
  void drop_continuations(ContentId content);

  std::int32_t num_slots_;
  PrefixCache& device_;
  BlockHash hash_;
  std::vector<HostSlot> free_slots_;
  std::unordered_map<ContentId, Copy> copies_;
  std::unordered_multimap<std::uint64_t, ContentId> by_hash_;
  std::unordered_multimap<ContentId, ContentId> continuations_;  // copies by what is before them
  std::list<ContentId> by_use_;                                  // the least recently used first
};

}  // namespace paged
