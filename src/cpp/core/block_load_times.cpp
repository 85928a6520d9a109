// SPDX-License-Identifier: Apache-2.0
// The part of the block manager that weighs what the tiers below the device are worth: how long loads from each took
// lately, against computing the same tokens. What has not been measured costs nothing, and what was measured long ago
// counts for less and less, so that a tier that was slow once is tried again.
#include <cmath>

#include "core/block_manager.h"

namespace paged {
namespace {

constexpr double kNews = 0.5;            // the share of the last load in what is believed
constexpr double kHalfSeconds = 1800.0;  // after which half of it is

}  // namespace

void BlockManager::measure_loads(const Moving& moving, std::int32_t num_done, const TransferEnd& end) {
  for (const Tier tier : {Tier::kHost, Tier::kDisk}) {
    const double seconds = tier == Tier::kHost ? end.host_seconds : end.disk_seconds;
    std::int32_t count = 0;
    for (std::int32_t i = 0; i < num_done; ++i)
      count += moving.copies[static_cast<std::size_t>(i)].from.tier == tier ? 1 : 0;
    if (count == 0 || seconds <= 0.0) continue;
    const double believed = pressure_.load_seconds(tier);
    const double news = believed == 0.0 ? 1.0 : kNews;
    load_times_[index_of(tier)] = {believed + news * (seconds / count - believed), now_};
  }
  fade_load_times();
}

void BlockManager::fade_load_times() {
  const auto faded = [this](const LoadTime& time) {
    return time.seconds == 0.0 ? 0.0 : time.seconds * std::exp2((time.measured_at - now_) / kHalfSeconds);
  };
  pressure_.host_load_seconds = faded(load_times_[index_of(Tier::kHost)]);
  pressure_.disk_load_seconds = faded(load_times_[index_of(Tier::kDisk)]);
}

// Of the contents, which continue so many blocks, the first ones: as many as spare the most time.
std::size_t BlockManager::num_worth_loading(std::span<const ContentId> contents, std::int32_t num_before) const {
  double spared = 0.0, most = 0.0;
  std::size_t count = 0;
  for (std::size_t i = 0; i < contents.size(); ++i) {
    const std::int32_t num_tokens = (num_before + static_cast<std::int32_t>(i)) * config_.block_size;
    spared += block_cost(num_tokens, pressure_) - pressure_.load_seconds(lower_->find(contents[i])->nearest());
    if (spared < most) continue;
    most = spared;
    count = i + 1;
  }
  return count;
}

// The path of so many blocks that ends with it would be brought back from there, or a longer one is there already.
bool BlockManager::is_worth_a_copy(ContentId content, std::int32_t length, Tier tier) const {
  return copy_pays(tier, length * config_.block_size, pressure_) || lower_->continues_in(content, tier);
}

std::vector<Tier> BlockManager::tiers_worth_a_copy(BlockId block) const {
  std::vector<Tier> tiers;
  for (const Tier tier : {Tier::kHost, Tier::kDisk})
    if (lower_->sizes().of(tier) > 0 && is_worth_a_copy(cache_.content_id(block), order_.depth(block) + 1, tier))
      tiers.push_back(tier);
  return tiers;
}

}  // namespace paged
