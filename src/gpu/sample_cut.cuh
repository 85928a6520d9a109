// SPDX-License-Identifier: Apache-2.0
// top-k and top-p of one row, by one CTA, after a survey of the row. The survey left the largest logit of each group of
// 32, and for a nucleus (or a large k) also how many logits each bin of a part holds. From these follows which bins the
// cut lies in at the latest. Mostly few logits are as large: they are gathered, group by group, and compared with each
// other. A broad nucleus stays where it is; only the bins that its edge may lie in are gathered. Rows whose ties fill a
// bin are searched in full, bit by bit.
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
// Where the cut lies: logits of bins before `first` are kept, of those after `last` are not.
struct CutBins {
  int first, last;
  std::uint32_t num_before, num_up_to_last;  // logits before first, and up to last
};
struct CutShared {
  union {
    alignas(16) std::uint32_t bins[kBins];  // first, then
    CandidateList list;
  };
  union {
    std::uint16_t groups[kMaxCandidates];  // with candidates, then
    Word mass[kSampleThreads];             // of few candidates
    Word part_mass[kMaxParts];             // or of a broad nucleus
  };
  std::int16_t bins_below[kMaxParts];  // from the row's top to the part's
  std::uint32_t num_candidates, num_groups;
  CutBins cut;
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

  __device__ Word mass(float logit) const { return mass_of(logit, largest, plan.inverse); }
  // kBins or more: without mass.
  __device__ float bin(float logit) const { return floorf(plan.place(largest)) - floorf(plan.place(logit)); }
  // fn(group, its largest) for a thread's share. Eight loads are in flight: fn's atomics would hold up the next.
  template <class Fn>
  __device__ void each_group(Fn&& fn) const {
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
  __device__ Word wanted(double all) const { return wanted_mass(static_cast<double>(plan.top_p), all); }
};

// fn(logit, id, mass) for a thread's share of the candidates, or of the whole row.
struct Candidates {
  CutRow row;
  const CandidateList* list;
  int count;
  template <class Fn>
  __device__ void each(Fn&& fn) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads)
      fn(list->logit[i], list->id[i], row.mass(list->logit[i]));
  }
};
struct WholeRow {
  CutRow row;
  template <class Fn>
  __device__ void each(Fn&& fn) const {
    for (int id = static_cast<int>(threadIdx.x) * 4; id < row.logits.vocab; id += kSampleThreads * 4) {
      const Vec<float, 4> some = row.logits.load(id);
#pragma unroll
      for (int e = 0; e < 4; ++e) fn(some.data[e], id + e, row.mass(some.data[e]));
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
  const float first = floorf(plan.place(top));
#pragma unroll
  for (int i = 0; i < kCount * 4; ++i) {
    const float place = plan.place(own[i / 4].data[i % 4]), whole = floorf(place);
    if (first - whole >= kBins) continue;
    const auto sixteenths = static_cast<std::uint32_t>((place - whole) * 16.0f);
    atomic_add(&bins[static_cast<int>(first - whole)], (1u << kPlaceBits) + sixteenths);
  }
  __syncthreads();
  store_vec<std::uint32_t, 4>(to + 4 * thread, load_vec<std::uint32_t, 4>(bins + 4 * thread));
}

// The bin up to which k groups have their largest logit. No other group holds one of the k largest logits.
__device__ __forceinline__ void find_cut_of_groups(const CutRow& row, CutShared& shared, Block& block) {
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
    if (sum < wanted && (sum + own.data[i] >= wanted || bin == kBins - 1)) shared.cut = {0, bin, 0, 0};
    sum += own.data[i];
  }
}

// The bins in which the k-th largest logit lies, or the last of the nucleus, whose mass the bins tell within 0.3 %.
__device__ __forceinline__ void find_cut_of_logits(const CutRow& row, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  Word count[4] = {}, places[4] = {};
#pragma unroll 4
  for (int part = 0; part < row.num_parts; ++part) {
    const int below = shared.bins_below[part];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int bin = 4 * thread + i - below;
      const std::uint32_t packed = bin >= 0 ? row.part_bins[part * kBins + bin] : 0;
      count[i] += packed >> kPlaceBits;
      places[i] += packed & kPlaceMask;
    }
  }
  // exp(f / kBinsPerUnit), where a logit's place is f of a bin above the bin's start, lies between tangent and chord.
  constexpr float kTangent = 1.0f / kBinsPerUnit, kChord = 0.0317434f, kRounding = 0x1p-13f;
  const bool by_count = row.plan.top_k > 0;
  Word least[4], most[4], of_thread[3] = {};  // counts, or masses
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float start = floorf(row.plan.place(row.largest)) - static_cast<float>(4 * thread + i);
    const float weight = expf((start - row.plan.place(row.largest)) / kBinsPerUnit) * kUnitMass;
    const float n = static_cast<float>(count[i]), f = static_cast<float>(places[i]);
    least[i] = static_cast<Word>(weight * (n + f * (kTangent / 16)) * (1.0f - kRounding));
    most[i] = static_cast<Word>(weight * (n + (f + n) * (kChord / 16)) * (1.0f + kRounding)) + 1;
    if (row.plan.inverse > kMaxBinnedInverse) {  // a bin is wider than that
      least[i] = 0;
      most[i] = Word{1} << 52;
    }
    if (by_count) least[i] = most[i] = count[i];
    of_thread[0] += count[i];
    of_thread[1] += least[i];
    of_thread[2] += most[i];
  }
  Word all;
  Word num = block.sum_before(of_thread[0], all);
  Word low = block.sum_before(of_thread[1], all), high = block.sum_before(of_thread[2], all);
  const Word wanted = by_count ? static_cast<Word>(row.plan.top_k) : row.wanted(row.total);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int bin = 4 * thread + i;
    const bool is_end = bin == kBins - 1;
    if (high < wanted && (high + most[i] >= wanted || is_end)) {
      shared.cut.first = bin;
      shared.cut.num_before = static_cast<std::uint32_t>(num);
    }
    if (low < wanted && (low + least[i] >= wanted || is_end)) {
      shared.cut.last = bin;
      shared.cut.num_up_to_last = static_cast<std::uint32_t>(num + count[i]);
    }
    num += count[i];
    low += least[i];
    high += most[i];
  }
}

