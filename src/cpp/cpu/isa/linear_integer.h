// SPDX-License-Identifier: Apache-2.0
// x @ w.T of quantised weights in integers: rows of x are quantised to bytes (quantise_rows.h), products within a group
// of k are exact, and only the scaled sums of groups are rounded: one multiplication and one addition each, never
// fused, groups in ascending order. So the result is the same for every number of rows and on every instruction set.
#pragma once

#include <cstddef>

#include "cpu/kernel_table.h"

namespace paged::cpu::PAGED_ISA_OF_LINEAR_INTEGER {
// acc[rows of the tile][acc_stride] = the products of the tile, or false where its weights are of another kind.
bool multiply_integers(const LinearTile& tile, float* acc, int acc_stride, std::byte* scratch);
}  // namespace paged::cpu::PAGED_ISA_OF_LINEAR_INTEGER

namespace paged::cpu::PAGED_ISA_NAMESPACE {

inline constexpr int kIntegerScratch = 64 * 1024;

using PAGED_ISA_OF_LINEAR_INTEGER::multiply_integers;

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
