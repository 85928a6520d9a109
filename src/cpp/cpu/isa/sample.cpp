// SPDX-License-Identifier: Apache-2.0
// The passes over a whole row of logits that sampling needs; everything smaller is in cpu/sample.cpp.
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/vec_math.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

float row_max(const float* row, std::int64_t n) {
  F32 best = set1(-__builtin_inff());
  F32 nan = zero();  // 0 until a lane meets NaN, then NaN (x - x would mark infinities too)
  for_lanes(n, [&](std::int64_t i, int lanes) {
    const F32 x = lanes == 16 ? load(row + i) : keep_lanes(load_first(row + i, lanes), 0, lanes, -__builtin_inff());
    nan = nan + min(zero(), max(zero(), x));
    best = max(x, best);
  });
  const float poison = reduce_add(nan);
  return poison == poison ? reduce_max(best) : poison;
}

void exp_row(const ExpRow& row) {
  const F32 max_logit = set1(row.max);
  const F32 scale = set1(row.inverse_temperature);
  for (std::int64_t begin = 0; begin < row.n; begin += kSumBlock) {
    const std::int64_t count = row.n - begin < kSumBlock ? row.n - begin : kSumBlock;
    F32 sum = zero();
    for_lanes(count, [&](std::int64_t i, int lanes) {
      F32 weight = exp((load_lanes(row.logits + begin + i, lanes) - max_logit) * scale);
      if (lanes < 16) weight = keep_lanes(weight, 0, lanes, 0.0f);
      store_lanes(row.weights + begin + i, weight, lanes);
      sum = sum + weight;
    });
    row.block_sums[begin / kSumBlock] = static_cast<double>(reduce_add(sum));
  }
}

std::int64_t collect(const float* row, std::int64_t n, float threshold, std::int32_t* out, std::int64_t capacity,
                     std::int64_t begin, std::int64_t* next) {
  const F32 limit = set1(threshold);
  std::int64_t count = 0;
  std::int64_t i = begin;
  for (; i < n && count + 16 <= capacity; i += 16) {
    const int lanes = static_cast<int>(n - i < 16 ? n - i : 16);
    std::uint32_t mask = mask_ge(load_lanes(row + i, lanes), limit) & ((1u << lanes) - 1u);
    for (; mask != 0; mask &= mask - 1) out[count++] = static_cast<std::int32_t>(i + __builtin_ctz(mask));
  }
  *next = i < n ? i : n;
  return count;
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
