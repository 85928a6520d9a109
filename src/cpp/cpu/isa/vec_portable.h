// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes as four of the compiler's own 4-lane vectors: SSE2 on x86-64, NEON on Arm. Included by vec.h only,
// which defines fma4 (fused where the machine has it) first.
#pragma once

#include "cpu/float16.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {

struct F32 {
  Float4 q[4];
};
struct I32 {
  Int4 q[4];
};

inline constexpr int kTilePanels = 1;
inline constexpr int kScoreVectors = 1;

// Only sixteen registers need it.
PAGED_INLINE void free_registers() {}

template <typename Out, typename Body>
PAGED_INLINE Out each_quarter(Body body) {
  return {{body(0), body(1), body(2), body(3)}};
}

PAGED_INLINE F32 set1(float x) {
  const Float4 v = {x, x, x, x};
  return {{v, v, v, v}};
}
PAGED_INLINE F32 zero() { return set1(0.0f); }
PAGED_INLINE F32 operator+(F32 a, F32 b) {
  return {{a.q[0] + b.q[0], a.q[1] + b.q[1], a.q[2] + b.q[2], a.q[3] + b.q[3]}};
}
PAGED_INLINE F32 operator-(F32 a, F32 b) {
  return {{a.q[0] - b.q[0], a.q[1] - b.q[1], a.q[2] - b.q[2], a.q[3] - b.q[3]}};
}
PAGED_INLINE F32 operator*(F32 a, F32 b) {
  return {{a.q[0] * b.q[0], a.q[1] * b.q[1], a.q[2] * b.q[2], a.q[3] * b.q[3]}};
}
PAGED_INLINE F32 operator/(F32 a, F32 b) {
  return {{a.q[0] / b.q[0], a.q[1] / b.q[1], a.q[2] / b.q[2], a.q[3] / b.q[3]}};
}
PAGED_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return {{fma4(a.q[0], b.q[0], c.q[0]), fma4(a.q[1], b.q[1], c.q[1]), fma4(a.q[2], b.q[2], c.q[2]),
           fma4(a.q[3], b.q[3], c.q[3])}};
}
PAGED_INLINE F32 nfma(F32 a, F32 b, F32 c) { return fma(zero() - a, b, c); }

PAGED_INLINE Float4 blend4(Int4 mask, Float4 yes, Float4 no) {
  return reinterpret_cast<Float4>((reinterpret_cast<Int4>(yes) & mask) | (reinterpret_cast<Int4>(no) & ~mask));
}
// As on x86: the second operand where either is NaN.
PAGED_INLINE F32 max(F32 a, F32 b) {
  return each_quarter<F32>([&](int i) { return blend4(a.q[i] > b.q[i], a.q[i], b.q[i]); });
}
PAGED_INLINE F32 min(F32 a, F32 b) {
  return each_quarter<F32>([&](int i) { return blend4(a.q[i] < b.q[i], a.q[i], b.q[i]); });
}
PAGED_INLINE F32 select_lt(F32 a, F32 b, F32 yes, F32 no) {
  return each_quarter<F32>([&](int i) { return blend4(a.q[i] < b.q[i], yes.q[i], no.q[i]); });
}
PAGED_INLINE F32 keep_lanes(F32 x, int begin, int end, float other) {
  const F32 fill = set1(other);
  return each_quarter<F32>([&](int i) {
    const Int4 lane = {4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3};
    return blend4((lane >= begin) & (lane < end), x.q[i], fill.q[i]);
  });
}
PAGED_INLINE std::uint32_t mask_ge(F32 a, F32 b) {
  std::uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<std::uint32_t>(a.q[i / 4][i % 4] >= b.q[i / 4][i % 4]) << i;
  return mask;
}

