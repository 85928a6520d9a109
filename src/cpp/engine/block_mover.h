// SPDX-License-Identifier: Apache-2.0
// Copies blocks between an executor's pool and the tiers below it, on a thread of its own: the step loop never waits
// for it. Owns the tiers' memory and file. Transfers run one after the other: those to the device first, then those
// from it, then those from the host to the disk, each in the order they were started.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "base/condition.h"
#include "core/block_manager.h"
#include "engine/block_file.h"
#include "exec/kv_blocks.h"

namespace paged {

class BlockMover {
 public:
  using OnDone = std::function<void(TransferId, TransferEnd)>;

  // `on_done` is called on its thread, or by cancel(). `blocks` outlives it. `folder`: for the disk's file, if it has
  // slots there.
  BlockMover(KvBlocks& blocks, const TierSizes& sizes, const std::string& folder, OnDone on_done);
  ~BlockMover();  // after the copy that runs; what has not begun is left
  BlockMover(const BlockMover&) = delete;
  BlockMover& operator=(const BlockMover&) = delete;

  std::int64_t block_bytes() const { return blocks_.block_bytes(); }
  void start(BlockTransfer transfer);
  // What has not begun of it is left, and it ends; nothing if it has ended.
  void cancel(TransferId id);
  void check();  // throws InternalError if a copy between the device and the host has failed

 private:
  void loop();
  TransferEnd copy(const BlockTransfer& transfer);
  void copy(const BlockTransfer::Copy& copy);  // throws BlockFileError where only the disk has failed
  bool goes_on();

  KvBlocks& blocks_;
  OnDone on_done_;
  std::shared_ptr<std::byte> memory_;  // [host slots] blocks, then one on its way to or from the disk
  const std::int32_t staging_;         // the slot of that one
  std::unique_ptr<BlockFile> file_;    // null: no disk

  std::mutex mutex_;  // guards what follows
  Condition wake_;
  std::map<std::pair<int, TransferId>, BlockTransfer> queue_;  // by urgency
  TransferId running_ = 0;
  bool is_cancelled_ = false;  // the running one
  std::string failure_;
  bool stopping_ = false;

  std::thread thread_;  // last: starts when all else stands
};

}  // namespace paged
