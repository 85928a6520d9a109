// SPDX-License-Identifier: Apache-2.0
// Sizes that callers give, multiplied without overflow.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "base/check.h"

namespace paged {

// Throws std::invalid_argument if a factor is negative or the product is more than any memory holds.
inline std::int64_t checked_product(std::string_view what, std::initializer_list<std::int64_t> factors) {
  constexpr std::int64_t kMost = std::int64_t{1} << 56;
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    PAGED_CHECK(factor >= 0, what, ": a size of ", factor);
    if (factor == 0) return 0;
    PAGED_CHECK(product <= kMost / factor, what, ": more than ", kMost, " bytes");
    product *= factor;
  }
  return product;
}

}  // namespace paged