// Lists the groups that may hold logits of bins up to the cut's last, then those logits, in no particular order. False
// if there are too many.
__device__ __forceinline__ bool gather(const CutRow& row, CutShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const float last = static_cast<float>(shared.cut.last);
  row.each_group([&](int group, float largest) {
    if (row.bin(largest) > last) return;
    const std::uint32_t at = atomic_add(&shared.num_groups, 1u);
    if (at < kMaxCandidates) shared.groups[at] = static_cast<std::uint16_t>(group);
  });
  __syncthreads();
  const int num_groups = static_cast<int>(shared.num_groups);
  if (num_groups > kMaxCandidates) return false;
  for (int i = thread; i < num_groups * kPartVectors; i += kSampleThreads) {
    const int group = shared.groups[i / kPartVectors];
    const int id =
        group / kSampleThreads * kPartLogits + i % kPartVectors * (kSampleThreads * 4) + group % kSampleThreads * 4;
    const Vec<float, 4> some = row.logits.load(id);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (row.bin(some.data[e]) > last || row.mass(some.data[e]) == 0) continue;
      const std::uint32_t at = atomic_add(&shared.num_candidates, 1u);
      if (at >= kMaxCandidates) continue;
      shared.list.logit[at] = some.data[e];
      shared.list.id[at] = id + e;
    }
  }
  __syncthreads();
  return shared.num_candidates <= kMaxCandidates;
}

// At most one candidate a thread: each is compared with all others. Sets shared.token.
__device__ __forceinline__ void pick_of_few(const CutRow& row, CutShared& shared, int count, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  const bool exists = thread < count;
  const float logit = exists ? shared.list.logit[thread] : kNoLogit;
  const std::int32_t id = exists ? shared.list.id[thread] : 0;
  Word mass = exists ? row.mass(logit) : 0;
  shared.mass[thread] = mass;
  __syncthreads();
  int num_larger = 0;
  Word mass_larger = 0;
  for (int i = 0; i < count; ++i) {
    if (shared.list.logit[i] <= logit) continue;
    ++num_larger;
    mass_larger += shared.mass[i];
  }
  if (row.plan.top_k > 0 && num_larger >= row.plan.top_k) mass = 0;
  if (row.plan.top_p < 1.0f) {
    const double total = row.plan.top_k > 0 ? static_cast<double>(block.sum(mass)) : row.total;
    if (mass_larger >= row.wanted(total)) mass = 0;
  }
  const Word at = mass_at(row.fraction, block.sum(mass));  // and everybody has read the masses
  shared.mass[thread] = mass;
  __syncthreads();
  Word before = 0;
  for (int i = 0; i < count; ++i) before += shared.list.id[i] < id ? shared.mass[i] : 0;
  if (before <= at && at < before + mass) shared.token = id;
}

// The largest number of which measure(number, logit, id, mass), which falls with it, sums up to `wanted`; or 0.
template <class Source, class Measure>
__device__ __forceinline__ std::uint32_t largest_with(const Source& source, Word wanted, Block& block,
                                                      Measure&& measure) {
  std::uint32_t found = 0;
  for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const std::uint32_t trial = found | bit;
    Word sum = 0;
    source.each([&](float logit, std::int32_t id, Word mass) { sum += measure(trial, logit, id, mass); });
    if (block.sum(sum) >= wanted) found = trial;
  }
  return found;
}

// The smallest, as ordered, of the k largest logits; of the nucleus.
template <class Source>
__device__ __forceinline__ std::uint32_t least_of_largest(const Source& source, Word k, Block& block) {
  return largest_with(source, k, block, [](std::uint32_t trial, float logit, std::int32_t, Word mass) {
    return mass != 0 && ordered(logit) >= trial ? Word{1} : Word{0};
  });
}
template <class Source>
__device__ __forceinline__ std::uint32_t least_of_nucleus(const Source& source, Word wanted, Block& block) {
  return largest_with(source, wanted, block, [](std::uint32_t trial, float logit, std::int32_t, Word mass) {
    return ordered(logit) >= trial ? mass : Word{0};
  });
}

