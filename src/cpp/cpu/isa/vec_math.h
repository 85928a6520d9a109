// SPDX-License-Identifier: Apache-2.0
// exp and tanh on sixteen lanes: relative error below 2e-7 over the normal range; exp(0) is exactly 1, exp below the
// normal range (and of -infinity) exactly 0, NaN stays NaN. Every kernel uses these and no other.
#pragma once

#include "cpu/isa/vec.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

// Cody and Waite's reduction to |r| <= ln(2) / 2, then a polynomial (coefficients of Cephes' expf).
PAGED_INLINE F32 exp(F32 x) {
  const F32 lowest = set1(-87.33654f);
  const F32 bounded = max(lowest, min(set1(89.0f), x));
  const I32 n = round_to_int(bounded * set1(1.44269504f));
  const F32 n_float = int_to_float(n);
  const F32 r = nfma(n_float, set1(-2.12194440e-4f), nfma(n_float, set1(0.693359375f), bounded));
  F32 y = set1(1.9875691500e-4f);
  y = fma(y, r, set1(1.3981999507e-3f));
  y = fma(y, r, set1(8.3334519073e-3f));
  y = fma(y, r, set1(4.1665795894e-2f));
  y = fma(y, r, set1(1.6666665459e-1f));
  y = fma(y, r, set1(0.5f));
  y = fma(y, r * r, r + set1(1.0f));
  // 2^n in two factors: n may be 128 where the result is still finite.
  const I32 half = shift_right_signed<1>(n);
  const I32 bias = set1_word(127);
  y = y * as_float(shift_left<23>(half + bias)) * as_float(shift_left<23>(n - half + bias));
  return select_lt(x, lowest, zero(), y);
}

// Odd polynomial near zero, where 1 - 2 / (exp(2x) + 1) would cancel (both from Cephes' tanhf).
PAGED_INLINE F32 tanh(F32 x) {
  const F32 magnitude = max(zero() - x, x);
  const F32 tail = set1(1.0f) - set1(2.0f) / (exp(magnitude + magnitude) + set1(1.0f));
  const F32 signed_tail = select_lt(x, zero(), zero() - tail, tail);
  const F32 square = x * x;
  F32 y = set1(-5.70498872745e-3f);
  y = fma(y, square, set1(2.06390887954e-2f));
  y = fma(y, square, set1(-5.37397155531e-2f));
  y = fma(y, square, set1(1.33314422036e-1f));
  y = fma(y, square, set1(-3.33332819422e-1f));
  return select_lt(magnitude, set1(0.625f), fma(y * square, x, x), signed_tail);
}

PAGED_INLINE float exp_scalar(float x) { return first_lane(exp(set1(x))); }

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
