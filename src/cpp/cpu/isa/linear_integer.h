// SPDX-License-Identifier: Apache-2.0
// x @ w.T of quantised weights in integers, for rows of x that are quantised already (cpu/quantised_rows.h): products
// within a group of k are exact, and only the scaled sums of groups are rounded: one multiplication and one addition
// each, never fused, groups in ascending order. So the result is the same for every number of rows and on every
// instruction set. Rows meet the weights' codes in registers, of each format in its own way; where that wants more
// registers than there are, many rows meet codes that were widened into scratch before, where all formats look the
// same.
#pragma once

#include <cstddef>

#include "cpu/kernel_table.h"

namespace paged::cpu::PAGED_ISA_OF_LINEAR_INTEGER {
// acc[rows of the tile][acc_stride] = the products of the tile, whose weights are quantised. acc has room for one panel
// more where their number is odd. scratch: kIntegerScratch, 64-byte aligned.
void multiply_integers(const LinearTile& tile, float* acc, int acc_stride, std::byte* scratch);
// The whole of a tile whose codes are tiled, up to its outputs; at most kMaxCodeTile.
void linear_code_tiles(const LinearTile& tile);
}  // namespace paged::cpu::PAGED_ISA_OF_LINEAR_INTEGER

namespace paged::cpu::PAGED_ISA_NAMESPACE {

inline constexpr int kIntegerScratch = 32 * 1024;

using PAGED_ISA_OF_LINEAR_INTEGER::linear_code_tiles;
using PAGED_ISA_OF_LINEAR_INTEGER::multiply_integers;

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
