// SPDX-License-Identifier: Apache-2.0
// top-k and top-p of one row, by one CTA, once the bins are known that their edge lies in at the latest. Mostly few
// logits are as large: they are gathered, group by group, and compared with each other. Of a broad nucleus only the
// logits at its edge are gathered. Rows with too many equal logits there are searched in full, bit by bit.
#pragma once

#include "gpu/sample_bins.cuh"

namespace paged::gpu {
namespace {

// Lists the groups that may hold logits of bins up to the cut's last, then those logits, in no particular order. False
// if there are too many.
__device__ __forceinline__ bool gather(const CutRow& row, CutShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const float last = static_cast<float>(shared.edge.last);
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

// Sorts the list by falling logits; after its end, up to what is returned, are logits without mass.
__device__ __forceinline__ int sort_list(CandidateList& list, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  int size = kSampleThreads;
  while (size < count) size *= 2;
  for (int i = count + thread; i < size; i += kSampleThreads) {
    list.logit[i] = kNoLogit;
    list.id[i] = 0;
  }
  // Batcher's bitonic network.
  for (int run = 2; run <= size; run *= 2)
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = thread; pair < size / 2; pair += kSampleThreads) {
        const int i = 2 * pair - (pair & (step - 1)), j = i + step;
        const float a = list.logit[i], b = list.logit[j];
        if ((a < b) != ((i & run) == 0)) continue;
        list.logit[i] = b;
        list.logit[j] = a;
        const std::int32_t id = list.id[i];
        list.id[i] = list.id[j];
        list.id[j] = id;
      }
    }
  __syncthreads();
  return size;
}

// From shared.parts, what is kept of each part. Sets shared.token.
__device__ __forceinline__ void pick_by_part(const CutRow& row, CutShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  const PartMasses& parts = shared.parts;
  Word own = 0, all;
  if (thread < row.num_parts)
    own = parts.whole[thread] + parts.limbs[0][thread] + (Word{parts.limbs[1][thread]} << 15) +
          (Word{parts.limbs[2][thread]} << 30);
  const Word before = block.sum_before(own, all);
  const Word at = mass_at(row.fraction, all);
  if (before <= at && at < before + own) {
    shared.part = thread;
    shared.at = at - before;
  }
  __syncthreads();
  walk_part(row.logits, row.plan.inverse, shared.part, row.largest, shared.least, shared.at, block, shared.token);
}

// The list's logits follow num_before others with a mass of `before`, which shared.parts already knows. Adds what is
// kept of the list and sets shared.least.
__device__ __forceinline__ void keep_of_list(const CutRow& row, CutShared& shared, int count, int num_before,
                                             Word before, Block& block) {
  const int share = sort_list(shared.list, count) / kSampleThreads, begin = static_cast<int>(threadIdx.x) * share;
  const int last = row.plan.top_k - num_before - 1;  // of the k largest
  const float least = row.plan.top_k > 0 && last < count ? shared.list.logit[last] : kNoLogit;
  const auto mass_at_index = [&](int i) {
    return shared.list.logit[i] >= least ? row.mass(shared.list.logit[i]) : Word{0};
  };
  if (threadIdx.x == 0) shared.least = ordered(least);
  Word own = 0, all;
  for (int i = begin; i < begin + share; ++i) own += mass_at_index(i);
  Word sum = before + block.sum_before(own, all);
  if (row.plan.top_p < 1.0f) {
    const Word wanted = row.wanted(row.plan.top_k > 0 ? static_cast<double>(before + all) : row.total);
    for (int i = begin; i < begin + share && sum < wanted; ++i) {
      sum += mass_at_index(i);
      if (sum >= wanted) shared.least = ordered(shared.list.logit[i]);
    }
  }
  __syncthreads();
  for (int i = begin; i < begin + share; ++i) {
    if (ordered(shared.list.logit[i]) < shared.least) continue;
    const Word mass = row.mass(shared.list.logit[i]);
    for (int limb = 0; limb < 3; ++limb)
      atomic_add(&shared.parts.limbs[limb][shared.list.id[i] / kPartLogits],
                 static_cast<std::uint32_t>(mass >> (15 * limb)) & 0x7fffu);
  }
}

// Lists the edge's logits; adds up, by part, the masses of those before, and returns their sum.
__device__ __forceinline__ Word list_edge(const CutRow& row, const Ranks& ranks, CutShared& shared, Block& block) {
  const Edge edge = shared.edge;
  Word before = 0;
  for (int part = 0; part < row.num_parts; ++part) {
    Word own = 0;
    row.each_of_part(part, [&](float logit, int id) {
      const int rank = ranks.of(row, logit);
      if (rank < edge.first) own += row.mass(logit);
      if (rank < edge.first || rank > edge.last) return;
      const std::uint32_t at = atomic_add(&shared.num_candidates, 1u);
      if (at >= kMaxCandidates) return;
      shared.list.logit[at] = logit;
      shared.list.id[at] = id;
    });
    own = block.sum(own);
    if (threadIdx.x == 0) shared.parts.whole[part] = own;
    before += own;
  }
  return before;
}

// Of the whole row, what measure(ordered logit, mass) adds up to.
template <class Measure>
__device__ __forceinline__ Word sum_of_row(const CutRow& row, Block& block, Measure&& measure) {
  Word sum = 0;
  for (int part = 0; part < row.num_parts; ++part)
    row.each_of_part(part, [&](float logit, int) { sum += measure(ordered(logit), row.mass(logit)); });
  return block.sum(sum);
}

// Any row. Sets shared.least and what is kept of each part.
__device__ __forceinline__ void keep_of_all(const CutRow& row, CutShared& shared, Block& block) {
  std::uint32_t least = 0;
  // First the k largest, then the nucleus of those: the largest number that logits enough are not below.
  for (int cut = 0; cut < 2; ++cut) {
    const bool by_count = cut == 0;
    if (by_count ? row.plan.top_k == 0 : !(row.plan.top_p < 1.0f)) continue;
    const auto from = [&](std::uint32_t trial) {
      return sum_of_row(row, block, [&](std::uint32_t logit, Word mass) {
        return logit < trial || mass == 0 ? Word{0} : by_count ? Word{1} : mass;
      });
    };
    const Word wanted = by_count              ? static_cast<Word>(row.plan.top_k)
                        : row.plan.top_k == 0 ? row.wanted(row.total)
                                              : row.wanted(static_cast<double>(from(least)));
    std::uint32_t found = 0;
    for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1)
      if (from(found | bit) >= wanted) found |= bit;
    if (found > least) least = found;
  }
  for (int part = 0; part < row.num_parts; ++part) {
    Word own = 0;
    row.each_of_part(part, [&](float logit, int) { own += ordered(logit) < least ? 0 : row.mass(logit); });
    own = block.sum(own);
    if (threadIdx.x == 0) shared.parts.whole[part] = own;
  }
  if (threadIdx.x == 0) shared.least = least;
}

