// SPDX-License-Identifier: Apache-2.0
// Sampling on a GPU, by the definition of cpu/sample.cpp, in one launch that reads the logits once. Each CTA surveys a
// part of a row; the last one of a row to finish knows the row's largest logit and the masses of its parts, and picks:
// greedily at once, without top-k and top-p inside the one part that holds the token, else among a few candidates
// (sample_cut.cuh). What a part is depends on the vocabulary alone, so a token does not depend on the batch.
#pragma once

#include "base/check.h"
#include "base/philox.h"
#include "gpu/gpu.h"
#include "gpu/sample_cut.cuh"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

struct PartSurvey {
  Word best;  // the ordered largest logit above, the complement of its lowest id below
  Word mass;  // relative to the part's largest; where no top-k makes the row's total superfluous
};

struct SampleWork {
  SampleParams op;
  PartSurvey* surveys;       // [rows, parts]
  float* group_max;          // [rows, parts, kSampleThreads]: of what one thread surveyed
  std::uint32_t* part_bins;  // [rows, parts, kBins]
  std::uint32_t* counters;
  int num_parts;
  bool vectors;
};

struct SampleShared {
  Block::Slots slots;
  std::uint32_t is_last;
  CutShared cut;
};

__device__ __forceinline__ std::uint32_t key_of(Word best) { return static_cast<std::uint32_t>(best >> 32); }
__device__ __forceinline__ std::int32_t id_of(Word best) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(best));
}

__device__ __forceinline__ void survey_part(const SampleWork& work, const RowLogits& logits, const RowPlan& plan,
                                            SampleShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x), part = static_cast<int>(blockIdx.x);
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.y) * work.num_parts + part;
  Vec<float, 4> own[kPartVectors];
#pragma unroll
  for (int i = 0; i < kPartVectors; ++i) own[i] = logits.load(part * kPartLogits + (i * kSampleThreads + thread) * 4);
  float largest = own[0].data[0];
  int where = 0;
  bool nan = false;
#pragma unroll
  for (int i = 0; i < kPartVectors * 4; ++i) {
    const float logit = own[i / 4].data[i % 4];
    nan |= logit != logit;
    if (logit > largest) where = i;
    largest = fmaxf(logit, largest);
  }
  const int id = part * kPartLogits + (where / 4 * kSampleThreads + thread) * 4 + where % 4;
  const std::uint32_t key = nan ? 0xffffffffu : ordered(largest);
  const Word best = block.largest(static_cast<Word>(key) << 32 | ~static_cast<std::uint32_t>(id));
  if (plan.cuts()) work.group_max[at * kSampleThreads + thread] = largest;
  Word mass = 0;
  const float base = from_ordered(key_of(best));
  const bool finite = is_finite_key(key_of(best));
  if (plan.needs_bins() && finite) count_in_bins(plan, own, base, shared.cut.bins, work.part_bins + at * kBins);
  if (plan.needs_total() && finite) {
#pragma unroll
    for (int i = 0; i < kPartVectors * 4; ++i) mass += mass_of(own[i / 4].data[i % 4], base, plan.inverse);
    mass = block.sum(mass);
  }
  if (thread == 0) work.surveys[at] = {best, mass};
}

// Whether all other CTAs of the row have left their survey. Every thread may then read it.
__device__ bool is_last_of_row(const SampleWork& work, SampleShared& shared) {
  __syncthreads();
  if (gridDim.x == 1) return true;
  if (threadIdx.x == 0) {
    std::uint32_t* counter = work.counters + blockIdx.y;
    thread_fence();
    shared.is_last = atomic_add(counter, 1u) == gridDim.x - 1 ? 1 : 0;
    if (shared.is_last != 0) *counter = 0;
    thread_fence();
  }
  __syncthreads();
  return shared.is_last != 0;
}

// Without top-k and top-p: first the part, then the token inside it. `mass` is that of the thread's part, relative to
// the row's largest logit, `before` that of the parts before it. Sets shared.cut.token.
__device__ __forceinline__ void pick_any(const RowLogits& logits, const RowPlan& plan, const PartSurvey* surveys,
                                         Word mass, Word before, Word at, SampleShared& shared, Block& block) {
  if (before <= at && at < before + mass) {
    const double inside = static_cast<double>(at - before) / static_cast<double>(mass);
    shared.cut.part = static_cast<int>(threadIdx.x);
    shared.cut.at = mass_at(inside, surveys[threadIdx.x].mass);
  }
  __syncthreads();
  const float base = from_ordered(key_of(surveys[shared.cut.part].best));
  walk_part(logits, plan.inverse, shared.cut.part, base, 0, shared.cut.at, block, shared.cut.token);
}

