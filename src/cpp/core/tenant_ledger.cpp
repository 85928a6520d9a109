// SPDX-License-Identifier: Apache-2.0
#include "core/tenant_ledger.h"

#include <algorithm>

namespace paged {

TenantLedger::TenantLedger() : accounts_(1) { slots_.emplace("", kDefaultTenant); }

TenantSlot TenantLedger::open(const std::string& name) {
  const auto [found, is_new] = slots_.try_emplace(name, kNoTenant);
  if (is_new) {
    if (unused_.empty()) {
      unused_.push_back(static_cast<TenantSlot>(accounts_.size()));
      accounts_.emplace_back();
    }
    found->second = unused_.back();
    unused_.pop_back();
    accounts_[static_cast<std::size_t>(found->second)].name = name;
  }
  ++accounts_[static_cast<std::size_t>(found->second)].num_sessions;
  return found->second;
}

void TenantLedger::close(TenantSlot slot) {
  --accounts_[static_cast<std::size_t>(slot)].num_sessions;
  forget_if_empty(slot);
}

void TenantLedger::set_floor(TenantSlot slot, std::int32_t num_blocks, std::int32_t lane) {
  Account& account = accounts_[static_cast<std::size_t>(slot)];
  sum_of_floors_ += num_blocks - account.floor;
  num_protected_ -= num_protected(account);
  account.floor = num_blocks;
  account.lane = lane;
  num_protected_ += num_protected(account);
}

std::int32_t TenantLedger::num_protected(const Account& account) {
  const std::int32_t num_to_lose = std::max(0, account.num_owned - account.floor);
  return std::max(0, account.num_free - num_to_lose);
}

void TenantLedger::change(TenantSlot slot, std::int32_t num_owned, std::int32_t num_free) {
  Account& account = accounts_[static_cast<std::size_t>(slot)];
  num_protected_ -= num_protected(account);
  account.num_owned += num_owned;
  account.num_free += num_free;
  num_protected_ += num_protected(account);
}

void TenantLedger::forget_if_empty(TenantSlot slot) {
  Account& account = accounts_[static_cast<std::size_t>(slot)];
  if (slot == kDefaultTenant || account.num_sessions > 0 || account.floor > 0) return;
  slots_.erase(account.name);
  unused_.push_back(slot);
  const std::int32_t lane = account.lane;
  account = {};
  account.lane = lane;
}

}  // namespace paged
