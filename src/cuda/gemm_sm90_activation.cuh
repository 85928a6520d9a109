// SPDX-License-Identifier: Apache-2.0
// What the matrix products do with a gate's sum.
#pragma once

#include <ptx_sm90.h>

#include <type_traits>

#include "gpu/gpu.h"
#include "ops/ops.h"

namespace paged::gpu {

template <Activation activation>
__device__ __forceinline__ float activate(float x) {
  if constexpr (activation == Activation::kSilu) return x * fast_reciprocal(1.0f + fast_exp(-x));
  if constexpr (activation == Activation::kGeluTanh)
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
}

// Calls fn with the activation as a constant: chosen around a loop and not in it, as an unrolled loop with all of them
// at every place is more than the instruction cache holds.
template <class Fn>
__device__ __forceinline__ void with_activation(Activation activation, const Fn& fn) {
  switch (activation) {
    case Activation::kSilu: return fn(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGeluTanh: return fn(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kGeluErf: return fn(std::integral_constant<Activation, Activation::kGeluErf>{});
  }
}

}  // namespace paged::gpu