// By the row's last CTA, in which every thread gets the token.
__device__ __forceinline__ std::int32_t finish_row(const SampleWork& work, const RowLogits& logits, const RowPlan& plan,
                                                   const SamplingRow& how, SampleShared& shared, Block& block) {
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * work.num_parts;
  const PartSurvey* surveys = work.surveys + first;
  const PartSurvey own = thread < work.num_parts ? surveys[thread] : PartSurvey{0, 0};
  const Word best = block.largest(own.best);
  if (!is_finite_key(key_of(best))) return kNoToken;
  if (plan.greedy()) return id_of(best);
  const float largest = from_ordered(key_of(best)), part_largest = from_ordered(key_of(own.best));
  const double fraction = uniform(how.seed, how.position);
  Word mass = 0, before = 0, total = 0;
  if (plan.needs_total()) {
    if (own.mass != 0)
      mass = static_cast<Word>(static_cast<double>(own.mass) *
                               static_cast<double>(weight_of(part_largest, largest, plan.inverse)));
    before = block.sum_before(mass, total);
  }
  if (!plan.cuts()) {
    pick_any(logits, plan, surveys, mass, before, mass_at(fraction, total), shared, block);
  } else {
    if (thread < work.num_parts) {
      const float below = floorf(plan.place(largest)) - floorf(plan.place(part_largest));
      shared.cut.bins_below[thread] = static_cast<std::int16_t>(below < kBins ? below : kBins);
    }
    __syncthreads();
    pick_cut({logits, plan, work.group_max + first * kSampleThreads, work.part_bins + first * kBins, work.num_parts,
              largest, static_cast<double>(total), fraction},
             shared.cut, block);
  }
  __syncthreads();
  return shared.cut.token;
}

__global__ void __launch_bounds__(kSampleThreads, 3) sample_kernel(const SampleWork work) {
  __shared__ SampleShared shared;
  release_dependents();
  wait_for_predecessors();
  const SampleParams& op = work.op;
  const std::int64_t row = blockIdx.y;
  const int vocab = static_cast<int>(op.logits.cols);
  const RowLogits logits{static_cast<const float*>(op.logits.data) + row * op.logits.row_stride, vocab, work.vectors};
  const SamplingRow how = op.rows[row];
  const RowPlan plan(how, vocab);
  Block block(shared.slots);
  survey_part(work, logits, plan, shared, block);
  if (!is_last_of_row(work, shared)) return;
  const std::int32_t token = finish_row(work, logits, plan, how, shared, block);
  if (threadIdx.x != 0) return;
  op.token_ids[row] = token;
  if (op.last_tokens != nullptr) op.last_tokens[op.table_rows[row]] = token;
}

int num_parts_of(std::int64_t vocab) { return static_cast<int>((vocab + kPartLogits - 1) / kPartLogits); }
constexpr std::int64_t kPartBytes = sizeof(PartSurvey) + 4 * kSampleThreads + 4 * kBins;

}  // namespace

std::int64_t sample_workspace_bytes(const GpuContext&, std::int64_t max_rows, std::int64_t vocab_size) {
  return max_rows * num_parts_of(vocab_size) * kPartBytes;
}

void sample(const ExecutionContext& context, const SampleParams& params) {
  const std::int64_t rows = params.logits.rows, vocab = params.logits.cols;
  PAGED_CHECK(vocab <= std::int64_t{kMaxParts} * kPartLogits && rows <= GpuContext::kCounters, "sample: ", rows,
              " rows of a vocabulary of ", vocab, " are more than the ", GpuContext::kCounters, " of ",
              kMaxParts * kPartLogits, " that fit");
  if (rows == 0) return;
  const std::int64_t num_parts = num_parts_of(vocab);
  auto* const part_bins = static_cast<std::uint32_t*>(params.workspace);
  auto* const group_max = reinterpret_cast<float*>(part_bins + rows * num_parts * kBins);
  SampleWork work{
      .op = params,
      .surveys = reinterpret_cast<PartSurvey*>(group_max + rows * num_parts * kSampleThreads),
      .group_max = group_max,
      .part_bins = part_bins,
      .counters = context.gpu->counters,
      .num_parts = static_cast<int>(num_parts),
      .vectors = reinterpret_cast<std::uintptr_t>(params.logits.data) % 16 == 0 && params.logits.row_stride % 4 == 0};
  launch(sample_kernel, dim3(static_cast<unsigned>(work.num_parts), static_cast<unsigned>(rows)), dim3(kSampleThreads),
         0, static_cast<Stream>(context.gpu->stream), work);
}

}  // namespace paged::gpu
