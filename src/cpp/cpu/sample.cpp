// SPDX-License-Identifier: Apache-2.0
// Sampling of one row: temperature, then top-k, then top-p on what top-k left, then the inverse of the cumulative
// distribution in the order of token ids at one uniform number that depends on (seed, position) alone. No sort of the
// vocabulary: top-k keeps a running threshold over a small buffer, top-p halves the candidates until the mass fits.
// Ties at the k-th logit are all kept, as in vLLM. A row that is not a distribution (NaN, +infinity, nothing above
// -infinity) gives token -1, so that only its own request fails.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/philox.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"

namespace paged::cpu {
namespace {

constexpr std::int32_t kNoToken = -1;
constexpr std::int64_t kGreedyChunk = 8192;  // logits that a thread looks at in one go

std::int64_t round_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

// One thread's part of the workspace.
struct Workspace {
  float* weights;      // [vocab] exp((logit - max) / temperature)
  float* sorted;       // [vocab + 16]
  std::int32_t* ids;   // [vocab] candidates, ascending
  double* block_sums;  // [ceil(vocab / kSumBlock)]
};

std::int64_t workspace_bytes(std::int64_t vocab) {
  return round_up(4 * (vocab + 16)) * 3 + round_up(8 * (vocab / kSumBlock + 1));
}

Workspace workspace_of(void* base, int thread, std::int64_t vocab) {
  std::byte* at = static_cast<std::byte*>(base) + thread * workspace_bytes(vocab);
  const std::int64_t step = round_up(4 * (vocab + 16));
  return {reinterpret_cast<float*>(at), reinterpret_cast<float*>(at + step),
          reinterpret_cast<std::int32_t*>(at + 2 * step), reinterpret_cast<double*>(at + 3 * step)};
}

struct Row {
  const float* logits;
  std::int64_t vocab;
  SamplingRow how;
  Workspace work;
};

std::int32_t first_at_least(const Row& row, float threshold) {
  std::int32_t id[16];
  std::int64_t next = 0;
  std::int64_t count = 0;
  while (count == 0 && next < row.vocab)
    count = kernels().collect(row.logits, row.vocab, threshold, id, 16, next, &next);
  return count > 0 ? id[0] : kNoToken;
}

// The k-th largest logit, k < vocab. Keeps the candidates seen so far in a buffer of 2 k or more; when it is full, all
// but the k largest go and the threshold rises, after which few logits pass it.
float kth_largest(const Row& row, std::int64_t k) {
  float* buffer = row.work.sorted;
  const std::int64_t capacity = std::min(row.vocab, std::max<std::int64_t>(2 * k, 1024)) + 16;
  float threshold = -std::numeric_limits<float>::infinity();
  std::int64_t kept = 0;
  for (std::int64_t next = 0; next < row.vocab;) {
    const std::int64_t room = capacity - kept;
    if (room < 16) {
      std::nth_element(buffer, buffer + k - 1, buffer + kept, std::greater<>());
      threshold = buffer[k - 1];
      kept = k;
      continue;
    }
    const std::int64_t count = kernels().collect(row.logits, row.vocab, threshold, row.work.ids, room, next, &next);
    for (std::int64_t i = 0; i < count; ++i) buffer[kept++] = row.logits[row.work.ids[i]];
  }
  std::nth_element(buffer, buffer + k - 1, buffer + kept, std::greater<>());
  return buffer[k - 1];
}

// The smallest weight of the least set of largest weights whose mass reaches top_p. weights [count] are reordered.
float nucleus_threshold(float* weights, std::int64_t count, double wanted_mass) {
  std::int64_t low = 0;
  std::int64_t high = count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    std::nth_element(weights + low, weights + middle, weights + high, std::greater<>());
    double mass = 0.0;
    for (std::int64_t i = low; i < middle; ++i) mass += static_cast<double>(weights[i]);
    if (mass >= wanted_mass) {
      high = middle;
    } else {
      wanted_mass -= mass;
      low = middle;
    }
  }
  return weights[low];
}

// Keeps the candidates ids[0 .. count) whose weight belongs to the nucleus; returns how many.
std::int64_t apply_top_p(const Row& row, std::int64_t count, double total) {
  const Workspace& work = row.work;
  for (std::int64_t i = 0; i < count; ++i) work.sorted[i] = work.weights[work.ids[i]];
  const float threshold = nucleus_threshold(work.sorted, count, static_cast<double>(row.how.top_p) * total);
  const auto end =
      std::remove_if(work.ids, work.ids + count, [&](std::int32_t id) { return work.weights[id] < threshold; });
  return end - work.ids;
}

double mass_of(const Workspace& work, std::int64_t count) {
  double total = 0.0;
  for (std::int64_t i = 0; i < count; ++i) total += static_cast<double>(work.weights[work.ids[i]]);
  return total;
}

// Among ids[0 .. count), at `fraction` of their mass.
std::int32_t pick(const Workspace& work, std::int64_t count, double fraction) {
  double left = fraction * mass_of(work, count);
  std::int32_t last = kNoToken;
  for (std::int64_t i = 0; i < count; ++i) {
    if (work.weights[work.ids[i]] == 0.0f) continue;
    last = work.ids[i];
    left -= static_cast<double>(work.weights[last]);
    if (left < 0.0) break;
  }
  return last;
}

// Among the whole vocabulary: blocks first, then inside the block.
std::int32_t pick_any(const Row& row, double fraction, double total) {
  const Workspace& work = row.work;
  double left = fraction * total;
  std::int64_t begin = 0;
  for (std::int64_t block = 0; begin + kSumBlock < row.vocab && left >= work.block_sums[block]; ++block) {
    left -= work.block_sums[block];
    begin += kSumBlock;
  }
  std::int32_t last = kNoToken;
  const std::int64_t end = std::min(begin + kSumBlock, row.vocab);
  for (std::int64_t id = begin; id < end; ++id) {
    if (work.weights[id] == 0.0f) continue;
    last = static_cast<std::int32_t>(id);
    left -= static_cast<double>(work.weights[id]);
    if (left < 0.0) break;
  }
  // Rounding may lead into an empty last block: then the largest logit, which always has weight 1.
  return last != kNoToken ? last : first_at_least(row, kernels().row_max(row.logits, row.vocab));
}

// Candidates that can be in the nucleus at all: the others' mass together is below 1 - top_p.
std::int64_t collect_likely(const Row& row, double total) {
  const double cut = (1.0 - static_cast<double>(row.how.top_p)) * total / static_cast<double>(row.vocab);
  std::int64_t next = 0;
  return kernels().collect(row.work.weights, row.vocab, static_cast<float>(cut * 0.999), row.work.ids, row.vocab + 16,
                           0, &next);
}

bool has_top_k(const Row& row) { return row.how.top_k > 0 && row.how.top_k < row.vocab; }

// Writes the weights of all, and which ids top-k and top-p keep, if there are any: else none. Returns how many. `total`
// is the mass of all.
std::int64_t weigh_and_cut(const Row& row, float largest, double& total) {
  const bool top_k = has_top_k(row);
  std::int64_t count = 0;
  if (top_k) {
    std::int64_t next = 0;
    count = kernels().collect(row.logits, row.vocab, kth_largest(row, row.how.top_k), row.work.ids, row.vocab + 16, 0,
                              &next);
  }
  // Bounded, so that a vanishing temperature leaves the largest logit with weight 1 instead of 0 * infinity.
  const float inverse = std::min(1.0f / row.how.temperature, std::numeric_limits<float>::max());
  kernels().exp_row({row.logits, row.vocab, largest, inverse, row.work.weights, row.work.block_sums});
  total = 0.0;
  for (std::int64_t block = 0; block * kSumBlock < row.vocab; ++block) total += row.work.block_sums[block];
  if (!(row.how.top_p < 1.0f)) return count;
  if (!top_k) count = collect_likely(row, total);
  return apply_top_p(row, count, top_k ? mass_of(row.work, count) : total);
}

// Greedy, by all threads: the largest of each chunk, then the first chunk that has the largest of all. `largest` has
// room for one number a chunk.
std::int32_t sample_greedy(ThreadPool& threads, const float* logits, std::int64_t vocab, float* largest) {
  const std::int64_t num_chunks = (vocab + kGreedyChunk - 1) / kGreedyChunk;
  threads.parallel_for(num_chunks, [&](std::int64_t chunk, int) {
    const std::int64_t begin = chunk * kGreedyChunk;
    largest[chunk] = kernels().row_max(logits + begin, std::min(kGreedyChunk, vocab - begin));
  });
  const float best = kernels().row_max(largest, num_chunks);
  if (!std::isfinite(best)) return kNoToken;
  const std::int64_t begin = (std::find(largest, largest + num_chunks, best) - largest) * kGreedyChunk;
  return static_cast<std::int32_t>(std::find(logits + begin, logits + vocab, best) - logits);
}

std::int32_t sample_row(const Row& row) {
  const float largest = kernels().row_max(row.logits, row.vocab);
  if (!std::isfinite(largest)) return kNoToken;
  if (row.how.temperature <= 0.0f) return first_at_least(row, largest);
  const double fraction = uniform(row.how.seed, row.how.position);
  double total;
  const std::int64_t count = weigh_and_cut(row, largest, total);
  const bool cuts = has_top_k(row) || row.how.top_p < 1.0f;
  return cuts ? pick(row.work, count, fraction) : pick_any(row, fraction, total);
}

}  // namespace

