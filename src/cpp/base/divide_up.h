// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

namespace paged {

template <typename Integer>
constexpr Integer divide_up(Integer a, std::type_identity_t<Integer> b) {
  return (a + b - 1) / b;
}

// Where part `part` of `count` things begins that are cut into so many even parts; the last one ends where one more
// would begin.
template <typename Integer>
constexpr Integer begin_of_part(Integer count, std::type_identity_t<Integer> part,
                                std::type_identity_t<Integer> num_parts) {
  return part * count / num_parts;
}

}  // namespace paged
