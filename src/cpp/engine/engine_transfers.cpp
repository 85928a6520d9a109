// SPDX-License-Identifier: Apache-2.0
// The engine's part in moving blocks: what the core wants moved goes to the mover, whose word comes through the inbox.
#include <memory>
#include <utility>

#include "base/check.h"
#include "engine/engine.h"

namespace paged {

void Engine::make_mover(const std::string& disk_folder) {
  const TierSizes sizes{config_.num_host_blocks, config_.num_disk_blocks};
  if (sizes.host == 0 && sizes.disk == 0) return;
  PAGED_CHECK(executor_->kv_blocks() != nullptr,
              "this executor's blocks cannot be moved: it has no tiers below the device");
  const auto on_done = [this](TransferId id, TransferEnd end) {
    post({nullptr, 0, nullptr, FinishReason::kNone, nullptr, id, std::move(end)});
  };
  mover_ = std::make_unique<BlockMover>(*executor_->kv_blocks(), sizes, disk_folder, on_done);
}

void Engine::start_transfers() {
  if (mover_ == nullptr) return;
  for (BlockTransfer& transfer : scheduler_->take_transfers()) mover_->start(std::move(transfer));
  for (const TransferId id : scheduler_->take_cancelled()) mover_->cancel(id);
}

void Engine::finish_transfer(TransferId id, const TransferEnd& end) {
  mover_->check();  // before anybody uses what it should have copied
  scheduler_->finish_transfer(id, end);
}

}  // namespace paged
