// SPDX-License-Identifier: Apache-2.0
// What the matrix products do with a gate's sum.
#pragma once

#include "gpu/gpu.h"
#include "ops/ops.h"

namespace paged::gpu {

__device__ __forceinline__ float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kSilu: return x / (1.0f + fast_exp(-x));
    case Activation::kGeluTanh: return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::kGeluErf: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  }
  return x;
}

}  // namespace paged::gpu
