// SPDX-License-Identifier: Apache-2.0
// AMX: eight registers of up to 16 rows by 64 bytes, and one instruction that multiplies two of them onto a third. The
// instructions stand here as text, because g++ 12 may drop the stores that its own intrinsics read.
//
// multiply_pairs_onto: c[m][n] += the sum over even k of a[m][k] b[k][n] + the sum over odd k, for 32 k of bfloat16; a
// row of c depends on no other one. Denormal numbers count as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/inline.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)
inline constexpr bool kHasTiles = true;
#else
inline constexpr bool kHasTiles = false;
#endif

inline constexpr int kTileBytes = 64;  // of a row
inline constexpr int kTileK = 32;      // bfloat16 of a row of a; b holds them as 16 rows of pairs

struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  PAGED_INLINE void set(int tile, int num_rows) {
    rows[tile] = static_cast<std::uint8_t>(num_rows);
    row_bytes[tile] = kTileBytes;
  }
};

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)

PAGED_INLINE void begin_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
PAGED_INLINE void end_tiles() { asm volatile("tilerelease" ::: "memory"); }
template <int kTile>
PAGED_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
PAGED_INLINE void load_tile(const void* from, std::int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(kTile) : "memory");
}
template <int kTile>
PAGED_INLINE void store_tile(void* to, std::int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(kTile) : "memory");
}
template <int kC, int kA, int kB>
PAGED_INLINE void multiply_pairs_onto() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#else

// Never called.
void begin_tiles(const TileShapes& shapes);
void end_tiles();
template <int kTile>
void clear_tile();
template <int kTile>
void load_tile(const void* from, std::int64_t stride_bytes);
template <int kTile>
void store_tile(void* to, std::int64_t stride_bytes);
template <int kC, int kA, int kB>
void multiply_pairs_onto();

#endif

// c = a @ b, or onto what c holds: one or two tiles of rows of a by as many tiles of b as a function says. Rows of a
// and c are so many bytes apart, and so are the rows of pairs of b. Registers 0 to 3 hold c, the others a and b.
struct TileProduct {
  const std::byte* a;
  std::int64_t a_bytes, a_step;  // to the next row, and to the next 32 k
  const std::byte* b[4];
  std::int64_t b_bytes;
  float* c[4];
  std::int64_t c_bytes;
  std::int64_t steps;  // of kTileK
  bool onto;

  PAGED_INLINE const std::byte* a_at(std::int64_t step) const { return a + step * a_step; }
  PAGED_INLINE const std::byte* b_at(int tile, std::int64_t step) const { return b[tile] + step * 16 * b_bytes; }

  template <int kC>
  PAGED_INLINE void begin() const {
    if (onto)
      load_tile<kC>(c[kC], c_bytes);
    else
      clear_tile<kC>();
  }
  template <int kC>
  PAGED_INLINE void end() const {
    store_tile<kC>(c[kC], c_bytes);
  }
};

PAGED_INLINE void multiply_one_by_one(const TileProduct& product) {
  product.begin<0>();
  for (std::int64_t i = 0; i < product.steps; ++i) {
    load_tile<4>(product.a_at(i), product.a_bytes);
    load_tile<6>(product.b_at(0, i), product.b_bytes);
    multiply_pairs_onto<0, 4, 6>();
  }
  product.end<0>();
}

PAGED_INLINE void multiply_one_by_four(const TileProduct& product) {
  product.begin<0>(), product.begin<1>(), product.begin<2>(), product.begin<3>();
  for (std::int64_t i = 0; i < product.steps; ++i) {
    load_tile<4>(product.a_at(i), product.a_bytes);
    load_tile<5>(product.b_at(0, i), product.b_bytes);
    multiply_pairs_onto<0, 4, 5>();
    load_tile<6>(product.b_at(1, i), product.b_bytes);
    multiply_pairs_onto<1, 4, 6>();
    load_tile<7>(product.b_at(2, i), product.b_bytes);
    multiply_pairs_onto<2, 4, 7>();
    load_tile<5>(product.b_at(3, i), product.b_bytes);
    multiply_pairs_onto<3, 4, 5>();
  }
  product.end<0>(), product.end<1>(), product.end<2>(), product.end<3>();
}

// Two tiles of rows of a, next to each other, by two of b: c -> to, 32 columns.
struct TilePairProduct {
  const std::byte* a;
  std::int64_t a_bytes, a_step;
  const std::byte* b[2];
  std::int64_t b_bytes;
  const float* c;
  std::int64_t c_bytes;
  float* to;
  std::int64_t to_bytes;
  std::int64_t steps;
  bool onto;
  const std::byte* next;  // lines to ask for meanwhile, so many a step
  std::int64_t next_lines;
};

PAGED_INLINE void multiply_two_by_two(const TilePairProduct& product) {
  const auto below = [](auto* p, std::int64_t bytes) { return p + 4 * bytes; };  // 16 rows of float
  if (product.onto) {
    load_tile<0>(product.c, product.c_bytes);
    load_tile<1>(product.c + 16, product.c_bytes);
    load_tile<2>(below(product.c, product.c_bytes), product.c_bytes);
    load_tile<3>(below(product.c, product.c_bytes) + 16, product.c_bytes);
  } else {
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
  }
  for (std::int64_t i = 0; i < product.steps; ++i) {
    const std::byte* a = product.a + i * product.a_step;
    load_tile<6>(product.b[0] + i * 16 * product.b_bytes, product.b_bytes);
    load_tile<4>(a, product.a_bytes);
    multiply_pairs_onto<0, 4, 6>();
    load_tile<7>(product.b[1] + i * 16 * product.b_bytes, product.b_bytes);
    multiply_pairs_onto<1, 4, 7>();
    for (std::int64_t line = 0; line < product.next_lines; ++line)
      __builtin_prefetch(product.next + (i * product.next_lines + line) * kTileBytes, 0, 2);
    load_tile<5>(a + 16 * product.a_bytes, product.a_bytes);
    multiply_pairs_onto<2, 5, 6>();
    multiply_pairs_onto<3, 5, 7>();
  }
  store_tile<0>(product.to, product.to_bytes);
  store_tile<1>(product.to + 16, product.to_bytes);
  store_tile<2>(below(product.to, product.to_bytes), product.to_bytes);
  store_tile<3>(below(product.to, product.to_bytes) + 16, product.to_bytes);
}

// Registers for tiles of a of `first` and, for multiply_two_by_two, `second` rows; 0: for the other two.
PAGED_INLINE TileShapes shapes_of(int first, int second) {
  TileShapes shapes;
  for (int tile = 0; tile < 4; ++tile) shapes.set(tile, second == 0 || tile < 2 ? first : second);
  shapes.set(4, first);
  shapes.set(5, second == 0 ? 16 : second);  // of b, where there is one tile of a
  shapes.set(6, 16);
  shapes.set(7, 16);
  return shapes;
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
