// SPDX-License-Identifier: Apache-2.0
// The engine's block mover (engine/block_mover.h) as a model: one transfer at a time, loads first, then what leaves the
// device, then what goes from the host to the disk; each copy takes the time of the links that it goes over.
#pragma once

#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "core/block_manager.h"
#include "sim/replay.h"

namespace paged {

class ModelledMover {
 public:
  ModelledMover(const ReplayLink& link, const ReplayDisk& disk) : link_(link), disk_(disk) {}

  void start(BlockTransfer transfer, double now) {
    const std::pair key(transfer.is_load() ? 0 : transfer.is_spill() ? 2 : 1, transfer.id);
    queue_.emplace(key, std::move(transfer));
    if (!moving_) begin_next(now);
  }
  double next_end() const { return moving_ ? ends_at_ : std::numeric_limits<double>::infinity(); }
  // The one that ends at next_end().
  std::pair<TransferId, TransferEnd> take_ended() {
    const auto ended = *std::exchange(moving_, std::nullopt);
    if (!queue_.empty()) begin_next(ends_at_);
    return ended;
  }
  double link_seconds() const { return link_seconds_; }
  double disk_seconds() const { return disk_seconds_; }

 private:
  void begin_next(double now) {
    const BlockTransfer transfer = std::move(queue_.extract(queue_.begin()).mapped());
    TransferEnd end;
    double link = 0.0, disk = 0.0;
    for (const auto& [from, to] : transfer.copies) {
      const double over_link = from.tier == Tier::kDevice || to.tier == Tier::kDevice ? link_.per_block : 0.0;
      const double by_disk = from.tier == Tier::kDisk ? disk_.per_block_read
                             : to.tier == Tier::kDisk ? disk_.per_block_written
                                                      : 0.0;
      (from.tier == Tier::kDisk ? end.disk_seconds : end.host_seconds) += over_link + by_disk;
      link += over_link;
      disk += by_disk;
    }
    if (link > 0.0) link += link_.per_transfer;
    if (disk > 0.0) disk += disk_.per_transfer;
    link_seconds_ += link;
    disk_seconds_ += disk;
    ends_at_ = now + link + disk;
    moving_.emplace(transfer.id, std::move(end));
  }

  ReplayLink link_;
  ReplayDisk disk_;
  std::map<std::pair<int, TransferId>, BlockTransfer> queue_;
  std::optional<std::pair<TransferId, TransferEnd>> moving_;
  double ends_at_ = 0.0;
  double link_seconds_ = 0.0;  // that were busy, ever
  double disk_seconds_ = 0.0;
};

}  // namespace paged
