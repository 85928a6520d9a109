// SPDX-License-Identifier: Apache-2.0
// The part of the block manager that moves blocks between the device and the host's memory. It decides; whoever runs
// the device copies (take_transfers) and says when that is done (finish_transfer). Until then a transfer references the
// device's blocks, and its copies on the host stay, whatever becomes of those who wanted it.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "core/block_manager.h"

namespace paged {

std::vector<BlockTransfer> BlockManager::take_transfers() { return std::exchange(new_transfers_, {}); }

// What transfers to the host hold besides: a share of the pool, and of what is free.
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

// Copies of the path's blocks from `begin` on that have none; how many of these have one, or will. Whoever references a
// block references those before it, so the transfer holds the path as far as it copies.
std::int32_t BlockManager::store(std::vector<BlockId> path, std::size_t begin, bool then_evict) {
  BlockTransfer transfer{next_transfer_, true, {}};
  std::size_t end = begin;
  for (; end < path.size(); ++end) {
    if (host_->find(cache_.content_id(path[end])) != nullptr) continue;
    if (!then_evict && num_storable() <= 0) break;
    const HostSlot slot = host_->begin_store(path[end]);
    if (slot == kNoSlot) break;
    ++num_moving_;
    transfer.copies.push_back({path[end], slot});
  }
  // The first of a path was used last, so that a path's end goes first.
  std::int32_t num_stored = 0;
  for (std::size_t i = end; i-- > begin;) {
    const ContentId content = cache_.content_id(path[i]);
    if (host_->find(content) == nullptr) continue;  // a tier smaller than the path
    host_->touch(content);
    ++num_stored;
  }
  if (transfer.copies.empty()) return num_stored;
  path.resize(end);
  for (const BlockId block : path) retain(block);
  const std::int32_t num_leaving = then_evict ? static_cast<std::int32_t>(end - begin) : 0;
  num_leaving_ += num_leaving;
  moving_.emplace(next_transfer_++, Moving{true, num_leaving, std::move(path), transfer.copies, {}});
  new_transfers_.push_back(std::move(transfer));
  return num_stored;
}

std::int32_t BlockManager::store_path(OwnerSlot owner) {
  return host_ == nullptr ? 0 : store(path_to(owners_.tail(owner)), 0, false);
}

// Keeps a few blocks blank, so that what is needed next takes nothing that has no copy.
void BlockManager::store_ahead() {
  if (host_ != nullptr) make_blank(std::max(1, config_.num_blocks / 32));
}

void BlockManager::make_blank(std::int32_t count) {
  while (order_.num_blank() + num_leaving_ < count) {
    const auto by_age = [&](double age) { return policy_ == nullptr ? 0.0 : policy_->score_by_age(age, pressure_); };
    const BlockId block = order_.cached_victim(now_, by_age, [](std::int32_t lane) { return lane == 0; });
    if (block == kNoBlock) return;
    if (order_.is_forgotten(block) || host_->find(cache_.content_id(block)) != nullptr) {
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
    store(std::move(path), begin, true);
    if (moving_.size() == num_before) return;  // the tier is full of what is on its way
  }
}

// Of the candidates from `begin` on those that follow each other on the host; nothing where one is on its way already.
std::vector<ContentId> BlockManager::loadable(ContentId parent, std::span<const TokenId> tokens,
                                              bool& on_its_way) const {
  std::vector<ContentId> contents;
  const auto size = static_cast<std::size_t>(config_.block_size);
  on_its_way = false;
  for (; tokens.size() >= size; tokens = tokens.subspan(size)) {
    const HostTier::Copy* copy = host_->find(parent, tokens.first(size));
    if (copy == nullptr || !copy->is_written) break;
    on_its_way |= copy->num_readers > 0;
    contents.push_back(copy->content);
    parent = copy->content;
  }
  return contents;
}

// The blocks, of which so many are free, are the transfer's until it has ended.
void BlockManager::load(const Sequence& taker, BlockId previous, std::span<const ContentId> contents) {
  Moving moving{false, 0, path_to(previous), {}, {contents.begin(), contents.end()}};
  BlockTransfer transfer{next_transfer_, false, {}};
  for (const BlockId block : moving.held) retain(block);
  for (const ContentId content : contents) host_->begin_read(content);
  for (const ContentId content : contents) {
    moving.copies.push_back({allocate(taker), host_->find(content)->slot});
    ++num_moving_;
  }
  for (auto content = contents.rbegin(); content != contents.rend(); ++content) host_->touch(*content);
  transfer.copies = moving.copies;
  moving_.emplace(next_transfer_++, std::move(moving));
  new_transfers_.push_back(std::move(transfer));
}

// The sequence would be admitted, with blocks that have no copy yet: it waits for them, once.
bool BlockManager::waits_for_store(Sequence& sequence, std::int32_t num_new) {
  if (sequence.stores_until == 0) {
    make_blank(num_new);
    sequence.stores_until = next_transfer_ - 1;
  }
  return !moving_.empty() && moving_.begin()->first <= sequence.stores_until;
}

// The sequence would be admitted, and its table shows what was found. True: what the host has of it is on its way, or
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
  const std::vector<ContentId> contents = loadable(parent, tokens, on_its_way);
  if (contents.empty() || on_its_way) return on_its_way;
  if (sequence.num_loaded_blocks >= 2 * blocks_for(sequence.num_tokens())) return false;
  sequence.num_loaded_blocks += static_cast<std::int32_t>(contents.size());
  load(sequence, previous, contents);
  return true;
}

std::int32_t BlockManager::prefetch(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens) {
  if (host_ == nullptr) return 0;
  const BlockId previous = adopt(owner, root, tokens);
  const ContentId parent = previous == kNoBlock ? root : cache_.content_id(previous);
  const auto begin = static_cast<std::size_t>(owners_.path_size(owner) * config_.block_size);
  bool on_its_way = false;
  std::vector<ContentId> contents = loadable(parent, tokens.subspan(std::min(begin, tokens.size())), on_its_way);
  Sequence taker;
  taker.owner = owner;
  const std::int32_t most = std::min(num_free_blocks_for(taker) - num_held_free_, num_free_blocks() / 2) - num_moving_;
  const auto count = std::min<std::ptrdiff_t>(std::ssize(contents), std::max(0, most));
  if (on_its_way || count == 0) return 0;
  load(taker, previous, std::span(contents).first(static_cast<std::size_t>(count)));
  return static_cast<std::int32_t>(count);
}

std::int32_t BlockManager::num_loadable(OwnerSlot owner, ContentId root, std::span<const TokenId> tokens) const {
  if (host_ == nullptr) return 0;
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
    const HostTier::Copy* copy = host_ == nullptr ? nullptr : host_->find(parent, tokens.first(size));
    if (block == kNoBlock && copy == nullptr) break;
    residency.num_on_device += block != kNoBlock ? 1 : 0;
    residency.num_on_host += copy != nullptr && copy->is_written ? 1 : 0;
    parent = block != kNoBlock ? cache_.content_id(block) : copy->content;
  }
  return residency;
}

