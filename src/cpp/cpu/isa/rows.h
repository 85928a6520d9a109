// SPDX-License-Identifier: Apache-2.0
// Rows of a MatrixView as typed pointers, how many are taken at once, and the switch from a runtime dtype to a type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa/vec.h"
#include "ops/ops.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

PAGED_INLINE int larger(int a, int b) { return a > b ? a : b; }
PAGED_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Rows of a register tile, at most `most`, so that the tiles of `num_rows` are as even as they can be.
PAGED_INLINE int even_tile(int num_rows, int most) {
  const int tiles = (num_rows + most - 1) / most;
  return (num_rows + tiles - 1) / tiles;
}

// Asks for the line of weights at p, as LinearTile::asks_nearest has it.
PAGED_INLINE void ask_for_weights(const std::byte* p, bool nearest) {
  if (nearest)
    __builtin_prefetch(p);
  else
    __builtin_prefetch(p, 0, 2);
}

template <typename T>
PAGED_INLINE T* row_of(const MatrixView& view, std::int64_t row) {
  return static_cast<T*>(view.data) + row * view.row_stride;
}

// Rows a stride apart, read at one place after the other. Three of them share a pointer, with the stride or twice it in
// the address: of a pointer for each, GCC keeps a part in vector registers and fetches it from there for every read.
template <int kRows>
class RowCursor {
 public:
  PAGED_INLINE RowCursor(const void* first, std::int64_t stride_bytes) : stride_(stride_bytes) {
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) at_[i] = static_cast<const std::byte*>(first) + 3 * i * stride_;
  }
  PAGED_INLINE const std::byte* of(int row) const { return at_[row / 3] + row % 3 * stride_; }
  PAGED_INLINE void advance(int bytes) {
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) {
      at_[i] += bytes;
      asm("" : "+r"(at_[i]));  // or GCC makes a pointer for each row after all
    }
  }

 private:
  static constexpr int kPointers = (kRows + 2) / 3;
  const std::byte* at_[kPointers];
  std::int64_t stride_;
};

// Calls body(T{}) with the type of dtype, which is a float's.
template <typename Body>
PAGED_INLINE void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32: body(float{}); return;
    case DType::kBFloat16: body(BFloat16{}); return;
    case DType::kFloat16: body(Float16{}); return;
    case DType::kInt8: return;  // no MatrixView has it
  }
}

// The same with the type of a cache's elements.
template <typename Body>
PAGED_INLINE void with_cache_type(DType dtype, Body body) {
  if (dtype == DType::kInt8)
    body(std::int8_t{});
  else
    with_type(dtype, body);
}

// Calls body(i, n) for every run of 16 elements of [0, count): n is 16, or less for the last run.
template <typename Body>
PAGED_INLINE void for_lanes(std::int64_t count, Body body) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) body(i, 16);
  if (i < count) body(i, static_cast<int>(count - i));
}

template <typename T>
PAGED_INLINE F32 load_lanes(const T* p, int n) {
  return n == 16 ? load(p) : load_first(p, n);
}

template <typename T>
PAGED_INLINE void store_lanes(T* p, F32 x, int n) {
  if (n == 16)
    store(p, x);
  else
    store_first(p, x, n);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
