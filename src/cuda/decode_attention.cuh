// SPDX-License-Identifier: Apache-2.0
// Attention of generated tokens on tensor cores. The query heads of one kv head, and of several tokens of a sequence,
// are the 16 rows of an mma tile. Each of a block's four warps takes 16 keys of every tile of 64 and streams them
// through its own ring of asynchronous copies, ahead of the arithmetic and across the ends of sequences, without a
// barrier. Leaves of 256 keys are joined over the warps in shared memory, leaves into nodes of 1024, nodes in ascending
// order; where blocks share a pair (decode_plan.cuh) the last one to finish joins all pieces in the same tree.
// Keys and values of earlier steps, which fill the rings at the start, are fetched before the kernel waits for what
// comes before it in the step.
#pragma once

#include "attention_mma.cuh"
#include "decode_plan.cuh"
#include "gpu/kv_layout.h"

namespace paged::gpu {

constexpr int kDecodeThreads = 128;
constexpr int kDecodeWarps = kDecodeThreads / 32;
constexpr int kSpanKeys = kTileKeys / kDecodeWarps;  // of one warp in a tile

struct DecodeArguments {
  const void* q;
  void* out;
  std::int64_t q_stride, out_stride;
  const void* cache;
  const std::int32_t* block_tables;
  std::int64_t block_table_stride;
  DecodePlan plan;
  float* pieces;  // partial results: num_rows rows of the output, then num_rows times (max, sum, ends a node, 0)
  std::uint32_t* counters;
  const float* sinks;
  ScoreScale scale;
  int num_kv_heads, group, window, num_rows, block_shift;
  bool single_tokens;  // every sequence has one
  const std::int32_t* seq_lens;
  const std::int32_t* query_start;
  int num_sequences;
};

__host__ __device__ constexpr int piece_floats(int num_rows, int dim) { return num_rows * (dim + 4); }

// A block's shared memory: rings of copies, the warps' results of a leaf, and each thread's share of the node and of
// the pair under way.
template <class T, int kDim, int kStages>
struct DecodeShared {
  static constexpr int kSpan = kSpanKeys * kDim;    // elements of K in a stage
  static constexpr int kExchangeStride = kDim + 8;  // floats of a row
  static constexpr int kQuads = kDim / 4;           // of a row of the output; a thread joins four columns at a time
  static constexpr bool kQueryInShared = kDim > 128;
  T* ring;               // [warps][kStages][2][kSpan]
  float* exchange;       // [warps][num_rows][kExchangeStride]
  float* statistics;     // [warps][num_rows][2]
  float* joined;         // [slots][2 (node, pair)][6][threads]
  std::uint32_t* query;  // [kDim / 16][32][4] fragments, where registers are too few for them
  int* is_last;          // [2] whether the block completed the first and the last pair that it shares

  __host__ __device__ static constexpr int joined_floats(int num_rows) {
    return (num_rows * kQuads + kDecodeThreads - 1) / kDecodeThreads * 12 * kDecodeThreads;
  }
  static constexpr std::int64_t num_bytes(int num_rows) {
    return std::int64_t{kDecodeWarps} * kStages * 2 * kSpan * 2 + (kQueryInShared ? kDim / 16 * 512 : 0) +
           4 * (kDecodeWarps * num_rows * (kExchangeStride + 2) + joined_floats(num_rows)) + 16;
  }
  __device__ DecodeShared(unsigned char* memory, int num_rows)
      : ring(reinterpret_cast<T*>(memory)),
        exchange(reinterpret_cast<float*>(ring + kDecodeWarps * kStages * 2 * kSpan)),
        statistics(exchange + kDecodeWarps * num_rows * kExchangeStride),
        joined(statistics + kDecodeWarps * num_rows * 2),
        query(reinterpret_cast<std::uint32_t*>(joined + joined_floats(num_rows))),
        is_last(reinterpret_cast<int*>(query + (kQueryInShared ? kDim / 16 * 128 : 0))) {}
};

// Four columns of a row: unnormalised output, the largest exponent, the sum of weights relative to it.
struct Partial {
  float value[4], max, sum;

  __device__ static Partial none() { return {{0.0f, 0.0f, 0.0f, 0.0f}, -INFINITY, 0.0f}; }
  // Joining with none() changes nothing.
  __device__ void join(const Partial& later) {
    const float top = fmaxf(max, later.max), reference = top == -INFINITY ? 0.0f : top;
    const float own = fast_exp2(max - reference), other = fast_exp2(later.max - reference);
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = fmaf(later.value[i], other, value[i] * own);
    sum = fmaf(later.sum, other, sum * own);
    max = top;
  }
  __device__ void store(float* to) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i * kDecodeThreads] = value[i];
    to[4 * kDecodeThreads] = max;
    to[5 * kDecodeThreads] = sum;
  }
  __device__ static Partial load(const float* from) {
    Partial partial;
#pragma unroll
    for (int i = 0; i < 4; ++i) partial.value[i] = from[i * kDecodeThreads];
    partial.max = from[4 * kDecodeThreads];
    partial.sum = from[5 * kDecodeThreads];
    return partial;
  }
};

// The part of a pair that lies in one block.
struct PairPart {
  QueryItem item;
  int kv_head;
  TileRange pair, tiles;  // tiles of the whole pair, and of this part

