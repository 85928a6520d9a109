// SPDX-License-Identifier: Apache-2.0
// Where an element lies inside a piece of the CPU's KV cache. Keys are head-dim major, so that one vector holds the
// same component of sixteen keys and a score needs no horizontal sum: float32 and float16 [head_dim][block_size],
// bfloat16 [head_dim / 2][block_size][2] (pairs, as dpbf16 reads them). Values are [block_size][head_dim]. In front of
// an int8 piece, laid out as float32's, are its scales: float32 [groups of head_dim][block_size] of keys, [block_size]
// of values.
//
//   layer cache: block 0 | block 1 | ...     block: K head 0 | K head 1 | ... | V head 0 | V head 1 | ...
#pragma once

#include <cstdint>

#include "cpu/float16.h"
#include "cpu/inline.h"
#include "ops/ops.h"

namespace paged::cpu {

// Elements of one byte have scales.
template <typename C>
inline constexpr bool kScaled = sizeof(C) == 1;

// Scales of a key (is_value 0) or value.
template <typename C>
PAGED_INLINE constexpr int num_scales(int is_value, int head_dim) {
  return !kScaled<C> ? 0 : is_value != 0 ? 1 : (head_dim + kKeyScaleGroup - 1) / kKeyScaleGroup;
}

// Bytes of a key or value.
template <typename C>
PAGED_INLINE constexpr std::int64_t row_bytes(int is_value, int head_dim) {
  return std::int64_t{head_dim} * std::int64_t{sizeof(C)} +
         num_scales<C>(is_value, head_dim) * std::int64_t{sizeof(float)};
}
static_assert(row_bytes<std::int8_t>(0, 80) + row_bytes<std::int8_t>(1, 80) == kv_token_bytes(DType::kInt8, 80));
static_assert(row_bytes<BFloat16>(0, 80) + row_bytes<BFloat16>(1, 80) == kv_token_bytes(DType::kBFloat16, 80));

// The K piece (is_value 0) or V piece (1) of a head in a block.
template <typename C>
PAGED_INLINE std::byte* piece_at(const KvCacheView& cache, std::int64_t block, int is_value, int head) {
  const std::int64_t key = row_bytes<C>(0, cache.head_dim), value = row_bytes<C>(1, cache.head_dim);
  const std::int64_t rows = block * cache.num_kv_heads * (key + value) +
                            (is_value != 0 ? cache.num_kv_heads * key + head * value : head * key);
  return static_cast<std::byte*>(cache.data) + rows * cache.block_size;
}

// Its elements, and its scales: those of small pieces may lie at any byte.
template <typename C>
PAGED_INLINE C* elements_of(const KvCacheView& cache, std::byte* piece, int is_value) {
  return reinterpret_cast<C*>(piece +
                              std::int64_t{sizeof(float)} * num_scales<C>(is_value, cache.head_dim) * cache.block_size);
}
PAGED_INLINE float load_scale(const std::byte* piece, int index) {
  float scale;
  __builtin_memcpy(&scale, piece + sizeof(float) * static_cast<unsigned>(index), sizeof(float));
  return scale;
}
PAGED_INLINE void store_scale(std::byte* piece, int index, float scale) {
  __builtin_memcpy(piece + sizeof(float) * static_cast<unsigned>(index), &scale, sizeof(float));
}

// Neighbouring components of a key that lie side by side.
template <typename T>
inline constexpr int kKeyGroup = 1;
template <>
inline constexpr int kKeyGroup<BFloat16> = 2;

template <typename T>
PAGED_INLINE std::int64_t key_offset(int slot_in_block, int d, int block_size) {
  constexpr int kGroup = kKeyGroup<T>;
  return (std::int64_t{d / kGroup} * block_size + slot_in_block) * kGroup + d % kGroup;
}

}  // namespace paged::cpu
