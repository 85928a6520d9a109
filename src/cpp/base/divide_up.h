// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

namespace paged {

template <typename Integer>
constexpr Integer divide_up(Integer a, std::type_identity_t<Integer> b) {
  return (a + b - 1) / b;
}

}  // namespace paged
