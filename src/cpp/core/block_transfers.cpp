// SPDX-License-Identifier: Apache-2.0
// The part of the block manager that moves blocks between the device and the tiers below it. It decides; whoever runs
// the device copies (take_transfers) and says how that ended (finish_transfer). Until then a transfer references the
// device's blocks, and the slots below that it reads and writes stay its own, whatever becomes of those who wanted it.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "core/block_manager.h"

namespace paged {
namespace {

constexpr std::size_t kSpillSize = 8;  // blocks of a transfer to the disk: what is loaded need not wait for more

}  // namespace

std::vector<BlockTransfer> BlockManager::take_transfers() { return std::exchange(new_transfers_, {}); }

std::vector<TransferId> BlockManager::take_cancelled() { return std::exchange(cancelled_, {}); }

// What transfers from the device hold besides: a share of the pool, and of what is free.
std::int32_t BlockManager::num_storable() const {
  const std::int32_t most = std::max(1, std::min(config_.num_blocks / 8, num_free_blocks() / 2));
  return num_free_blocks() == 0 ? 0 : most - num_moving_;
}

// From the first block of its path to this one.
std::vector<BlockId> BlockManager::path_to(BlockId block) const {
  std::vector<BlockId> path;
  for (; block != kNoBlock; block = order_.parent(block)) path.push_back(block);
  std::reverse(path.begin(), path.end());
  return path;
}

void BlockManager::begin_transfer(Moving moving) {
  BlockTransfer transfer{next_transfer_, moving.copies};
  (transfer.is_spill() ? num_spilling_ : num_moving_) += static_cast<std::int32_t>(moving.copies.size());
  num_leaving_ += moving.num_leaving;
  moving_.emplace(next_transfer_++, std::move(moving));
  new_transfers_.push_back(std::move(transfer));
}

// Where there is room first.
Place BlockManager::place_below(BlockId block, std::span<const Tier> tiers) {
  for (const Tier tier : tiers)
    if (const TierSlot slot = lower_->begin_store(block, order_.depth(block), tier); slot != kNoSlot)
      return {tier, slot};
  return {};
}

// Copies in the tier of the path's blocks from `begin` on; `leaves`: copies anywhere, of those that have none, for they
// leave the device then. Whoever references a block references those before it, so the transfer holds the path as far
// as it copies.
void BlockManager::store(std::vector<BlockId> path, std::size_t begin, Tier tier, bool leaves) {
  Moving moving;
  const std::vector<Tier> tiers = leaves ? tiers_worth_a_copy(path.back()) : std::vector{tier};
  std::size_t end = begin;
  for (; end < path.size(); ++end) {
    const LowerTiers::Copy* copy = lower_->find(cache_.content_id(path[end]));
    if (copy != nullptr && (leaves || copy->in(tier).exists() || copy->is_in(Tier::kHost))) continue;
    if (!leaves && num_storable() - std::ssize(moving.copies) <= 0) break;
    const Place to = place_below(path[end], tiers);
    if (to.index == kNoSlot) break;
    moving.copies.push_back({{Tier::kDevice, path[end]}, to});
    moving.contents.push_back(cache_.content_id(path[end]));
  }
  // The first of a path was used last, so that a path's end goes first.
  for (std::size_t i = end; i-- > begin;)
    if (lower_->find(cache_.content_id(path[i])) != nullptr) lower_->touch(cache_.content_id(path[i]));
  if (moving.copies.empty()) return;
  path.resize(end);
  for (const BlockId block : path) retain(block);
  moving.held = std::move(path);
  moving.num_leaving = leaves ? static_cast<std::int32_t>(end - begin) : 0;
  begin_transfer(std::move(moving));
}

StoredPath BlockManager::store_path(ContentId root, std::span<const TokenId> tokens, Tier tier) {
  if (lower_ == nullptr || lower_->sizes().of(tier) == 0) return {};
  spill_ahead();
  const auto size = static_cast<std::size_t>(config_.block_size);
  std::vector<BlockId> path;  // on the device, and what continues it below
  std::vector<ContentId> contents;
  for (ContentId parent = root; tokens.size() >= size; tokens = tokens.subspan(size), parent = contents.back()) {
    const BlockId block = cache_.find(parent, tokens.first(size));
    const LowerTiers::Copy* copy = lower_->find(parent, tokens.first(size));
    if (block == kNoBlock && (copy == nullptr || (tier == Tier::kHost && !copy->in(tier).exists()))) break;
    if (block != kNoBlock) path.push_back(block);
    contents.push_back(block != kNoBlock ? cache_.content_id(block) : copy->content);
  }
  if (tier == Tier::kDisk) spill(contents);
  store(std::move(path), 0, tier, false);
  if (tier == Tier::kDisk) expose_on_host(contents);
  StoredPath stored{static_cast<std::int32_t>(contents.size())};
  for (const ContentId content : contents) {
    const LowerTiers::Copy* copy = lower_->find(content);
    stored.num_stored += copy != nullptr && copy->in(tier).exists() ? 1 : 0;
  }
  return stored;
}

// Of a path, what nothing else continues: its end goes first.
void BlockManager::expose_on_host(std::span<const ContentId> contents) {
  std::size_t begin = contents.size();
  while (begin > 0 && lower_->num_continuations(contents[begin - 1]) <= (begin < contents.size() ? 1 : 0)) --begin;
  for (; begin < contents.size(); ++begin)
    if (lower_->find(contents[begin]) != nullptr) lower_->expose(contents[begin], Tier::kHost);
}

// From the host to the disk, as far as a share of the host's slots allows.
void BlockManager::spill(std::span<const ContentId> contents) {
  const std::int32_t most = std::max(1, lower_->sizes().host / 4);
  Moving moving;
  for (const ContentId content : contents) {
    if (num_spilling_ + std::ssize(moving.copies) >= most) break;
    const LowerTiers::Copy* copy = lower_->find(content);
    if (copy == nullptr || !copy->is_in(Tier::kHost) || copy->in(Tier::kDisk).exists()) continue;
    const Place from{Tier::kHost, copy->in(Tier::kHost).index};
    const TierSlot slot = lower_->begin_spill(content);
    if (slot == kNoSlot) continue;
    moving.copies.push_back({from, {Tier::kDisk, slot}});
    moving.contents.push_back(content);
    if (moving.copies.size() == kSpillSize) begin_transfer(std::exchange(moving, {}));
  }
  if (!moving.copies.empty()) begin_transfer(std::move(moving));
}

// Keeps slots of the host that can be given at once, as many as a transfer from the device may need.
void BlockManager::spill_ahead() {
  if (lower_->sizes().host == 0 || lower_->sizes().disk == 0) return;
  spill(lower_->to_spill(std::max(1, std::min(lower_->sizes().host / 4, config_.num_blocks / 8))));
}

// Keeps a few blocks blank, so that what is needed next takes nothing that has no copy.
void BlockManager::store_ahead() {
  if (lower_ == nullptr) return;
  spill_ahead();
  make_blank(std::max(1, config_.num_blocks / 32), true);
}

// `ahead`: what nobody would load again may as well be there until its block is needed.
void BlockManager::make_blank(std::int32_t count, bool ahead) {
  while (order_.num_blank() + num_leaving_ < count) {
    const auto by_age = [&](double age) { return policy_ == nullptr ? 0.0 : policy_->score_by_age(age, pressure_); };
    const BlockId block = order_.cached_victim(now_, by_age, [](std::int32_t lane) { return lane == 0; });
    if (block == kNoBlock) return;
    const bool needs_no_copy = order_.is_forgotten(block) || lower_->find(cache_.content_id(block)) != nullptr;
    const bool gets_none = !needs_no_copy && tiers_worth_a_copy(block).empty();
    if (gets_none && ahead) return;
    if (needs_no_copy || gets_none) {
      evict(block, 0);
      continue;
    }
    // What goes next, and those before it, for it would be their turn then.
    std::vector<BlockId> path = path_to(block);
    std::size_t begin = path.size() - 1;
    const auto most = static_cast<std::size_t>(count - order_.num_blank() - num_leaving_);
    while (begin > 0 && path.size() - begin < most && order_.is_free(path[begin - 1]) &&
           order_.num_children(path[begin - 1]) == 1)
      --begin;
    const std::size_t num_before = moving_.size();
    store(std::move(path), begin, Tier::kNowhere, true);
    if (moving_.size() == num_before) return;  // the tiers are full of what is on its way
  }
}

// Of the candidates from `begin` on those that follow each other below; nothing where one is on its way already.
std::vector<ContentId> BlockManager::loadable(ContentId parent, std::span<const TokenId> tokens,
                                              bool& on_its_way) const {
  std::vector<ContentId> contents;
  const auto size = static_cast<std::size_t>(config_.block_size);
  on_its_way = false;
  for (; tokens.size() >= size; tokens = tokens.subspan(size)) {
    const LowerTiers::Copy* copy = lower_->find(parent, tokens.first(size));
    if (copy == nullptr || copy->nearest() == Tier::kNowhere) break;
    on_its_way |= copy->num_loads > 0;
    contents.push_back(copy->content);
    parent = copy->content;
  }
  return contents;
}

// Of `held`, the path that they continue, the references become the transfer's. The blocks, of which so many are free,
// are its own until it has ended.
void BlockManager::load(const Sequence& taker, std::vector<BlockId> held, std::span<const ContentId> contents,
                        bool is_prefetch) {
  Moving moving{{}, {contents.begin(), contents.end()}, std::move(held), 0, taker.session, is_prefetch};
  for (const ContentId content : contents) {
    const Tier tier = lower_->find(content)->nearest();
    moving.copies.push_back({{tier, lower_->find(content)->in(tier).index}, {Tier::kDevice, kNoBlock}});
    lower_->begin_load(content, tier);
  }
  for (BlockTransfer::Copy& copy : moving.copies) copy.to.index = allocate(taker);  // which may take other copies away
  for (auto content = contents.rbegin(); content != contents.rend(); ++content) lower_->touch(*content);
  begin_transfer(std::move(moving));
}

// The sequence would be admitted, with blocks that have no copy yet: it waits for them, once.
bool BlockManager::waits_for_store(Sequence& sequence, std::int32_t num_new) {
  if (sequence.stores_until == 0) {
    make_blank(num_new, false);
    sequence.stores_until = next_transfer_ - 1;
  }
  const auto end = moving_.upper_bound(sequence.stores_until);
  return std::any_of(moving_.begin(), end, [](const auto& each) { return each.second.num_leaving > 0; });
}

// The sequence would be admitted, and its table shows what was found. True: what the tiers have of it is on its way, or
// begins to be; it waits, and holds nothing. What others took meanwhile is loaded again, but not for ever.
bool BlockManager::waits_for_load(Sequence& sequence) {
  const auto num_matched = std::ssize(sequence.block_table);
  const BlockId previous = num_matched == 0 ? kNoBlock : sequence.block_table.back();
  const ContentId parent = previous == kNoBlock ? sequence.root : cache_.content_id(previous);
  const std::int32_t num_candidates = num_servable_blocks(sequence);
  const std::ptrdiff_t begin = num_matched * config_.block_size;
  const std::ptrdiff_t end = std::ptrdiff_t{num_candidates} * config_.block_size;
  if (begin >= end) return false;
  bool on_its_way = false;
  const auto tokens = std::span<const TokenId>(sequence.tokens)
                          .subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  std::vector<ContentId> contents = loadable(parent, tokens, on_its_way);
  if (on_its_way) return true;
  contents.resize(num_worth_loading(contents, static_cast<std::int32_t>(num_matched)));
  if (contents.empty()) return false;
  if (sequence.num_loaded_blocks >= 2 * blocks_for(sequence.num_tokens())) return false;
  sequence.num_loaded_blocks += static_cast<std::int32_t>(contents.size());
  for (const BlockId block : sequence.block_table) retain(block);
  load(sequence, sequence.block_table, contents, false);
  return true;
}

std::int32_t BlockManager::prefetch(OwnerSlot owner, SessionId session, ContentId root,
                                    std::span<const TokenId> tokens) {
  if (lower_ == nullptr) return 0;
  const BlockId previous = adopt(owner, root, tokens);
  const ContentId parent = previous == kNoBlock ? root : cache_.content_id(previous);
  const auto begin = static_cast<std::size_t>(owners_.path_size(owner) * config_.block_size);
  bool on_its_way = false;
  std::vector<ContentId> contents = loadable(parent, tokens.subspan(std::min(begin, tokens.size())), on_its_way);
  if (on_its_way) return 0;
  Sequence taker;
  taker.owner = owner;
  taker.session = session;
  std::vector<BlockId> path = path_to(previous);
  for (const BlockId block : path) retain(block);  // for the transfer; they are not free then
  const std::int32_t most = std::min(num_free_blocks_for(taker) - num_held_free_, num_free_blocks() / 2) - num_moving_;
  contents.resize(std::min(contents.size(), static_cast<std::size_t>(std::max(0, most))));
  if (contents.empty())
    release_path(path, true);
  else
    load(taker, std::move(path), contents, true);
  return static_cast<std::int32_t>(contents.size());
}

void BlockManager::cancel_prefetch(SessionId session) {
  for (auto& [id, moving] : moving_)
    if (moving.session == session && std::exchange(moving.is_prefetch, false)) cancelled_.push_back(id);
}

bool BlockManager::is_loading(SessionId session) const {
  return std::any_of(moving_.begin(), moving_.end(), [&](const auto& each) { return each.second.session == session; });
}

std::int32_t BlockManager::num_loadable(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens) const {
  if (lower_ == nullptr) return 0;
  const BlockId previous = owners_.tail(owner);
  const auto begin = static_cast<std::size_t>(owners_.path_size(owner) * config_.block_size);
  bool on_its_way = false;
  return static_cast<std::int32_t>(std::ssize(loadable(previous == kNoBlock ? root : cache_.content_id(previous),
                                                       tokens.subspan(std::min(begin, tokens.size())), on_its_way)));
}

BlockId BlockManager::adopt(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens) {
  const auto size = static_cast<std::size_t>(config_.block_size);
  while (true) {
    const BlockId tail = owners_.tail(owner);
    const std::size_t begin = static_cast<std::size_t>(owners_.path_size(owner)) * size;
    if (begin + size > tokens.size()) return tail;
    const ContentId parent = tail == kNoBlock ? root : cache_.content_id(tail);
    const BlockId next = cache_.find(parent, tokens.subspan(begin, size));
    if (next == kNoBlock) return tail;
    own(owner, next);
  }
}

Residency BlockManager::residency(ContentId parent, std::span<const TokenId> tokens) const {
  Residency residency;
  const auto size = static_cast<std::size_t>(config_.block_size);
  for (; tokens.size() >= size; tokens = tokens.subspan(size)) {
    const BlockId block = cache_.find(parent, tokens.first(size));
    const LowerTiers::Copy* copy = lower_ == nullptr ? nullptr : lower_->find(parent, tokens.first(size));
    if (block == kNoBlock && copy == nullptr) break;
    residency.num_on_device += block != kNoBlock ? 1 : 0;
    residency.num_on_host += copy != nullptr && copy->is_in(Tier::kHost) ? 1 : 0;
    residency.num_on_disk += copy != nullptr && copy->is_in(Tier::kDisk) ? 1 : 0;
    parent = block != kNoBlock ? cache_.content_id(block) : copy->content;
  }
  return residency;
}

SessionId BlockManager::finish_transfer(TransferId id, const TransferEnd& end) {
  const auto found = moving_.find(id);
  PAGED_INVARIANT(found != moving_.end(), "transfer ", id, " ends, which never began");
  const Moving moving = std::move(found->second);
  moving_.erase(found);
  const BlockTransfer transfer{id, moving.copies};
  const auto count = static_cast<std::int32_t>(moving.copies.size());
  const std::int32_t num_done = std::min(end.num_done, count);
  (transfer.is_spill() ? num_spilling_ : num_moving_) -= count;
  num_failed_transfers_ += end.error.empty() ? 0 : 1;
  for (std::int32_t i = 0; i < num_done; ++i) {
    const auto& [from, to] = moving.copies[static_cast<std::size_t>(i)];
    transfer.is_load() ? ++traffic_[index_of(from.tier)].num_loaded : ++traffic_[index_of(to.tier)].num_stored;
  }
  if (transfer.is_load()) {
    measure_loads(moving, num_done, end);
    finish_load(moving, num_done, !end.error.empty());
  } else {
    if (!end.error.empty()) {
      write_error_ = end.error;
      lower_->seal_disk();
    }
    finish_store(moving, num_done);
  }
  spill_ahead();
  return moving.session;
}

void BlockManager::finish_store(const Moving& moving, std::int32_t num_done) {
  for (std::size_t i = 0; i < moving.copies.size(); ++i) {
    const auto& [from, to] = moving.copies[i];
    if (from.tier == Tier::kHost) lower_->end_read(moving.contents[i], Tier::kHost);
    lower_->end_store(moving.contents[i], to.tier, std::cmp_less(i, num_done));
  }
  release_path(moving.held, true);
  num_leaving_ -= moving.num_leaving;
  for (std::int32_t i = 0; i < moving.num_leaving; ++i) {
    const BlockId block = moving.held[moving.held.size() - 1 - static_cast<std::size_t>(i)];
    // It is used again, or has no copy.
    if (!order_.may_go(block) || lower_->find(cache_.content_id(block)) == nullptr) return;
    evict(block, 0);
  }
}

// Completed loads are cached, and as free as anything else that is.
void BlockManager::finish_load(const Moving& moving, std::int32_t num_done, bool failed) {
  std::vector<BlockId> loaded;
  BlockId previous = moving.held.empty() ? kNoBlock : moving.held.back();
  for (std::size_t i = 0; i < moving.copies.size(); ++i) {
    const auto& [from, to] = moving.copies[i];
    const LowerTiers::Copy& copy = *lower_->find(moving.contents[i]);
    const bool is_done = std::cmp_less(i, num_done);
    const BlockId twin = is_done ? cache_.find(copy.parent, copy.tokens) : kNoBlock;  // computed meanwhile
    if (is_done && twin == kNoBlock) {
      cache_block(to.index, copy.parent, copy.tokens, previous);
    } else {
      if (is_done) retain(twin);
      release(to.index);
    }
    previous = twin != kNoBlock ? twin : to.index;
    if (is_done) loaded.push_back(previous);
    lower_->end_load(moving.contents[i], from.tier);
  }
  if (failed) drop_unreadable(moving, static_cast<std::size_t>(num_done));
  release_path(loaded);
  release_path(moving.held, true);
}

// What continues it goes with it, unless the device has it.
void BlockManager::drop_unreadable(const Moving& moving, std::size_t failed) {
  lower_->discard(moving.contents[failed], moving.copies[failed].from.tier);
  std::int32_t num_lost = 0;
  for (std::size_t i = failed; i < moving.contents.size(); ++i)
    num_lost += lower_->find(moving.contents[i]) == nullptr ? 1 : 0;
  if (on_unreadable_ && moving.session != 0) on_unreadable_(moving.session, num_lost);
}

void BlockManager::cache_block(BlockId block, ContentId parent, std::span<const TokenId> tokens, BlockId previous) {
  const LowerTiers::Copy* copy = lower_ == nullptr ? nullptr : lower_->find(parent, tokens);
  cache_.insert(block, parent, tokens, copy == nullptr ? 0 : copy->content);
  order_.enter(block, previous);
}

void BlockManager::count_transfer_references(std::vector<std::int32_t>& references) const {
  std::int32_t num_moving = 0, num_spilling = 0;
  for (const auto& [id, moving] : moving_) {
    const BlockTransfer transfer{id, moving.copies};
    for (const BlockId block : moving.held) ++references[static_cast<std::size_t>(block)];
    if (transfer.is_load())
      for (const BlockTransfer::Copy& copy : moving.copies) ++references[static_cast<std::size_t>(copy.to.index)];
    (transfer.is_spill() ? num_spilling : num_moving) += static_cast<std::int32_t>(moving.copies.size());
  }
  PAGED_INVARIANT(num_moving == num_moving_ && num_spilling == num_spilling_, "blocks in transfer: ", num_moving,
                  " and ", num_spilling, " counted, ", num_moving_, " and ", num_spilling_, " kept");
}

}  // namespace paged
