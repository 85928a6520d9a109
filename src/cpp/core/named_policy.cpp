// SPDX-License-Identifier: Apache-2.0
#include "core/named_policy.h"

#include <cmath>

#include "base/check.h"
#include "core/hazard_policy.h"
#include "core/policies.h"

namespace paged {

std::shared_ptr<Policy> named_policy(const std::string& name, double ttl_seconds) {
  PAGED_CHECK(ttl_seconds > 0.0 && std::isfinite(ttl_seconds), "a time to live is above 0, got ", ttl_seconds);
  if (name == "lru") return std::make_shared<LruPolicy>();
  if (name == "ttl") return std::make_shared<TtlPolicy>(ttl_seconds);
  if (name == "priority") return std::make_shared<PriorityPolicy>();
  PAGED_CHECK(name == "hazard", "a policy is lru, ttl, priority or hazard, got ", name);
  return std::make_shared<HazardPolicy>();
}

}  // namespace paged
