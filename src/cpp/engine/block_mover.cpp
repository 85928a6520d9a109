// SPDX-License-Identifier: Apache-2.0
#include "engine/block_mover.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "base/blocked_signals.h"
#include "base/check.h"

namespace paged {
namespace {

int urgency_of(const BlockTransfer& transfer) { return transfer.is_load() ? 0 : transfer.is_spill() ? 2 : 1; }

}  // namespace

BlockMover::BlockMover(KvBlocks& blocks, const TierSizes& sizes, const std::string& folder, OnDone on_done)
    : blocks_(blocks), on_done_(std::move(on_done)), staging_(sizes.host) {
  if (sizes.disk > 0) file_ = std::make_unique<BlockFile>(folder, sizes.disk, blocks.block_bytes());
  memory_ = blocks.allocate_host((std::int64_t{sizes.host} + (sizes.disk > 0 ? 1 : 0)) * blocks.block_bytes());
  const BlockedSignals blocked;
  thread_ = std::thread([this] { loop(); });
}

BlockMover::~BlockMover() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_->notify_one();
  thread_.join();
}

void BlockMover::start(BlockTransfer transfer) {
  {
    const std::lock_guard lock(mutex_);
    const std::pair key(urgency_of(transfer), transfer.id);
    queue_.emplace(key, std::move(transfer));
  }
  wake_->notify_one();
}

void BlockMover::cancel(TransferId id) {
  {
    const std::lock_guard lock(mutex_);
    is_cancelled_ |= running_ == id;
    const auto queued =
        std::find_if(queue_.begin(), queue_.end(), [&](const auto& each) { return each.first.second == id; });
    if (queued == queue_.end()) return;
    queue_.erase(queued);
  }
  on_done_(id, {0});
}

void BlockMover::check() {
  const std::lock_guard lock(mutex_);
  PAGED_INVARIANT(failure_.empty(), "a block could not be moved: ", failure_);
}

void BlockMover::loop() {
  while (true) {
    BlockTransfer transfer;
    {
      std::unique_lock lock(mutex_);
      running_ = 0;
      wake_->wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      transfer = std::move(queue_.extract(queue_.begin()).mapped());
      running_ = transfer.id;
      is_cancelled_ = false;
    }
    TransferEnd end;
    try {
      end = copy(transfer);
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex_);
      failure_ = error.what();
    }
    on_done_(transfer.id, std::move(end));
  }
}

TransferEnd BlockMover::copy(const BlockTransfer& transfer) {
  TransferEnd end{0};
  for (const BlockTransfer::Copy& each : transfer.copies) {
    if (!goes_on()) break;
    const auto began = std::chrono::steady_clock::now();
    try {
      copy(each);
    } catch (const BlockFileError& error) {
      end.error = error.what();
      break;
    }
    ++end.num_done;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    (each.from.tier == Tier::kDisk ? end.disk_seconds : end.host_seconds) += seconds.count();
  }
  return end;
}

bool BlockMover::goes_on() {
  const std::lock_guard lock(mutex_);
  return !stopping_ && !is_cancelled_;
}

void BlockMover::copy(const BlockTransfer::Copy& copy) {
  const auto& [from, to] = copy;
  const std::int32_t slot = from.tier == Tier::kHost ? from.index : to.tier == Tier::kHost ? to.index : staging_;
  std::byte* const memory = memory_.get() + slot * blocks_.block_bytes();
  if (from.tier == Tier::kDevice) blocks_.read(from.index, memory);
  if (from.tier == Tier::kDisk) file_->read(from.index, memory);
  if (to.tier == Tier::kDevice) blocks_.write(to.index, memory);
  if (to.tier == Tier::kDisk) file_->write(to.index, memory);
}

}  // namespace paged
