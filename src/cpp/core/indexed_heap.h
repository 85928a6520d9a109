// SPDX-License-Identifier: Apache-2.0
// A binary heap of block ids, least key first, that knows where each block stands. push and remove are O(log n),
// the rest O(1). Several heaps share one index, for a block is in one of them at a time.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "core/types.h"

namespace paged {

template <typename Key>
struct HeapIndex {
  static constexpr std::size_t kAbsent = ~std::size_t{0};
  explicit HeapIndex(std::int32_t num_blocks)
      : keys(static_cast<std::size_t>(num_blocks)), places(keys.size(), kAbsent) {}

  bool contains(BlockId block) const { return places[static_cast<std::size_t>(block)] != kAbsent; }

  std::vector<Key> keys;            // [num_blocks]
  std::vector<std::size_t> places;  // [num_blocks] in its heap
};

// Keys of two blocks in the heap are never equal, so the order is a total one.
template <typename Key>
class IndexedHeap {
 public:
  explicit IndexedHeap(HeapIndex<Key>& index) : index_(&index) {}
  void reserve(std::int32_t num_blocks) { heap_.reserve(static_cast<std::size_t>(num_blocks)); }

  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  BlockId front() const { return heap_.front(); }
  const Key& key(BlockId block) const { return index_->keys[at(block)]; }

  void push(BlockId block, const Key& key) {
    index_->keys[at(block)] = key;
    heap_.push_back(block);
    index_->places[at(block)] = heap_.size() - 1;
    sift_up(heap_.size() - 1);
  }

  void remove(BlockId block) {
    const std::size_t place = index_->places[at(block)];
    const BlockId last = heap_.back();
    heap_.pop_back();
    index_->places[at(block)] = HeapIndex<Key>::kAbsent;
    if (last == block) return;
    put(place, last);
    sift_up(place);
    sift_down(index_->places[at(last)]);
  }

 private:
  static std::size_t at(BlockId block) { return static_cast<std::size_t>(block); }

  bool less(std::size_t a, std::size_t b) const { return key(heap_[a]) < key(heap_[b]); }
  void put(std::size_t place, BlockId block) {
    heap_[place] = block;
    index_->places[at(block)] = place;
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

  HeapIndex<Key>* index_;
  std::vector<BlockId> heap_;
};

}  // namespace paged
