// SPDX-License-Identifier: Apache-2.0
#include "core/host_tier.h"

#include <algorithm>

#include "base/check.h"

namespace paged {
namespace {

template <typename Map>
void erase_pair(Map& map, std::uint64_t key, ContentId value) {
  auto [at, end] = map.equal_range(key);
  while (at != end && at->second != value) ++at;
  PAGED_INVARIANT(at != end, "content ", value, " has no index");
  map.erase(at);
}

}  // namespace

HostTier::HostTier(std::int32_t num_slots, PrefixCache& device, BlockHash hash)
    : num_slots_(num_slots), device_(device), hash_(hash) {
  for (HostSlot slot = num_slots; slot-- > 0;) free_slots_.push_back(slot);
}

const HostTier::Copy* HostTier::find(ContentId parent, std::span<const TokenId> tokens) const {
  auto [at, end] = by_hash_.equal_range(hash_(parent, tokens));
  for (; at != end; ++at) {
    const Copy& copy = copies_.at(at->second);
    if (copy.parent == parent && std::equal(tokens.begin(), tokens.end(), copy.tokens.begin())) return &copy;
  }
  return nullptr;
}

const HostTier::Copy* HostTier::find(ContentId content) const {
  const auto found = copies_.find(content);
  return found == copies_.end() ? nullptr : &found->second;
}

void HostTier::touch(ContentId content) { by_use_.splice(by_use_.end(), by_use_, copies_.at(content).place); }

HostSlot HostTier::begin_store(BlockId block) {
  if (free_slots_.empty() && !make_room()) return kNoSlot;
  const ContentId content = device_.content_id(block), parent = device_.parent_id(block);
  const std::span<const TokenId> tokens = device_.tokens(block);
  Copy copy{content, parent, {tokens.begin(), tokens.end()}, free_slots_.back()};
  free_slots_.pop_back();
  copy.place = by_use_.insert(by_use_.end(), content);
  by_hash_.emplace(hash_(parent, tokens), content);
  continuations_.emplace(parent, content);
  if (SaltTable::is_root(parent)) device_.salts().retain(parent);
  return copies_.emplace(content, std::move(copy)).first->second.slot;
}

void HostTier::end_store(ContentId content) { copies_.at(content).is_written = true; }

void HostTier::left_device(ContentId content) {
  if (!copies_.contains(content)) drop_continuations(content);
}

bool HostTier::make_room() {
  for (const ContentId content : by_use_) {
    const Copy& copy = copies_.at(content);
    if (copy.is_busy()) continue;
    const bool leaves = !is_on_device(copy);
    // What is read or written of it is on its way to or from the device, and it with it.
    if (leaves) drop_continuations(content);
    erase(content);
    return true;
  }
  return false;
}

void HostTier::erase(ContentId content) {
  const Copy& copy = copies_.at(content);
  PAGED_INVARIANT(!copy.is_busy(), "the copy of content ", content, " goes while it is read or written");
  free_slots_.push_back(copy.slot);
  by_use_.erase(copy.place);
  erase_pair(by_hash_, hash_(copy.parent, copy.tokens), content);
  erase_pair(continuations_, copy.parent, content);
  if (SaltTable::is_root(copy.parent)) device_.salts().release(copy.parent);
  copies_.erase(content);
}

void HostTier::drop_continuations(ContentId content) {
  std::vector<ContentId> to_drop;
  const auto take = [&](ContentId of) {
    auto [at, end] = continuations_.equal_range(of);
    for (; at != end; ++at) to_drop.push_back(at->second);
  };
  take(content);
  while (!to_drop.empty()) {
    const ContentId dropped = to_drop.back();
    to_drop.pop_back();
    take(dropped);
    erase(dropped);
  }
}

void HostTier::check_integrity() const {
  PAGED_INVARIANT(copies_.size() + free_slots_.size() == static_cast<std::size_t>(num_slots_),
                  "slots: ", copies_.size(), " used, ", free_slots_.size(), " free of ", num_slots_);
  PAGED_INVARIANT(
      by_use_.size() == copies_.size() && by_hash_.size() == copies_.size() && continuations_.size() == copies_.size(),
      "copies are not in all indices");
  std::vector<bool> used(static_cast<std::size_t>(num_slots_));
  std::unordered_map<ContentId, bool> on_device;
  device_.for_each([&](BlockId block) { on_device[device_.content_id(block)] = true; });
  for (const auto& [content, copy] : copies_) {
    PAGED_INVARIANT(!used[static_cast<std::size_t>(copy.slot)], "slot ", copy.slot, " is used twice");
    used[static_cast<std::size_t>(copy.slot)] = true;
    PAGED_INVARIANT(find(copy.parent, copy.tokens) == &copy, "the copy of ", content, " is not found by its identity");
    const BlockId block = device_.find(copy.parent, copy.tokens);
    PAGED_INVARIANT(block == kNoBlock || device_.content_id(block) == content, "content ", content, " has two ids");
    PAGED_INVARIANT(SaltTable::is_root(copy.parent) || copies_.contains(copy.parent) || on_device[copy.parent],
                    "the copy of content ", content, " cannot be reached");
  }
}

}  // namespace paged
