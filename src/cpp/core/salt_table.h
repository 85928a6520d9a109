// SPDX-License-Identifier: Apache-2.0
// Interns salts: equal salts get the same root id as long as somebody uses it, unlike salts never share one. A use is
// a living sequence or a cached first block; when the last is gone the salt is forgotten, so the table is bounded by
// what lives, however many tenants pass through. Nothing is lost by that: without its first block no cached prefix of
// the salt can be reached.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>

#include "base/check.h"
#include "core/types.h"

namespace paged {

class SaltTable {
 public:
  // The salt's root id, with one more use.
  ContentId acquire(const std::string& salt) {
    const auto [position, is_new] = ids_.try_emplace(salt, kRootBit | (next_id_ + 1));
    if (is_new) {
      ++next_id_;
      roots_.emplace(position->second, Root{salt, 0});
    }
    retain(position->second);
    return position->second;
  }

  void retain(ContentId root) { ++find(root)->second.num_uses; }

  void release(ContentId root) {
    const auto position = find(root);
    if (--position->second.num_uses > 0) return;
    ids_.erase(position->second.salt);
    roots_.erase(position);
  }

  static bool is_root(ContentId id) { return (id & kRootBit) != 0; }
  std::int64_t num_uses(ContentId root) const {
    const auto position = roots_.find(root);
    return position == roots_.end() ? 0 : position->second.num_uses;
  }
  std::size_t size() const { return roots_.size(); }

 private:
  static constexpr ContentId kRootBit = ContentId{1} << 63;

  struct Root {
    std::string salt;
    std::int64_t num_uses;
  };

  std::unordered_map<ContentId, Root>::iterator find(ContentId root) {
    const auto position = roots_.find(root);
    PAGED_INVARIANT(position != roots_.end(), "unknown salt root ", root);
    return position;
  }

  std::unordered_map<std::string, ContentId> ids_;
  std::unordered_map<ContentId, Root> roots_;
  ContentId next_id_ = 0;
};

}  // namespace paged
