// SPDX-License-Identifier: Apache-2.0
// RMSNorm. The sum of squares of a group is four 16-lane chains, whatever the batch or the instruction set.
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

template <typename T>
float inverse_rms(const T* x, std::int64_t width, float eps) {
  F32 sums[4] = {zero(), zero(), zero(), zero()};
  std::int64_t i = 0;
  for (; i + 64 <= width; i += 64) {
    for (int j = 0; j < 4; ++j) {
      const F32 v = load(x + i + 16 * j);
      sums[j] = fma(v, v, sums[j]);
    }
  }
  for (int j = 0; i < width; i += 16, ++j) {
    const F32 v = load_lanes(x + i, static_cast<int>(width - i < 16 ? width - i : 16));
    sums[j] = fma(v, v, sums[j]);
  }
  const float sum = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(width) + eps);
}

template <typename T>
void norm_group(const T* x, const float* weight, std::int64_t width, float eps, T* out) {
  const F32 scale = set1(inverse_rms(x, width, eps));
  for_lanes(width, [&](std::int64_t i, int n) {
    store_lanes(out + i, load_lanes(x + i, n) * scale * load_lanes(weight + i, n), n);
  });
}

template <typename T>
void add_rows(const T* a, const T* b, std::int64_t cols, T* out) {
  for_lanes(cols, [&](std::int64_t i, int n) { store_lanes(out + i, load_lanes(a + i, n) + load_lanes(b + i, n), n); });
}

}  // namespace

void rms_norm(const RmsNormParams& op, std::int64_t row_begin, std::int64_t row_end) {
  with_type(op.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row)
      for (std::int64_t at = 0; at < op.x.cols; at += op.width)
        norm_group(row_of<const T>(op.x, row) + at, op.weight, op.width, op.eps, row_of<T>(op.out, row) + at);
  });
}

void add_rms_norm(const AddRmsNormParams& op, std::int64_t row_begin, std::int64_t row_end) {
  with_type(op.residual.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      T* sum = row_of<T>(op.residual_out, row);
      add_rows(row_of<const T>(op.residual, row), row_of<const T>(op.delta, row), op.out.cols, sum);
      norm_group<T>(sum, op.weight, op.out.cols, op.eps, row_of<T>(op.out, row));
    }
  });
}

void add(const AddParams& op, std::int64_t row_begin, std::int64_t row_end) {
  with_type(op.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row)
      add_rows(row_of<const T>(op.a, row), row_of<const T>(op.b, row), op.out.cols, row_of<T>(op.out, row));
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