// Any number of candidates. Sets shared.token.
template <class Source>
__device__ __forceinline__ void pick_of_many(const CutRow& row, const Source& source, CutShared& shared, Block& block) {
  std::uint32_t least = 0;  // as ordered: the smallest logit that is kept
  const auto mass_kept = [&least](float logit, Word mass) { return ordered(logit) >= least ? mass : Word{0}; };
  const auto total_kept = [&] {
    Word sum = 0;
    source.each([&](float logit, std::int32_t, Word mass) { sum += mass_kept(logit, mass); });
    return block.sum(sum);
  };
  if (row.plan.top_k > 0) least = least_of_largest(source, static_cast<Word>(row.plan.top_k), block);
  if (row.plan.top_p < 1.0f) {
    const double total = row.plan.top_k > 0 ? static_cast<double>(total_kept()) : row.total;
    const std::uint32_t nucleus = least_of_nucleus(source, row.wanted(total), block);
    if (nucleus > least) least = nucleus;
  }
  const Word at = mass_at(row.fraction, total_kept());
  // Ids from the lowest up: the largest complement that has more than `at` at and below it.
  const std::uint32_t complement =
      largest_with(source, at + 1, block, [&](std::uint32_t trial, float logit, std::int32_t id, Word mass) {
        return ~static_cast<std::uint32_t>(id) >= trial ? mass_kept(logit, mass) : Word{0};
      });
  if (threadIdx.x == 0) shared.token = static_cast<std::int32_t>(~complement);
}

// A nucleus, or k, of more logits than fit the list: those of the bins that the edge may lie in are listed, the masses
// of those before are added up by part. Sets shared.token.
__device__ __forceinline__ void pick_of_broad(const CutRow& row, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto first = static_cast<float>(shared.cut.first), last = static_cast<float>(shared.cut.last);
  Word before = 0;
  for (int part = 0; part < row.num_parts; ++part) {
    Word own = 0;
    const int id = part * kPartLogits + thread * 4;
    Vec<float, 4> some[kPartVectors];
#pragma unroll
    for (int i = 0; i < kPartVectors; ++i) some[i] = row.logits.load(id + i * kSampleThreads * 4);
#pragma unroll
    for (int i = 0; i < kPartVectors * 4; ++i) {
      const float logit = some[i / 4].data[i % 4], bin = row.bin(logit);
      if (bin < first) own += row.mass(logit);
      if (bin < first || bin > last) continue;
      const std::uint32_t at = atomic_add(&shared.num_candidates, 1u);
      shared.list.logit[at] = logit;
      shared.list.id[at] = id + i / 4 * kSampleThreads * 4 + i % 4;
    }
    own = block.sum(own);
    if (thread == 0) shared.part_mass[part] = own;
    before += own;
  }
  __syncthreads();
  const Candidates edge{row, &shared.list, static_cast<int>(shared.num_candidates)};
  const std::uint32_t least =
      row.plan.top_k > 0 ? least_of_largest(edge, static_cast<Word>(row.plan.top_k) - shared.cut.num_before, block)
                         : least_of_nucleus(edge, row.wanted(row.total) - before, block);
  edge.each([&](float logit, std::int32_t id, Word mass) {
    if (ordered(logit) >= least) atomic_add(&shared.part_mass[id / kPartLogits], mass);
  });
  __syncthreads();
  const Word own = thread < row.num_parts ? shared.part_mass[thread] : 0;
  Word all;
  before = block.sum_before(own, all);
  const Word at = mass_at(row.fraction, all);
  if (before <= at && at < before + own) {
    shared.part = thread;
    shared.at = at - before;
  }
  __syncthreads();
  walk_part(row.logits, row.plan.inverse, shared.part, row.largest, least, shared.at, block, shared.token);
}

// Sets shared.token. shared.bins_below is known.
__device__ __forceinline__ void pick_cut(const CutRow& row, CutShared& shared, Block& block) {
  if (threadIdx.x == 0) shared.num_candidates = shared.num_groups = 0;
  const bool binned = row.plan.needs_bins();
  if (binned)
    find_cut_of_logits(row, shared, block);
  else
    find_cut_of_groups(row, shared, block);
  __syncthreads();
  const CutBins cut = shared.cut;
  if (cut.num_up_to_last <= kMaxCandidates && gather(row, shared)) {
    const int count = static_cast<int>(shared.num_candidates);
    if (count <= kSampleThreads) return pick_of_few(row, shared, count, block);
    return pick_of_many(row, Candidates{row, &shared.list, count}, shared, block);
  }
  const bool one_edge = row.plan.top_k == 0 || row.plan.top_p >= 1.0f;
  if (binned && one_edge && cut.num_up_to_last - cut.num_before <= kMaxCandidates)
    return pick_of_broad(row, shared, block);
  pick_of_many(row, WholeRow{row}, shared, block);
}

}  // namespace
}  // namespace paged::gpu
