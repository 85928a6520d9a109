// SPDX-License-Identifier: Apache-2.0
#include "core/lower_tiers.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace paged {
namespace {

constexpr std::array kTiers = {Tier::kHost, Tier::kDisk};

template <typename Map>
void erase_pair(Map& map, std::uint64_t key, ContentId value) {
  auto [at, end] = map.equal_range(key);
  while (at != end && at->second != value) ++at;
  PAGED_INVARIANT(at != end, "content ", value, " has no index");
  map.erase(at);
}

bool has_slots(const LowerTiers::Copy& copy) { return copy.slots[0].exists() || copy.slots[1].exists(); }

}  // namespace

LowerTiers::LowerTiers(const TierSizes& sizes, PrefixCache& device, BlockHash hash, IsWorthDisk is_worth_disk)
    : sizes_(sizes), device_(device), hash_(hash), is_worth_disk_(std::move(is_worth_disk)) {}

const LowerTiers::Copy* LowerTiers::find(ContentId parent, std::span<const TokenId> tokens) const {
  auto [at, end] = by_hash_.equal_range(hash_(parent, tokens));
  for (; at != end; ++at) {
    const Copy& copy = copies_.at(at->second);
    if (copy.parent == parent && std::equal(tokens.begin(), tokens.end(), copy.tokens.begin())) return &copy;
  }
  return nullptr;
}

const LowerTiers::Copy* LowerTiers::find(ContentId content) const {
  const auto found = copies_.find(content);
  return found == copies_.end() ? nullptr : &found->second;
}

LowerTiers::Copy& LowerTiers::at(ContentId content) {
  const auto found = copies_.find(content);
  return found == copies_.end() ? forgotten_.at(content) : found->second;
}

void LowerTiers::touch(ContentId content) {
  Copy& copy = copies_.at(content);
  copy.used_at = now_;
  for (const Tier tier : kTiers)
    if (copy.in(tier).exists()) by_use(tier).splice(by_use(tier).end(), by_use(tier), copy.in(tier).place);
}

void LowerTiers::expose(ContentId content, Tier tier) {
  const Slot& slot = copies_.at(content).in(tier);
  if (slot.exists()) by_use(tier).splice(by_use(tier).begin(), by_use(tier), slot.place);
}

TierSlot LowerTiers::begin_store(BlockId block, std::int32_t depth, Tier tier) {
  const ContentId content = device_.content_id(block);
  const TierSlot slot = take_slot(tier);
  if (slot == kNoSlot) return slot;
  const auto [found, is_new] = copies_.try_emplace(content);
  Copy& copy = found->second;
  if (is_new) {
    const std::span<const TokenId> tokens = device_.tokens(block);
    copy = {content, device_.parent_id(block), {tokens.begin(), tokens.end()}, depth, now_};
    by_hash_.emplace(hash_(copy.parent, tokens), content);
    continuations_.emplace(copy.parent, content);
    if (SaltTable::is_root(copy.parent)) device_.salts().retain(copy.parent);
  }
  put_into(copy, tier, slot);
  return slot;
}

TierSlot LowerTiers::begin_spill(ContentId content) {
  ++copies_.at(content).in(Tier::kHost).num_readers;  // stays, whatever goes for it
  const TierSlot slot = take_slot(Tier::kDisk);
  if (slot == kNoSlot || !copies_.contains(content)) {  // what it continues has gone for it
    if (slot != kNoSlot) free_slots(Tier::kDisk).push_back(slot);
    end_read(content, Tier::kHost);
    return kNoSlot;
  }
  put_into(copies_.at(content), Tier::kDisk, slot);
  return slot;
}

void LowerTiers::put_into(Copy& copy, Tier tier, TierSlot slot) {
  PAGED_INVARIANT(!copy.in(tier).exists(), "content ", copy.content, " is in two slots of a tier");
  copy.in(tier) = {slot, false, 0, by_use(tier).insert(by_use(tier).end(), copy.content)};
}

void LowerTiers::end_store(ContentId content, Tier tier, bool is_done) {
  if (!is_done) return discard(content, tier);
  Copy& copy = at(content);
  copy.in(tier).is_written = true;
  settle_forgotten(copy, tier);
}

void LowerTiers::end_read(ContentId content, Tier tier) {
  Copy& copy = at(content);
  --copy.in(tier).num_readers;
  settle_forgotten(copy, tier);
}

void LowerTiers::begin_load(ContentId content, Tier tier) {
  begin_read(content, tier);
  ++copies_.at(content).num_loads;
}

void LowerTiers::end_load(ContentId content, Tier tier) {
  --at(content).num_loads;
  end_read(content, tier);
}

void LowerTiers::discard(ContentId content, Tier tier) {
  Copy& copy = at(content);
  copy.in(tier).is_written = true;  // as far as it matters now
  if (forgotten_.contains(content)) return settle_forgotten(copy, tier);
  give_up(content, tier);
}

// A forgotten copy's slot is given back when it is not needed any more.
void LowerTiers::settle_forgotten(Copy& copy, Tier tier) {
  const ContentId content = copy.content;
  if (!forgotten_.contains(content) || copy.in(tier).is_busy()) return;
  free_slots(tier).push_back(std::exchange(copy.in(tier).index, kNoSlot));
  if (!has_slots(copy)) forgotten_.erase(content);
}

void LowerTiers::left_device(ContentId content) {
  if (!copies_.contains(content)) forget_continuations(content);
}

TierSlot LowerTiers::take_slot(Tier tier) {
  if (is_sealed(tier) || (num_free(tier) == 0 && !make_room(tier))) return kNoSlot;
  if (free_slots(tier).empty()) return num_used_[tier == Tier::kHost ? 0 : 1]++;
  const TierSlot slot = free_slots(tier).back();
  free_slots(tier).pop_back();
  return slot;
}