void BlockManager::finish_transfer(TransferId id) {
  const auto found = moving_.find(id);
  PAGED_INVARIANT(found != moving_.end(), "transfer ", id, " ends, which never began");
  const Moving moving = std::move(found->second);
  moving_.erase(found);
  num_moving_ -= static_cast<std::int32_t>(moving.copies.size());
  const std::int64_t count = std::ssize(moving.copies);
  (moving.to_host ? num_stored_blocks_ : num_loaded_blocks_) += count;
  moving.to_host ? finish_store(moving) : finish_load(moving);
}

void BlockManager::finish_store(const Moving& moving) {
  for (const auto& [block, slot] : moving.copies) host_->end_store(cache_.content_id(block));
  release_held(moving);
  num_leaving_ -= moving.num_leaving;
  for (std::int32_t i = 0; i < moving.num_leaving; ++i) {
    const BlockId block = moving.held[moving.held.size() - 1 - static_cast<std::size_t>(i)];
    if (!order_.may_go(block)) return;  // it is used again
    evict(block, 0);
  }
}

void BlockManager::release_held(const Moving& moving) {
  for (auto block = moving.held.rbegin(); block != moving.held.rend(); ++block) release(*block, true);
}

// Completed loads are cached, and as free as anything else that is.
void BlockManager::finish_load(const Moving& moving) {
  std::vector<BlockId> loaded;
  BlockId previous = moving.held.empty() ? kNoBlock : moving.held.back();
  for (std::size_t i = 0; i < moving.copies.size(); ++i) {
    const HostTier::Copy& copy = *host_->find(moving.contents[i]);
    const BlockId twin = cache_.find(copy.parent, copy.tokens);  // computed meanwhile
    if (twin != kNoBlock) {
      retain(twin);
      release(moving.copies[i].block);
    } else {
      cache_block(moving.copies[i].block, copy.parent, copy.tokens, previous);
    }
    previous = twin != kNoBlock ? twin : moving.copies[i].block;
    loaded.push_back(previous);
    host_->end_read(moving.contents[i]);
  }
  for (auto block = loaded.rbegin(); block != loaded.rend(); ++block) release(*block);
  release_held(moving);
}

void BlockManager::cache_block(BlockId block, ContentId parent, std::span<const TokenId> tokens, BlockId previous) {
  const HostTier::Copy* copy = host_ == nullptr ? nullptr : host_->find(parent, tokens);
  cache_.insert(block, parent, tokens, copy == nullptr ? 0 : copy->content);
  order_.enter(block, previous);
}

void BlockManager::count_transfer_references(std::vector<std::int32_t>& references) const {
  std::int32_t num_moving = 0;
  for (const auto& [id, moving] : moving_) {
    for (const BlockId block : moving.held) ++references[static_cast<std::size_t>(block)];
    if (!moving.to_host)
      for (const BlockTransfer::Copy& copy : moving.copies) ++references[static_cast<std::size_t>(copy.block)];
    num_moving += static_cast<std::int32_t>(moving.copies.size());
  }
  PAGED_INVARIANT(num_moving == num_moving_, "blocks in transfer: ", num_moving, " counted, ", num_moving_, " kept");
}

}  // namespace paged
