// SPDX-License-Identifier: Apache-2.0
// What each tenant has in the cache: the blocks that its sessions own, each counted once however many of them own it,
// since sessions of different tenants share none. A tenant may have a floor: as long as it owns no more blocks than
// that, those of them that nobody references are protected, and nobody else gets them.
//
// Every operation is O(1); a tenant is forgotten when it has neither sessions nor a floor.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/types.h"

namespace paged {

inline constexpr TenantSlot kNoTenant = -1;
inline constexpr TenantSlot kDefaultTenant = 0;  // "": of requests without a session, too

class TenantLedger {
 public:
  struct Account {
    std::string name;
    std::int32_t num_sessions = 0;
    std::int32_t floor = 0;  // blocks
    std::int32_t num_owned = 0;
    std::int32_t num_free = 0;  // of those: referenced by nobody
    std::int32_t lane = 0;      // of the eviction order; 0: it has never had a floor
  };

  TenantLedger();

  // The slot of a name, which is its own until close().
  TenantSlot open(const std::string& name);
  void close(TenantSlot slot);
  void set_floor(TenantSlot slot, std::int32_t num_blocks, std::int32_t lane);  // one that is open

  void own(TenantSlot slot, bool is_free) { change(slot, 1, is_free ? 1 : 0); }
  void disown(TenantSlot slot, bool is_free) { change(slot, -1, is_free ? -1 : 0); }
  void freed(TenantSlot slot) { change(slot, 0, 1); }
  void taken(TenantSlot slot) { change(slot, 0, -1); }

  const Account& account(TenantSlot slot) const { return accounts_[static_cast<std::size_t>(slot)]; }
  // Whether a free block of `slot` may be taken for `asking`.
  bool may_lose(TenantSlot slot, TenantSlot asking) const {
    return slot == asking || account(slot).num_owned > account(slot).floor;
  }
  // Free blocks that are not for `asking`.
  std::int32_t num_protected_from(TenantSlot asking) const {
    return num_protected_ - (asking == kNoTenant ? 0 : num_protected(account(asking)));
  }
  std::int32_t sum_of_floors() const { return sum_of_floors_; }

  template <typename Function>
  void for_each(const Function& function) const {
    for (const auto& [name, slot] : slots_) function(account(slot));
  }

 private:
  static std::int32_t num_protected(const Account& account);
  void change(TenantSlot slot, std::int32_t num_owned, std::int32_t num_free);
  void forget_if_empty(TenantSlot slot);

  std::vector<Account> accounts_;
  std::vector<TenantSlot> unused_;
  std::unordered_map<std::string, TenantSlot> slots_;
  std::int32_t num_protected_ = 0;
  std::int32_t sum_of_floors_ = 0;
};

}  // namespace paged
