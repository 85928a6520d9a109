// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, a counter-based random number generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): the number is a function of key and counter alone, so no state is shared, kept or ordered. constexpr, so
// that kernels of a GPU call the same functions.
#pragma once

#include <array>
#include <cstdint>

namespace paged {

constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
  auto key_low = static_cast<std::uint32_t>(key);
  auto key_high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key_low, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key_high, static_cast<std::uint32_t>(a)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// Uniform over the middles of 2^52 equal steps of (0, 1): never 0 or 1.
constexpr double uniform(std::uint64_t seed, std::int64_t position) {
  const auto at = static_cast<std::uint64_t>(position);
  const auto bits = philox4x32({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at >> 32), 0, 0}, seed);
  const std::uint64_t word = (std::uint64_t{bits[0]} << 32 | bits[1]) >> 12;
  return (static_cast<double>(word) + 0.5) * 0x1p-52;
}

}  // namespace paged
