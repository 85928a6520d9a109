// SPDX-License-Identifier: Apache-2.0
#include "engine/block_mover.h"

#include <exception>
#include <utility>

#include "base/blocked_signals.h"
#include "base/check.h"

namespace paged {

BlockMover::BlockMover(KvBlocks& blocks, std::int32_t num_slots, OnDone on_done)
    : blocks_(blocks), on_done_(std::move(on_done)), memory_(blocks.allocate_host(num_slots * blocks.block_bytes())) {
  const BlockedSignals blocked;
  thread_ = std::thread([this] { loop(); });
}

BlockMover::~BlockMover() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void BlockMover::start(BlockTransfer transfer) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(transfer));
  }
  wake_.notify_one();
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
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      transfer = std::move(queue_.front());
      queue_.pop_front();
    }
    try {
      if (!copy(transfer)) return;
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex_);
      failure_ = error.what();
    }
    on_done_(transfer.id);
  }
}

bool BlockMover::copy(const BlockTransfer& transfer) {
  for (const auto& [block, slot] : transfer.copies) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return false;
    }
    std::byte* const on_host = memory_.get() + slot * blocks_.block_bytes();
    transfer.to_host ? blocks_.read(block, on_host) : blocks_.write(block, on_host);
  }
  return true;
}

}  // namespace paged
