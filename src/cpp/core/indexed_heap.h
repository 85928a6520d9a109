// SPDX-License-Identifier: Apache-2.0
// A binary heap of block ids, least key first, that knows where each block stands. push and remove are O(log n),
// the rest O(1); nothing allocates after construction.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "core/types.h"

namespace paged {

// Keys of two blocks in the heap are never equal, so the order is a total one.
template <typename Key>
class IndexedHeap {
 public:
  explicit IndexedHeap(std::int32_t num_blocks)
      : keys_(static_cast<std::size_t>(num_blocks)), places_(keys_.size(), kAbsent) {
    heap_.reserve(keys_.size());
  }

  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  bool contains(BlockId block) const { return places_[at(block)] != kAbsent; }
  BlockId front() const { return heap_.front(); }
  const Key& key(BlockId block) const { return keys_[at(block)]; }

  void push(BlockId block, const Key& key) {
    keys_[at(block)] = key;
    heap_.push_back(block);
    places_[at(block)] = heap_.size() - 1;
    sift_up(heap_.size() - 1);
  }

  void remove(BlockId block) {
    const std::size_t place = places_[at(block)];
    const BlockId last = heap_.back();
    heap_.pop_back();
    places_[at(block)] = kAbsent;
    if (last == block) return;
    put(place, last);
    sift_up(place);
    sift_down(places_[at(last)]);
  }

 private:
  static constexpr std::size_t kAbsent = ~std::size_t{0};
  static std::size_t at(BlockId block) { return static_cast<std::size_t>(block); }

  bool less(std::size_t a, std::size_t b) const { return keys_[at(heap_[a])] < keys_[at(heap_[b])]; }
  void put(std::size_t place, BlockId block) {
    heap_[place] = block;
    places_[at(block)] = place;
  }
  void swap(std::size_t a, std::size_t b) {
    const BlockId moved = heap_[a];
    put(a, heap_[b]);
    put(b, moved);
  }
  void sift_up(std::size_t place) {
    for (; place > 0 && less(place, (place - 1) / 2); place = (place - 1) / 2) swap(place, (place - 1) / 2);
  }
  void sift_down(std::size_t place) {
    while (true) {
      std::size_t least = place;
      for (std::size_t child = 2 * place + 1; child <= 2 * place + 2 && child < heap_.size(); ++child)
        if (less(child, least)) least = child;
      if (least == place) return;
      swap(place, least);
      place = least;
    }
  }

  std::vector<Key> keys_;            // [num_blocks]
  std::vector<std::size_t> places_;  // [num_blocks] in heap_
  std::vector<BlockId> heap_;
};

}  // namespace paged
