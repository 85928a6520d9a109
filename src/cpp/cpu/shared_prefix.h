// SPDX-License-Identifier: Apache-2.0
// Neighbours in a batch that decode and share the blocks at their beginning. Their queries meet the shared keys as rows
// of one tile, so that these are read, and values put in pairs, once (as in Hydragen, arXiv 2402.05099). The states of
// the online softmax then go on with each sequence's own keys: the steps of a row are those it takes alone, and so are
// its bits.
#pragma once

#include <array>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace paged::cpu {

struct SharedPrefix {
  std::int32_t sequence;  // the first
  std::int32_t num_sequences;
  std::int32_t num_keys;  // a multiple of kKeyTile
  SoftmaxStates states;
};

class SharedPrefixes {
 public:
  // Those worth it, as far as their states fit into `num_states` for each head at `states`.
  static SharedPrefixes find(const AttentionParams& params, float* states, std::int64_t num_states);

  int size() const { return size_; }
  const SharedPrefix& operator[](int index) const { return prefixes_[static_cast<std::size_t>(index)]; }
  // The one that a sequence has part in, or null.
  const SharedPrefix* of(std::int32_t sequence) const;

 private:
  static constexpr int kMost = 8;

  std::array<SharedPrefix, kMost> prefixes_;
  int size_ = 0;
};

}  // namespace paged::cpu
