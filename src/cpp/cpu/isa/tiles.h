// SPDX-License-Identifier: Apache-2.0
// AMX: eight registers of up to 16 rows by 64 bytes, and one instruction that multiplies two of them onto a third. The
// instructions stand here as text, because g++ 12 may drop the stores that its own intrinsics read.
//
// multiply_pairs_onto: c[m][n] += the sum over even k of a[m][k] b[k][n] + the sum over odd k, for 32 k of bfloat16; a
// row of c depends on no other one. Denormal numbers count as zero.
#pragma once

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

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