__device__ __forceinline__ void clear_parts(PartMasses& parts) {
  for (int i = static_cast<int>(threadIdx.x); i < kMaxParts; i += kSampleThreads) {
    parts.whole[i] = 0;
    for (int limb = 0; limb < 3; ++limb) parts.limbs[limb][i] = 0;
  }
}

// Sets shared.token. shared.bins_below is known.
__device__ __forceinline__ void pick_cut(const CutRow& row, CutShared& shared, Block& block) {
  if (threadIdx.x == 0) shared.num_candidates = shared.num_groups = 0;
  const bool binned = row.plan.needs_bins();
  if (binned)
    find_edge_of_logits(row, shared, block);
  else
    find_edge_of_groups(row, shared, block);
  __syncthreads();
  Edge edge = shared.edge;
  bool listed = edge.num_up_to_last <= kMaxCandidates && gather(row, shared);
  if (listed && shared.num_candidates <= kSampleThreads)
    return pick_of_few(row, shared, static_cast<int>(shared.num_candidates), block);
  __syncthreads();
  clear_parts(shared.parts);
  Word before = 0;
  if (!listed && binned && row.plan.bins_tell_mass() && (row.plan.top_k == 0 || row.plan.top_p >= 1.0f)) {
    Ranks ranks;
    if (edge.size() > kMaxCandidates) {
      ranks = Ranks(row, edge);
      refine_edge(row, ranks, shared, block);
    }
    edge = shared.edge;
    listed = edge.size() <= kMaxCandidates;
    if (listed) before = list_edge(row, ranks, shared, block);
  } else {
    edge.num_before = 0;
  }
  __syncthreads();
  if (listed)
    keep_of_list(row, shared, static_cast<int>(shared.num_candidates), static_cast<int>(edge.num_before), before,
                 block);
  else
    keep_of_all(row, shared, block);
  pick_by_part(row, shared, block);
}

}  // namespace
}  // namespace paged::gpu
