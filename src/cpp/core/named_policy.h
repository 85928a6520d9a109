// SPDX-License-Identifier: Apache-2.0
// The policies that an engine may be asked for by name.
#pragma once

#include <memory>
#include <string>

#include "core/policy.h"

namespace paged {

// lru, ttl, priority or hazard. `ttl_seconds` is for ttl. Throws std::invalid_argument for another name.
std::shared_ptr<Policy> named_policy(const std::string& name, double ttl_seconds);

}  // namespace paged
