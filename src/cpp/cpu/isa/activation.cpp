// SPDX-License-Identifier: Apache-2.0
// Element-wise functions: gated activations and the soft cap of logits.
#include "cpu/isa/bfloat16.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/vec_math.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

struct Silu {
  PAGED_INLINE F32 operator()(F32 x) const { return x / (set1(1.0f) + exp(zero() - x)); }
};

// With as many digits as bfloat16 keeps, where the machine has AVX512-BF16.
struct RoundedSilu {
  PAGED_INLINE F32 operator()(F32 x) const {
    return x * reciprocal_of_weights(set1(1.0f) + exp2_of_weights(x * set1(-1.44269504f)));
  }
};

struct GeluTanh {
  PAGED_INLINE F32 operator()(F32 x) const {
    const F32 inner = x * fma(x * x, set1(0.7978845608f * 0.044715f), set1(0.7978845608f));
    return set1(0.5f) * x * (set1(1.0f) + tanh(inner));
  }
};

// One libm call a lane: exact, and no model in the list is bound by it.
struct GeluErf {
  PAGED_INLINE F32 operator()(F32 x) const {
    float lanes[16];
    store(lanes, x);
    for (float& lane : lanes) lane = 0.5f * lane * (1.0f + __builtin_erff(lane * 0.70710678118f));
    return load(lanes);
  }
};

template <typename Function>
void gate_rows(const GatedActivationParams& op, std::int64_t row_begin, std::int64_t row_end, Function activation) {
  with_type(op.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const T* gate = row_of<const T>(op.gate, row);
      const T* up = row_of<const T>(op.up, row);
      T* out = row_of<T>(op.out, row);
      for_lanes(op.out.cols, [&](std::int64_t i, int n) {
        const F32 result = activation(load_lanes(gate + i, n)) * load_lanes(up + i, n);
        if constexpr (kDotBf16)
          store_result(out + i, result, n);
        else
          store_lanes(out + i, result, n);
      });
    }
  });
}

}  // namespace

void gated_activation(const GatedActivationParams& op, std::int64_t row_begin, std::int64_t row_end) {
  switch (op.activation) {
    case Activation::kSilu:
      if constexpr (kDotBf16)
        if (op.out.dtype == DType::kBFloat16) return gate_rows(op, row_begin, row_end, RoundedSilu{});
      gate_rows(op, row_begin, row_end, Silu{});
      return;
    case Activation::kGeluTanh: gate_rows(op, row_begin, row_end, GeluTanh{}); return;
    case Activation::kGeluErf: gate_rows(op, row_begin, row_end, GeluErf{}); return;
  }
}

void softcap(const SoftcapParams& op, std::int64_t row_begin, std::int64_t row_end) {
  const F32 cap = set1(op.cap);
  with_type(op.out.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      const T* x = row_of<const T>(op.x, row);
      T* out = row_of<T>(op.out, row);
      for_lanes(op.out.cols,
                [&](std::int64_t i, int n) { store_lanes(out + i, cap * tanh(load_lanes(x + i, n) / cap), n); });
    }
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