void sample(ThreadPool& threads, const SampleParams& params) {
  const std::int64_t vocab = params.logits.cols;
  if (params.logits.rows == 1 && params.rows[0].temperature <= 0.0f) {
    params.token_ids[0] = sample_greedy(threads, static_cast<const float*>(params.logits.data), vocab,
                                        workspace_of(params.workspace, 0, vocab).weights);
    return;
  }
  threads.parallel_for(params.logits.rows, [&](std::int64_t row, int thread) {
    const float* logits = static_cast<const float*>(params.logits.data) + row * params.logits.row_stride;
    params.token_ids[row] =
        sample_row({logits, vocab, params.rows[row], workspace_of(params.workspace, thread, vocab)});
  });
}

float least_kept_logit(const float* logits, std::int64_t vocab_size, const SamplingRow& how, void* workspace) {
  const Row row{logits, vocab_size, how, workspace_of(workspace, 0, vocab_size)};
  double total;
  const std::int64_t count = weigh_and_cut(row, kernels().row_max(logits, vocab_size), total);
  float least = std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < count; ++i) least = std::min(least, logits[row.work.ids[i]]);
  return least;
}

std::int64_t sample_workspace_bytes(int num_threads, std::int64_t vocab_size) {
  return num_threads * workspace_bytes(vocab_size);
}

}  // namespace paged::cpu
