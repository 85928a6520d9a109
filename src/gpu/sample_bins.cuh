// SPDX-License-Identifier: Apache-2.0
// Where the edge of what top-k and top-p keep lies, in bins of logits, before any logit is compared with another: from
// the largest logit of each group of 32, which the survey of a row left, or from how many logits each bin of a part
// holds. A CTA does one row.
#pragma once

#include "gpu/sample_row.cuh"

namespace paged::gpu {
namespace {

constexpr int kMaxCandidates = 2048;
// A bin's logits, packed: their number above, the sum of their places inside the bin, in sixteenths, below.
constexpr int kPlaceBits = 18;
constexpr std::uint32_t kPlaceMask = (1u << kPlaceBits) - 1;
static_assert(kPartLogits < 1 << (32 - kPlaceBits) && kPartLogits * 15 <= kPlaceMask);

struct CandidateList {
  float logit[kMaxCandidates];
  std::int32_t id[kMaxCandidates];
};
// Logits of bins before `first` are kept, of those after `last` are not.
struct Edge {
  int first, last;
  std::uint32_t num_before, num_up_to_last;  // logits before first, and up to last

  __device__ std::uint32_t size() const { return num_up_to_last - num_before; }
};
// Masses are sums of limbs of 15 bits, which 32-bit atomics add up.
struct PartMasses {
  Word whole[kMaxParts];
  std::uint32_t limbs[3][kMaxParts];
};
struct CutShared {
  union {
    alignas(16) std::uint32_t bins[kBins];  // first, then
    CandidateList list;
  };
  union {
    std::uint16_t groups[kMaxCandidates];  // with candidates, then
    Word mass[kSampleThreads];             // of few candidates,
    PartMasses parts;                      // or what is kept of each part
  };
  std::int16_t bins_below[kMaxParts];  // from the row's top to the part's
  std::uint32_t num_candidates, num_groups;
  Edge edge;
  std::uint32_t least;  // as ordered, of the logits that are kept
  std::int32_t token;
  int part;
  Word at;  // in the part
};

// One row with what is known of it.
struct CutRow {
  RowLogits logits;
  RowPlan plan;
  const float* group_max;          // [num_parts * kSampleThreads]
  const std::uint32_t* part_bins;  // [num_parts, kBins] packed, from each part's own largest logit down
  int num_parts;
  float largest;
  double total;  // mass of all; without top_k only
  double fraction;

