// SPDX-License-Identifier: Apache-2.0
// What sampling one row is made of on a GPU: how the row is read, what a weight is, and what the threads of a CTA add
// up. A weight exp((logit - largest) / temperature) becomes an integer, its mass, in units of 2^-44: sums of masses do
// not depend on their order, so neither do tokens on how the work fell to threads. An element without mass cannot be
// sampled, and everything here ignores it.
#pragma once

#include "gpu/gpu.h"
#include "ops/ops.h"

namespace paged::gpu {
namespace {

using Word = unsigned long long;  // as the shuffles and atomics of every vendor take it

constexpr int kSampleThreads = 256;
constexpr int kPartVectors = 8;                                 // vectors of 4 logits that a thread surveys
constexpr int kPartLogits = kSampleThreads * kPartVectors * 4;  // of a row, one CTA's
constexpr int kMaxParts = 64;
constexpr float kUnitMass = 0x1p44f;
constexpr int kFewK = 512;  // a top_k that groups of logits find; a larger one, or a nucleus, needs the bins
constexpr float kNoLogit = -__builtin_inff();
constexpr std::int32_t kNoToken = -1;

// Orders like the floats. NaN comes last; -0 is 0.
__device__ __forceinline__ std::uint32_t ordered(float value) {
  if (value != value) return 0xffffffffu;
  const std::uint32_t bits = float_to_bits(value + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(std::uint32_t key) {
  return bits_to_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}
// Neither NaN nor an infinity.
__device__ __forceinline__ bool is_finite_key(std::uint32_t key) { return key > 0x007fffffu && key < 0xff800000u; }

// Bins of equal width in logit / temperature, from the largest logit down. What lies below them has no mass.
constexpr int kBins = 1024;
constexpr float kBinsPerUnit = 32.0f;
constexpr float kMaxBinnedInverse = 1e4f;  // of a temperature; the bins of a lower one are wider in its units

// How a row samples; see cpu/sample.cpp for the meaning.
struct RowPlan {
  float inverse;  // 1 / temperature, 0 if greedy
  float top_p;
  int top_k;      // 0: all
  int bin_reach;  // of the bins, those that count

  __device__ RowPlan(const SamplingRow& row, int vocab)
      : inverse(row.temperature <= 0.0f ? 0.0f : fminf(1.0f / row.temperature, 3.402823466e38f)),
        top_p(row.top_p < 0.0f ? 0.0f : row.top_p),
        top_k(row.top_k > 0 && row.top_k < vocab ? row.top_k : 0),
        bin_reach(kBins) {
    if (top_k > 0 || !(top_p < 1.0f)) return;
    // All weights below (1 - top_p) / vocab of the largest add up to less than what the nucleus leaves.
    const float reach = logf(static_cast<float>(vocab) / (1.0f - top_p)) * kBinsPerUnit + 2.0f;
    if (reach < kBins) bin_reach = static_cast<int>(reach);
  }
  // Else the bins are wider than one unit / kBinsPerUnit.
  __device__ bool bins_tell_mass() const { return inverse <= kMaxBinnedInverse; }
  __device__ bool greedy() const { return inverse == 0.0f; }
  __device__ bool cuts() const { return !greedy() && (top_k > 0 || top_p < 1.0f); }
  __device__ bool needs_bins() const { return cuts() && (top_k == 0 || top_k > kFewK); }
  __device__ bool needs_total() const { return !greedy() && top_k == 0; }
  // In bins; finite.
  __device__ __forceinline__ float place(float logit) const {
    return fmaxf(fminf(logit * (kBinsPerUnit * fminf(inverse, kMaxBinnedInverse)), 1e37f), -1e37f);
  }
};

// exp((logit - largest) / temperature), and as an integer.
__device__ __forceinline__ float weight_of(float logit, float largest, float inverse) {
  return expf((logit - largest) * inverse);
}
__device__ __forceinline__ Word mass_of(float logit, float largest, float inverse) {
  return static_cast<Word>(weight_of(logit, largest, inverse) * kUnitMass);
}
// The least integer mass that is at least share * total, and at least 1: the largest logit always counts.
__device__ __forceinline__ Word wanted_mass(double share, double total) {
  const double mass = ceil(share * total);
  return mass < 1.0 ? 1 : static_cast<Word>(mass);
}
// The mass at a fraction in (0, 1) of the way from 0 to total.
__device__ __forceinline__ Word mass_at(double fraction, Word total) {
  const Word at = static_cast<Word>(fraction * static_cast<double>(total));
  return at < total ? at : total - 1;
}

struct RowLogits {
  const float* data;
  int vocab;
  bool vectors;  // the row's address is a multiple of 16

  // Four from `id` on; those past the end are -infinity.
  __device__ __forceinline__ Vec<float, 4> load(int id) const {
    if (vectors && id + 4 <= vocab) return load_vec<float, 4>(data + id);
    Vec<float, 4> some;
#pragma unroll
    for (int e = 0; e < 4; ++e) some.data[e] = id + e < vocab ? data[id + e] : kNoLogit;
    return some;
  }
};

// Reductions over the CTA: every thread calls, every thread gets the result.
class Block {
 public:
  struct Slots {
    Word of_warp[2][kSampleThreads / 32];
  };
  __device__ explicit Block(Slots& slots) : slots_(&slots) {}

  __device__ __forceinline__ Word sum(Word value) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask >>= 1) value += shuffle_xor(value, mask);
    const Word* all = exchange(value);
    value = 0;
    for (int warp = 0; warp < kWarps; ++warp) value += all[warp];
    return value;
  }
  __device__ __forceinline__ Word largest(Word value) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask >>= 1) value = larger(value, shuffle_xor(value, mask));
    const Word* all = exchange(value);
    for (int warp = 0; warp < kWarps; ++warp) value = larger(value, all[warp]);
    return value;
  }
  // The sum over the threads before this one; total is over all.
  __device__ __forceinline__ Word sum_before(Word value, Word& total) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    Word up_to = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const Word other = shuffle(up_to, lane >= step ? lane - step : lane);
      if (lane >= step) up_to += other;
    }
    const Word* all = exchange(shuffle(up_to, kWarp - 1));
    Word before = up_to - value;
    total = 0;
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) before += all[other];
      total += all[other];
    }
    return before;
  }

 private:
  static constexpr int kWarps = kSampleThreads / kWarp;
  __device__ static Word larger(Word a, Word b) { return a > b ? a : b; }
  // The warps' values. Alternating slots: whoever writes one again has met everybody who read it.
  __device__ __forceinline__ const Word* exchange(Word of_warp) {
    Word* all = slots_->of_warp[turn_ ^= 1];
    if (threadIdx.x % kWarp == 0) all[threadIdx.x / kWarp] = of_warp;
    __syncthreads();
    return all;
  }

  Slots* slots_;
  int turn_ = 0;
};