  __device__ PairPart(const DecodeArguments& args, int index, const DecodeStart& start, const DecodeStart& end)
      : item(index == start.pair ? start.item : load_past_l1(args.plan.items + index / args.num_kv_heads)),
        kv_head(index % args.num_kv_heads),
        pair(tiles_of(item, args.window)),
        tiles(pair) {
    if (index == start.pair) tiles.begin += start.tile;
    if (index == end.pair) tiles.end = pair.begin + end.tile;
  }
  __device__ bool begins_here() const { return tiles.begin == pair.begin; }
  // From here on the block begins all nodes of the pair.
  __device__ int own_nodes_begin() const { return begins_here() ? pair.begin : next_node(tiles.begin); }
  __device__ bool is_whole() const { return tiles.size() == pair.size(); }
  __device__ const std::int32_t* block_table(const DecodeArguments& args) const {
    return args.block_tables + item.table_row * args.block_table_stride;
  }
};

// A warp's copies of its keys of all the block's tiles, in order. All members are the same in all lanes but `blocks`.
template <class T, int kDim, int kStages>
class DecodeLoader {
 public:
  __device__ DecodeLoader(const DecodeArguments& args, const DecodeStart& start, const DecodeStart& end, T* ring)
      : args_(args), start_(start), end_(end), ring_(ring), pair_(start.pair - 1) {}

  // Starts the copies of the next tile, or of none after the last; always commits one group.
  __device__ __forceinline__ void next() {
    skip_to_tiles();
    if (tile_ < tile_end_) copy_tile();
    commit_copies();
    slot_ = slot_ + 1 == kStages ? 0 : slot_ + 1;
  }

  // As often as next(), but not more than `most` times, while no key is from this step, so that the caller need not
  // have waited for what comes before it in the step. What is old of the tile after those is brought into L2.
  __device__ __forceinline__ int load_old(int most) {
    int count = 0;
    for (; count < most; ++count) {
      skip_to_tiles();
      const int first = first_of_tile();
      if (tile_ == tile_end_ || (first < end_key_ && first + kSpanKeys > old_end_)) break;
      next();
    }
    if (count < most && tile_ < tile_end_) prefetch_old();
    return count;
  }

 private:
  __device__ __forceinline__ void skip_to_tiles() {
    while (tile_ == tile_end_ && pair_ < end_.pair) enter(pair_ + 1);
  }
  __device__ void enter(int pair) {
    pair_ = pair;
    if (pair == end_.pair && end_.tile == 0) return;
    const PairPart part(args_, pair, start_, end_);
    tile_ = part.tiles.begin;
    tile_end_ = part.tiles.end;
    first_key_ = args_.window > 0 ? part.item.position + 1 - args_.window : 0;
    end_key_ = part.item.position + part.item.num_tokens;
    old_end_ = args_.single_tokens ? part.item.position : 0;
    table_ = part.block_table(args_);
    kv_head_ = part.kv_head;
    find_blocks();
  }

  // Each lane finds the block of one of the next 32 tiles.
  __device__ __forceinline__ void find_blocks() {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int key = (tile_ + lane) * kTileKeys + warp * kSpanKeys;
    blocks_ = key < end_key_ ? load_past_l1(table_ + (key >> args_.block_shift)) : 0;
    known_end_ = tile_ + 32;
  }

  __device__ __forceinline__ int first_of_tile() const {
    return tile_ * kTileKeys + static_cast<int>(threadIdx.x) / 32 * kSpanKeys;
  }
  __device__ __forceinline__ const T* keys_of_tile() const {
    const int block = shuffle(blocks_, (tile_ - known_end_) & 31);
    return static_cast<const T*>(args_.cache) +
           piece_offset(block, 0, kv_head_, args_.num_kv_heads, kDim << args_.block_shift) +
           (first_of_tile() & ((1 << args_.block_shift) - 1)) * kDim;
  }
  __device__ __forceinline__ const T* values_of(const T* keys) const {
    return keys + (std::int64_t{args_.num_kv_heads} * kDim << args_.block_shift);
  }

  __device__ __forceinline__ void prefetch_old() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (tile_ == known_end_) find_blocks();
    const T* k = keys_of_tile();
    constexpr int kLine = 64;  // elements
    for (int at = lane * kLine; at < (old_end_ - first_of_tile()) * kDim; at += 32 * kLine) {
      fetch_line(k + at);
      fetch_line(values_of(k) + at);
    }
  }

  __device__ __forceinline__ void copy_tile() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (tile_ == known_end_) find_blocks();
    const int first = first_of_tile();
    const T* k = keys_of_tile();
    const T* v = values_of(k);
    T* to = ring_ + slot_ * 2 * kSpanKeys * kDim;
    ++tile_;
    if (first >= end_key_ || first + kSpanKeys <= first_key_) return;
#pragma unroll
    for (int i = 0; i < kSpanKeys * kDim / 8 / 32; ++i) {
      const int chunk = 32 * i + lane, row = chunk / (kDim / 8);
      const bool valid = first + row >= first_key_ && first + row < end_key_;
      T* at = to + swizzled<kDim>(row, chunk % (kDim / 8));
      copy_async_16(at, k + chunk * 8, valid);
      copy_async_16(at + kSpanKeys * kDim, v + chunk * 8, valid);
    }
  }

  const DecodeArguments& args_;
  const DecodeStart &start_, &end_;
  T* ring_;
  int pair_, tile_ = 0, tile_end_ = 0, slot_ = 0;
  int known_end_ = 0;  // blocks_ are of the 32 tiles before this one
  int blocks_ = 0, first_key_ = 0, end_key_ = 0, old_end_ = 0, kv_head_ = 0;
  const std::int32_t* table_ = nullptr;
};

}  // namespace paged::gpu