  __device__ __forceinline__ Word mass(float logit) const { return mass_of(logit, largest, plan.inverse); }
  __device__ Word wanted(double all) const { return wanted_mass(static_cast<double>(plan.top_p), all); }
  // kBins or more: without mass.
  __device__ __forceinline__ float bin(float logit) const {
    return floorf(plan.place(largest)) - floorf(plan.place(logit));
  }
  // fn(group, its largest) for a thread's share. Eight loads are in flight: fn's atomics would hold up the next.
  template <class Fn>
  __device__ __forceinline__ void each_group(Fn&& fn) const {
    constexpr int kBatch = 8;
    for (int first = static_cast<int>(threadIdx.x); first < num_parts * kSampleThreads;
         first += kBatch * kSampleThreads) {
      float some[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int group = first + i * kSampleThreads;
        some[i] = group < num_parts * kSampleThreads ? group_max[group] : kNoLogit;
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) fn(first + i * kSampleThreads, some[i]);
    }
  }
  // fn(logit, id) for a thread's share of a part. The next four are on their way meanwhile.
  template <class Fn>
  __device__ __forceinline__ void each_of_part(int part, Fn&& fn) const {
    constexpr int kStep = kSampleThreads * 4;
    int id = part * kPartLogits + static_cast<int>(threadIdx.x) * 4;
    Vec<float, 4> some = logits.load(id);
    for (int i = 0; i < kPartVectors; ++i, id += kStep) {
      const Vec<float, 4> now = some;
      if (i + 1 < kPartVectors) some = logits.load(id + kStep);
#pragma unroll
      for (int e = 0; e < 4; ++e) fn(now.data[e], id + e);
    }
  }
};

// Of one part, by its survey: a thread's logits into the bins below the part's largest, `top`.
template <int kCount>
__device__ void count_in_bins(const RowPlan& plan, const Vec<float, 4> (&own)[kCount], float top, std::uint32_t* bins,
                              std::uint32_t* to) {
  const int thread = static_cast<int>(threadIdx.x);
  using Four = Vec<std::uint32_t, 4>;
  static_assert(kBins == 4 * kSampleThreads);
  store_vec<std::uint32_t, 4>(bins + 4 * thread, Four{});
  __syncthreads();
  const float first = floorf(plan.place(top)), reach = static_cast<float>(plan.bin_reach);
#pragma unroll
  for (int i = 0; i < kCount * 4; ++i) {
    const float place = plan.place(own[i / 4].data[i % 4]), whole = floorf(place);
    if (first - whole >= reach) continue;
    const auto sixteenths = static_cast<std::uint32_t>((place - whole) * 16.0f);
    atomic_add(&bins[static_cast<int>(first - whole)], (1u << kPlaceBits) + sixteenths);
  }
  __syncthreads();
  store_vec<std::uint32_t, 4>(to + 4 * thread, load_vec<std::uint32_t, 4>(bins + 4 * thread));
}

// The bin up to which k groups have their largest logit. No other group holds one of the k largest logits.
__device__ __forceinline__ void find_edge_of_groups(const CutRow& row, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  store_vec<std::uint32_t, 4>(shared.bins + 4 * thread, Vec<std::uint32_t, 4>{});
  __syncthreads();
  row.each_group([&](int, float largest) {
    const float bin = row.bin(largest);
    if (bin < kBins) atomic_add(&shared.bins[static_cast<int>(bin)], 1u);
  });
  __syncthreads();
  const auto own = load_vec<std::uint32_t, 4>(shared.bins + 4 * thread);
  Word all;
  Word sum = block.sum_before(Word{own.data[0]} + own.data[1] + own.data[2] + own.data[3], all);
  const auto wanted = static_cast<Word>(row.plan.top_k);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int bin = 4 * thread + i;
    if (sum < wanted && (sum + own.data[i] >= wanted || bin == kBins - 1)) shared.edge = {0, bin, 0, 0};
    sum += own.data[i];
  }
}

// Of a thread's four consecutive bins. What is asked for lies between least and most: a mass, or just the number.
struct BinTotals {
  Word count[4], least[4], most[4];
};

// Sets shared.edge to the bins, of [0, end), in which `wanted` is reached at the earliest and at the latest; before the
// first of them there are num_before logits, and `before` of what is asked for.
__device__ __forceinline__ void find_edge(const BinTotals& own, Word wanted, int end, Word num_before, Word before,
                                          CutShared& shared, Block& block) {
  Word all;
  Word num = num_before + block.sum_before(own.count[0] + own.count[1] + own.count[2] + own.count[3], all);
  Word low = before + block.sum_before(own.least[0] + own.least[1] + own.least[2] + own.least[3], all);
  Word high = before + block.sum_before(own.most[0] + own.most[1] + own.most[2] + own.most[3], all);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int bin = 4 * static_cast<int>(threadIdx.x) + i;
    const bool is_end = bin == end - 1;
    if (bin < end && high < wanted && (high + own.most[i] >= wanted || is_end)) {
      shared.edge.first = bin;
      shared.edge.num_before = static_cast<std::uint32_t>(num);
    }
    if (bin < end && low < wanted && (low + own.least[i] >= wanted || is_end)) {
      shared.edge.last = bin;
      shared.edge.num_up_to_last = static_cast<std::uint32_t>(num + own.count[i]);
    }
    num += own.count[i];
    low += own.least[i];
    high += own.most[i];
  }
  __syncthreads();
}

constexpr float kRounding = 0x1p-13f;  // more than that of a place or a weight