template <typename T>
PAGED_INLINE T load_bytes(const void* p) {
  T out;
  __builtin_memcpy(&out, p, sizeof(T));
  return out;
}
PAGED_INLINE I32 load_words(const void* p) { return load_bytes<I32>(p); }
PAGED_INLINE I32 set1_word(std::uint32_t x) {
  const int s = static_cast<int>(x);
  const Int4 v = {s, s, s, s};
  return {{v, v, v, v}};
}
template <int kBits>
PAGED_INLINE I32 shift_left(I32 a) {
  return each_quarter<I32>([&](int i) { return reinterpret_cast<Int4>(reinterpret_cast<UInt4>(a.q[i]) << kBits); });
}
template <int kBits>
PAGED_INLINE I32 shift_right(I32 a) {
  return each_quarter<I32>([&](int i) { return reinterpret_cast<Int4>(reinterpret_cast<UInt4>(a.q[i]) >> kBits); });
}
template <int kBits>
PAGED_INLINE I32 shift_right_signed(I32 a) {
  return each_quarter<I32>([&](int i) { return a.q[i] >> kBits; });
}
PAGED_INLINE I32 operator&(I32 a, I32 b) {
  return each_quarter<I32>([&](int i) { return a.q[i] & b.q[i]; });
}
PAGED_INLINE I32 operator^(I32 a, I32 b) {
  return each_quarter<I32>([&](int i) { return a.q[i] ^ b.q[i]; });
}
PAGED_INLINE I32 operator+(I32 a, I32 b) {
  return each_quarter<I32>([&](int i) { return a.q[i] + b.q[i]; });
}
PAGED_INLINE I32 operator-(I32 a, I32 b) {
  return each_quarter<I32>([&](int i) { return a.q[i] - b.q[i]; });
}
PAGED_INLINE F32 int_to_float(I32 a) {
  return each_quarter<F32>([&](int i) { return __builtin_convertvector(a.q[i], Float4); });
}
// Nearest even through the adder: exact for |a| < 2^22, and the callers stay far below.
PAGED_INLINE I32 round_to_int(F32 a) {
  return each_quarter<I32>([&](int i) {
    const Float4 magic = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};
    return __builtin_convertvector((a.q[i] + magic) - magic, Int4);
  });
}
PAGED_INLINE F32 as_float(I32 a) {
  return each_quarter<F32>([&](int i) { return reinterpret_cast<Float4>(a.q[i]); });
}

PAGED_INLINE F32 load(const float* p) { return load_bytes<F32>(p); }
PAGED_INLINE F32 load_first(const float* p, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n && i < 16; ++i) lanes[i] = p[i];
  return load(lanes);
}
PAGED_INLINE void store(float* p, F32 x) { __builtin_memcpy(p, &x, sizeof(x)); }
PAGED_INLINE void store_first(float* p, F32 x, int n) {
  for (int i = 0; i < n && i < 16; ++i) p[i] = x.q[i / 4][i % 4];
}
PAGED_INLINE F32 load(const BFloat16* p) {
  return each_quarter<F32>([&](int i) {
    const auto bits = __builtin_convertvector(load_bytes<UShort4>(p + 4 * i), UInt4) << 16;
    return reinterpret_cast<Float4>(bits);
  });
}
PAGED_INLINE F32 load(const Float16* p) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = to_float(p[i]);
  return load(lanes);
}
PAGED_INLINE void store(BFloat16* p, F32 x) {
  for (int i = 0; i < 16; ++i) p[i] = from_float<BFloat16>(x.q[i / 4][i % 4]);
}
PAGED_INLINE void store(Float16* p, F32 x) {
  for (int i = 0; i < 16; ++i) p[i] = from_float<Float16>(x.q[i / 4][i % 4]);
}
PAGED_INLINE F32 load(const std::int8_t* p) {
  return each_quarter<F32>(
      [&](int i) { return Float4{float(p[4 * i]), float(p[4 * i + 1]), float(p[4 * i + 2]), float(p[4 * i + 3])}; });
}
// What lies in [-128, 127].
PAGED_INLINE void store_bytes(std::int8_t* p, I32 x) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(x.q[i / 4][i % 4]);
}

PAGED_INLINE float reduce_add(F32 x) {
  const Float4 four = (x.q[0] + x.q[2]) + (x.q[1] + x.q[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
PAGED_INLINE float reduce_max(F32 x) {
  const F32 two = max(x, F32{{x.q[2], x.q[3], x.q[2], x.q[3]}});
  float best = two.q[0][0];
  for (int i = 1; i < 8; ++i) best = best > two.q[i / 4][i % 4] ? best : two.q[i / 4][i % 4];
  return best;
}
PAGED_INLINE float first_lane(F32 x) { return x.q[0][0]; }

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