bool LowerTiers::waits_for_disk(const Copy& copy) const {
  return sizes_.disk > 0 && !disk_is_sealed_ && !copy.is_in(Tier::kDisk) && is_worth_disk_(copy);
}

bool LowerTiers::make_room(Tier tier) {
  for (const ContentId content : by_use(tier)) {
    const Copy& copy = copies_.at(content);
    if (copy.in(tier).is_busy()) continue;
    if (tier == Tier::kHost && waits_for_disk(copy)) return false;
    give_up(content, tier);
    return true;
  }
  return false;
}

std::vector<ContentId> LowerTiers::to_spill(std::int32_t num_ready) const {
  std::vector<ContentId> contents;
  num_ready -= num_free(Tier::kHost);
  for (auto content = by_use(Tier::kHost).begin(); num_ready > 0 && content != by_use(Tier::kHost).end(); ++content) {
    const Copy& copy = copies_.at(*content);
    if (copy.in(Tier::kHost).is_busy() && !copy.in(Tier::kDisk).exists()) continue;
    if (waits_for_disk(copy) && !copy.in(Tier::kDisk).exists()) contents.push_back(*content);
    --num_ready;
  }
  return contents;
}

void LowerTiers::give_back(Copy& copy, Tier tier) {
  by_use(tier).erase(copy.in(tier).place);
  free_slots(tier).push_back(copy.in(tier).index);
  copy.in(tier) = {};
}

void LowerTiers::give_up(ContentId content, Tier tier) {
  Copy& copy = copies_.at(content);
  PAGED_INVARIANT(!copy.in(tier).is_busy(), "the copy of content ", content, " goes while it is read or written");
  give_back(copy, tier);
  if (has_slots(copy)) return;
  if (!is_on_device(copy)) forget_continuations(content);
  forget(content);
}

void LowerTiers::forget(ContentId content) {
  Copy& copy = copies_.at(content);
  PAGED_INVARIANT(copy.num_loads == 0, "the copy of content ", content, " goes on its way to the device");
  erase_pair(by_hash_, hash_(copy.parent, copy.tokens), content);
  erase_pair(continuations_, copy.parent, content);
  if (SaltTable::is_root(copy.parent)) device_.salts().release(copy.parent);
  for (const Tier tier : kTiers) {
    Slot& slot = copy.in(tier);
    if (slot.is_busy())
      by_use(tier).erase(slot.place);
    else if (slot.exists())
      give_back(copy, tier);
  }
  if (has_slots(copy)) forgotten_.emplace(content, std::move(copy));
  copies_.erase(content);
}

void LowerTiers::forget_continuations(ContentId content) {
  std::vector<ContentId> to_forget;
  const auto take = [&](ContentId of) {
    auto [at, end] = continuations_.equal_range(of);
    for (; at != end; ++at) to_forget.push_back(at->second);
  };
  take(content);
  while (!to_forget.empty()) {
    const ContentId forgotten = to_forget.back();
    to_forget.pop_back();
    take(forgotten);
    forget(forgotten);
  }
}

bool LowerTiers::continues_in(ContentId content, Tier tier) const {
  const auto [begin, end] = continuations_.equal_range(content);
  return std::any_of(begin, end, [&](const auto& each) { return copies_.at(each.second).in(tier).exists(); });
}

std::int32_t LowerTiers::size(Tier tier) const { return sizes_.of(tier) - num_free(tier); }

void LowerTiers::check_integrity() const {
  PAGED_INVARIANT(by_hash_.size() == copies_.size() && continuations_.size() == copies_.size(),
                  "copies are not in all indices");
  for (const Tier tier : kTiers) {
    std::vector<bool> used(static_cast<std::size_t>(sizes_.of(tier)));
    std::size_t num_used = 0, num_kept = 0;
    const auto use = [&](const Copy& copy) {
      if (!copy.in(tier).exists()) return;
      const auto index = static_cast<std::size_t>(copy.in(tier).index);
      PAGED_INVARIANT(!used.at(index), "slot ", index, " is used twice");
      used[index] = true;
      ++num_used;
    };
    for (const auto& [content, copy] : copies_) use(copy), num_kept += copy.in(tier).exists() ? 1 : 0;
    for (const auto& [content, copy] : forgotten_) use(copy);
    PAGED_INVARIANT(std::cmp_equal(num_used, size(tier)), "slots: ", num_used, " used, ", num_free(tier), " free of ",
                    used.size());
    PAGED_INVARIANT(by_use(tier).size() == num_kept, "copies are not in the order of use");
  }
  std::unordered_map<ContentId, bool> on_device;
  device_.for_each([&](BlockId block) { on_device[device_.content_id(block)] = true; });
  for (const auto& [content, copy] : copies_) {
    PAGED_INVARIANT(has_slots(copy), "the copy of ", content, " is nowhere");
    PAGED_INVARIANT(find(copy.parent, copy.tokens) == &copy, "the copy of ", content, " is not found by its identity");
    const BlockId block = device_.find(copy.parent, copy.tokens);
    PAGED_INVARIANT(block == kNoBlock || device_.content_id(block) == content, "content ", content, " has two ids");
    PAGED_INVARIANT(SaltTable::is_root(copy.parent) || copies_.contains(copy.parent) || on_device[copy.parent],
                    "the copy of content ", content, " cannot be reached");
  }
  for (const auto& [content, copy] : forgotten_)
    PAGED_INVARIANT(copy.slots[0].is_busy() || copy.slots[1].is_busy(), "content ", content, " is forgotten and kept");
}

}  // namespace paged
