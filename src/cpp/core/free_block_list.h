// SPDX-License-Identifier: Apache-2.0
// The blocks nobody references, in the order they will be handed out: a doubly linked list threaded through two
// arrays, with the index num_blocks as its sentinel. Every operation is O(1) and allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "core/types.h"

namespace paged {

class FreeBlockList {
 public:
  // Holds all blocks, 0 first.
  explicit FreeBlockList(std::int32_t num_blocks)
      : sentinel_(num_blocks), size_(num_blocks), next_(at(num_blocks) + 1), previous_(at(num_blocks) + 1) {
    std::iota(next_.begin(), next_.end(), 1);
    std::iota(previous_.begin(), previous_.end(), -1);
    next_[at(num_blocks)] = 0;
    previous_[0] = num_blocks;
  }

  std::int32_t size() const { return size_; }
  BlockId front() const { return next_[at(sentinel_)]; }
  BlockId after(BlockId block) const { return next_[at(block)]; }
  BlockId end() const { return sentinel_; }

  void push_front(BlockId block) { insert_between(block, sentinel_, next_[at(sentinel_)]); }
  void push_back(BlockId block) { insert_between(block, previous_[at(sentinel_)], sentinel_); }

  void remove(BlockId block) {
    next_[at(previous_[at(block)])] = next_[at(block)];
    previous_[at(next_[at(block)])] = previous_[at(block)];
    --size_;
  }

 private:
  static std::size_t at(BlockId block) { return static_cast<std::size_t>(block); }

  void insert_between(BlockId block, BlockId before, BlockId behind) {
    previous_[at(block)] = before;
    next_[at(block)] = behind;
    next_[at(before)] = block;
    previous_[at(behind)] = block;
    ++size_;
  }

  BlockId sentinel_;
  std::int32_t size_;
  std::vector<BlockId> next_;      // [num_blocks + 1]
  std::vector<BlockId> previous_;  // [num_blocks + 1]
};

}  // namespace paged
