// SPDX-License-Identifier: Apache-2.0
#include "cpu/shared_prefix.h"

#include <algorithm>

#include "base/divide_up.h"

namespace paged::cpu {
namespace {

// Keys that need not be read again, at least: fewer do not pay for states written and read, and for threads that meet.
constexpr std::int64_t kFewestSaved = 1024;

bool decodes(const BatchView& batch, std::int32_t sequence) {
  return sequence < batch.num_sequences && batch.query_len(sequence) == 1;
}

// Keys in blocks that both sequences begin with, and that both see.
std::int32_t keys_in_common(const AttentionParams& params, std::int32_t a, std::int32_t b) {
  const BatchView& batch = *params.batch;
  const std::int32_t keys = std::min(batch.seq_lens[a], batch.seq_lens[b]);
  const std::int32_t *blocks = batch.block_table(a), *others = batch.block_table(b);
  const std::int32_t* end = blocks + divide_up(keys, params.cache.block_size);
  const auto same = static_cast<std::int32_t>(std::mismatch(blocks, end, others).first - blocks);
  return std::min(keys, same * params.cache.block_size);
}

// The neighbours from `first` on that share as much as the first two do.
SharedPrefix prefix_at(const AttentionParams& params, std::int32_t first) {
  const BatchView& batch = *params.batch;
  if (!decodes(batch, first) || !decodes(batch, first + 1)) return {first, 1, 0, {}};
  const std::int32_t keys = keys_in_common(params, first, first + 1) / kKeyTile * kKeyTile;
  std::int32_t end = first + 2;
  while (keys > 0 && decodes(batch, end) && keys_in_common(params, first, end) >= keys) ++end;
  return {first, keys > 0 ? end - first : 1, keys, {}};
}

bool is_windowed(const AttentionParams& params) {
  const BatchView& batch = *params.batch;
  return params.window > 0 && *std::max_element(batch.seq_lens, batch.seq_lens + batch.num_sequences) > params.window;
}

}  // namespace

SharedPrefixes SharedPrefixes::find(const AttentionParams& params, float* states, std::int64_t num_states) {
  SharedPrefixes found;
  const BatchView& batch = *params.batch;
  if (batch.num_sequences < 2 || is_windowed(params)) return found;
  const std::int64_t state = params.num_heads * state_floats(params.cache.head_dim);
  for (std::int32_t first = 0; first < batch.num_sequences && found.size_ < kMost;) {
    SharedPrefix prefix = prefix_at(params, first);
    first += prefix.num_sequences;
    const auto fitting = static_cast<std::int32_t>(num_states / prefix.num_sequences);
    const std::int32_t num_chunks = std::min(divide_up(prefix.num_keys, kKeyChunk), fitting);
    prefix.num_keys = std::min(prefix.num_keys, num_chunks * kKeyChunk);
    if (std::int64_t{prefix.num_keys} * (prefix.num_sequences - 1) < kFewestSaved) continue;
    prefix.states = {states, batch.query_start[prefix.sequence], num_chunks};
    states += std::int64_t{prefix.num_sequences} * num_chunks * state;
    num_states -= std::int64_t{prefix.num_sequences} * num_chunks;
    found.prefixes_[static_cast<std::size_t>(found.size_++)] = prefix;
  }
  return found;
}

const SharedPrefix* SharedPrefixes::of(std::int32_t sequence) const {
  for (int i = 0; i < size_; ++i) {
    const SharedPrefix& prefix = (*this)[i];
    if (sequence >= prefix.sequence && sequence < prefix.sequence + prefix.num_sequences) return &prefix;
  }
  return nullptr;
}

}  // namespace paged::cpu