// Finds the token of a part at whose end the masses, relative to `base`, of logits of at least `least` (as ordered)
// first exceed `wanted`, which is less than their sum. Here a thread's share of the part is consecutive.
__device__ __forceinline__ void walk_part(const RowLogits& logits, float inverse, int part, float base,
                                          std::uint32_t least, Word wanted, Block& block, std::int32_t& token) {
  const auto mass = [&](float logit) { return ordered(logit) >= least ? mass_of(logit, base, inverse) : Word{0}; };
  const int first = part * kPartLogits + static_cast<int>(threadIdx.x) * kPartVectors * 4;
  const auto mass_of_four = [&](int id) {
    const Vec<float, 4> some = logits.load(id);
    return mass(some.data[0]) + mass(some.data[1]) + mass(some.data[2]) + mass(some.data[3]);
  };
  Word own = 0;
  for (int i = 0; i < kPartVectors; ++i) own += mass_of_four(first + i * 4);
  Word all;
  Word sum = block.sum_before(own, all);
  if (wanted < sum || wanted >= sum + own) return;
  int id = first;
  for (Word next; sum + (next = mass_of_four(id)) <= wanted; id += 4) sum += next;
  while ((sum += mass(logits.data[id])) <= wanted) ++id;
  token = id;
}

}  // namespace
}  // namespace paged::gpu