// The bins in which the k-th largest logit lies, or the last of the nucleus, whose mass the bins tell within 0.3 %.
__device__ __forceinline__ void find_edge_of_logits(const CutRow& row, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  BinTotals own = {};
  Word places[4] = {};
#pragma unroll 4
  for (int part = 0; part < row.num_parts; ++part) {
    const int below = shared.bins_below[part];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int bin = 4 * thread + i - below;
      const std::uint32_t packed = bin >= 0 ? row.part_bins[part * kBins + bin] : 0;
      own.count[i] += packed >> kPlaceBits;
      places[i] += packed & kPlaceMask;
    }
  }
  // exp(f / kBinsPerUnit), where a logit's place is f of a bin above the bin's start, lies between tangent and chord.
  constexpr float kTangent = 1.0f / kBinsPerUnit, kChord = 0.0317434f;
  const float top = row.plan.place(row.largest);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float start = floorf(top) - static_cast<float>(4 * thread + i);
    const float weight = expf((start - top) / kBinsPerUnit) * kUnitMass;
    const float n = static_cast<float>(own.count[i]), f = static_cast<float>(places[i]);
    own.least[i] = static_cast<Word>(weight * (n + f * (kTangent / 16)) * (1.0f - kRounding));
    own.most[i] = static_cast<Word>(weight * (n + (f + n) * (kChord / 16)) * (1.0f + kRounding)) + 1;
    if (!row.plan.bins_tell_mass()) {
      own.least[i] = 0;
      own.most[i] = Word{1} << 52;
    }
    if (row.plan.top_k > 0) own.least[i] = own.most[i] = own.count[i];
  }
  const Word wanted = row.plan.top_k > 0 ? static_cast<Word>(row.plan.top_k) : row.wanted(row.total);
  find_edge(own, wanted, row.plan.bin_reach, 0, 0, shared, block);
}

// The ranks of logits by which an edge is searched: their bins, or kBins equal parts of an edge's bins.
struct Ranks {
  Edge edge;        // whose bins are parted; before them is rank -1
  float top;        // the place where those begin
  float per_place;  // 0: bins

  __device__ Ranks() : edge{}, top(0.0f), per_place(0.0f) {}
  __device__ Ranks(const CutRow& row, const Edge& bins)
      : edge(bins),
        top(floorf(row.plan.place(row.largest)) - static_cast<float>(bins.first - 1)),
        per_place(static_cast<float>(kBins) / static_cast<float>(bins.last - bins.first + 1)) {}
  __device__ __forceinline__ int of(const CutRow& row, float logit) const {
    const float bin = row.bin(logit);
    if (bin >= kBins) return kBins;
    if (per_place == 0.0f) return static_cast<int>(bin);
    if (bin < static_cast<float>(edge.first)) return -1;
    if (bin > static_cast<float>(edge.last)) return kBins;
    const int part = static_cast<int>((top - row.plan.place(logit)) * per_place);
    return part < 0 ? 0 : part < kBins ? part : kBins - 1;
  }
};

// The edge again, in parts of its bins, by another pass over the row.
__device__ __forceinline__ void refine_edge(const CutRow& row, const Ranks& ranks, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  store_vec<std::uint32_t, 4>(shared.bins + 4 * thread, Vec<std::uint32_t, 4>{});
  __syncthreads();
  Word before = 0;
  for (int part = 0; part < row.num_parts; ++part)
    row.each_of_part(part, [&](float logit, int) {
      const int rank = ranks.of(row, logit);
      if (rank < 0) before += row.mass(logit);
      if (rank >= 0 && rank < kBins) atomic_add(&shared.bins[rank], 1u);
    });
  before = block.sum(before);  // and all are counted
  BinTotals own;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    own.count[i] = shared.bins[4 * thread + i];
    const float place = ranks.top - static_cast<float>(4 * thread + i) / ranks.per_place;
    const float distance = (place - row.plan.place(row.largest)) / kBinsPerUnit, n = static_cast<float>(own.count[i]);
    const float width = 1.0f / (ranks.per_place * kBinsPerUnit);
    own.least[i] = static_cast<Word>(n * expf(distance - width) * (kUnitMass * (1.0f - kRounding)));
    own.most[i] = static_cast<Word>(n * expf(distance) * (kUnitMass * (1.0f + kRounding))) + own.count[i];
    if (row.plan.top_k > 0) own.least[i] = own.most[i] = own.count[i];
  }
  if (row.plan.top_k > 0)
    find_edge(own, static_cast<Word>(row.plan.top_k), kBins, ranks.edge.num_before, ranks.edge.num_before, shared,
              block);
  else
    find_edge(own, row.wanted(row.total), kBins, ranks.edge.num_before, before, shared, block);
}

}  // namespace
}  // namespace paged::gpu
