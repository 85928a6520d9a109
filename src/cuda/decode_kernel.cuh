// SPDX-License-Identifier: Apache-2.0
// The decode attention kernel; decode_attention.cuh describes it.
#pragma once

#include "decode_attention.cuh"

namespace paged::gpu {

template <class T, int kDim, int kStages>
class DecodeBlock {
  using Shared = DecodeShared<T, kDim, kStages>;

 public:
  __device__ DecodeBlock(const DecodeArguments& args, const DecodeStart& start, const DecodeStart& end,
                         unsigned char* memory)
      : args_(args),
        start_(start),
        end_(end),
        shared_(memory, args.num_rows),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        warp_(thread_ / 32) {}

  __device__ void run() {
    T* ring = shared_.ring + warp_ * kStages * 2 * Shared::kSpan;
    DecodeLoader<T, kDim, kStages> loader(args_, start_, end_, ring);
    int pair = start_.pair, slot = 0;
    if (thread_ < 2) shared_.is_last[thread_] = 0;
    PairPart part(args_, pair, start_, end_);
    bool any_shared = false;
    const int num_loaded = loader.load_old(kStages - 1);
    wait_for_predecessors();
    load_query(part);
    for (int i = num_loaded; i < kStages - 1; ++i) loader.next();
    while (true) {
      clear_joined();
      piece_ = pieces_of(part).own_first;
      partial_[0].reset();
      for (int tile = part.tiles.begin; tile < part.tiles.end; ++tile) {
        wait_copies<kStages - 2>();
        sync_warp();  // the copies of all lanes are here; the stage before this one is free
        loader.next();
        add_span(part, tile, ring + slot * 2 * Shared::kSpan);
        slot = slot + 1 == kStages ? 0 : slot + 1;
        if ((tile + 1) % kLeafTiles != 0 && tile + 1 != part.tiles.end) continue;
        finish_leaf(part, tile);
        partial_[0].reset();
      }
      if (part.is_whole())
        for_own_columns(
            [&](int share, int row, int column) { write_out(part, row, column, load_joined(kPair, share)); });
      else
        arrive(part);
      any_shared |= !part.is_whole();
      ++pair;
      if (pair > end_.pair || (pair == end_.pair && end_.tile == 0)) break;
      part = PairPart(args_, pair, start_, end_);
      load_query(part);
    }
    wait_copies<0>();
    if (any_shared) join_completed(pair - 1);
  }

 private:
  enum Level { kNode, kPair };

  __device__ void load_query(const PairPart& part) {
    const int num_rows = part.item.num_tokens * args_.group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half, end = part.item.position + row / args_.group + 1;
      keys_.end[half] = row < num_rows ? end : 0;
      keys_.first[half] = args_.window > 0 ? end - args_.window : 0;
    }
    if constexpr (Shared::kQueryInShared) {
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) {
        std::uint32_t fragment[4];
        if (i % kDecodeWarps != warp_) continue;
        load_fragment(part, i, fragment);
        store_vec<std::uint32_t, 4>(shared_.query + (32 * i + lane_) * 4,
                                    {{fragment[0], fragment[1], fragment[2], fragment[3]}});
      }
      __syncthreads();
    } else {
#pragma unroll
      for (int i = 0; i < kDim / 16; ++i) load_fragment(part, i, query_[i]);
    }
  }
  __device__ __forceinline__ void load_fragment(const PairPart& part, int i, std::uint32_t (&fragment)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half, token = row / args_.group;
      const T* from = static_cast<const T*>(args_.q) + (part.item.token + token) * args_.q_stride +
                      (part.kv_head * args_.group + row % args_.group) * kDim + 2 * (lane_ % 4) + 16 * i;
      const bool valid = token < part.item.num_tokens;
      fragment[half] = valid ? *reinterpret_cast<const std::uint32_t*>(from) : 0;
      fragment[half + 2] = valid ? *reinterpret_cast<const std::uint32_t*>(from + 8) : 0;
    }
  }
  // The fragment of the query's columns 16 i...
  __device__ __forceinline__ Vec<std::uint32_t, 4> query(int i) const {
    if constexpr (Shared::kQueryInShared) return load_vec<std::uint32_t, 4>(shared_.query + (32 * i + lane_) * 4);
    return {{query_[i][0], query_[i][1], query_[i][2], query_[i][3]}};
  }

  // The warp's 16 keys of a tile.
  __device__ __forceinline__ void add_span(const PairPart& part, int tile, const T* stage) {
    const int first = tile * kTileKeys + warp_ * kSpanKeys, end = first + kSpanKeys;
    const int position = part.item.position, last = position + part.item.num_tokens - 1;
    if (first > last || (args_.window > 0 && end <= position + 1 - args_.window)) return;  // seen by no row
    float score[1][2][4];
    score_keys<T, kDim>(score, [&](int, int i) { return query(i); }, stage, 0);
    if (args_.scale.cap > 0.0f) cap_scores(score[0], args_.scale);
    if (end > position + 1 || (args_.window > 0 && first <= last - args_.window)) mask_scores(score[0], keys_, first);
    partial_[0].weigh(score[0], args_.scale.factor);
    add_values(partial_, score, stage + Shared::kSpan, 0);
  }

  // Joins the warps' parts of the leaf that ends with `tile`, and what it completes.
  __device__ void finish_leaf(const PairPart& part, int tile) {
    partial_[0].join_sums();
    float* exchange = shared_.exchange + warp_ * args_.num_rows * Shared::kExchangeStride;
    float* statistics = shared_.statistics + warp_ * args_.num_rows * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half;
      if (row >= args_.num_rows) continue;
      float* to = exchange + row * Shared::kExchangeStride + 2 * (lane_ % 4);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i)
        store_vec<float, 2>(to + 8 * i, {{partial_[0].out[i][2 * half], partial_[0].out[i][2 * half + 1]}});
      if (lane_ % 4 == 0) store_vec<float, 2>(statistics + 2 * row, {{partial_[0].max[half], partial_[0].sum[half]}});
    }
    __syncthreads();
    const bool ends_node = (tile + 1) % kNodeTiles == 0 || tile + 1 == part.pair.end;
    const bool begun_here = tile >= part.own_nodes_begin();
    const bool to_piece = !begun_here || ((ends_node || tile + 1 == part.tiles.end) && !part.is_whole());
    for_own_columns([&](int share, int row, int column) {
      Partial partial = warp_partial(0, row, column);
#pragma unroll
      for (int warp = 1; warp < kDecodeWarps; ++warp) partial.join(warp_partial(warp, row, column));
      if (begun_here && !join_level(kNode, share, partial, ends_node || to_piece)) return;
      if (to_piece) return store_piece(row, column, partial, ends_node);
      join_level(kPair, share, partial, false);
    });
    piece_ += to_piece ? 1 : 0;
    __syncthreads();  // the exchange is free again
  }
  // Adds a partial result to what is under way on a level; if that is then complete, it is returned in its place.
  __device__ __forceinline__ bool join_level(Level level, int share, Partial& partial, bool completes) {
    Partial all = load_joined(level, share);
    all.join(partial);
    partial = all;
    if (completes) all = Partial::none();
    all.store(joined(level, share));
    return completes;
  }

  // Counts the block's share of a pair. Whether that completes it is known later: the block goes on meanwhile.
  __device__ void arrive(const PairPart& part) const {
    if (thread_ != 0) return;  // finish_leaf ended with a barrier: all pieces are written
    std::uint32_t* counter = args_.counters + (part.begins_here() ? static_cast<int>(blockIdx.x) : start_.owner);
    thread_fence();
    const auto before = static_cast<int>(atomic_add(counter, static_cast<std::uint32_t>(part.tiles.size())));
    if (before + part.tiles.size() != part.pair.size()) return;
    *counter = 0;
    shared_.is_last[part.begins_here() ? 1 : 0] = 1;
  }

  // Who completes a pair joins all its pieces. A block shares at most the first and the last of its pairs.
  __device__ void join_completed(int last_pair) const {
    __syncthreads();  // both arrivals have been counted
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      if (shared_.is_last[i] == 0) continue;
      thread_fence();
      const PairPart part(args_, i == 0 ? start_.pair : last_pair, start_, end_);
      const PieceRange pieces = pieces_of(part);
      for_own_columns(
          [&](int, int row, int column) { write_out(part, row, column, join_pieces(pieces, row, column)); });
    }
  }

  __device__ Partial join_pieces(const PieceRange& pieces, int row, int column) const {
    constexpr int kBatch = 16;
    Partial node = Partial::none(), pair = Partial::none();
    for (int base = 0; base < pieces.count; base += kBatch) {
      Partial batch[kBatch];
      float ends_node[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i >= pieces.count) break;
        const float* at = piece(pieces.first + base + i);
        const auto value = load_vec<float, 4>(at + row * kDim + column);
        const auto statistics = load_vec<float, 4>(at + args_.num_rows * kDim + 4 * row);
        batch[i] = {
            {value.data[0], value.data[1], value.data[2], value.data[3]}, statistics.data[0], statistics.data[1]};
        ends_node[i] = statistics.data[2];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + i >= pieces.count) break;
        node.join(batch[i]);
        if (ends_node[i] == 0.0f) continue;
        pair.join(node);
        node = Partial::none();
      }
    }
    return pair;
  }

  __device__ void write_out(const PairPart& part, int row, int column, Partial pair) const {
    const int token = row / args_.group, head = part.kv_head * args_.group + row % args_.group;
    if (token >= part.item.num_tokens) return;
    if (args_.sinks != nullptr) pair.join({{0.0f, 0.0f, 0.0f, 0.0f}, args_.sinks[head] * kLog2E, 1.0f});
    const float scale = pair.sum > 0.0f || pair.sum != pair.sum ? 1.0f / pair.sum : 0.0f;
    Vec<T, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.data[i] = from_float<T>(pair.value[i] * scale);
    store_vec(static_cast<T*>(args_.out) + (part.item.token + token) * args_.out_stride + head * kDim + column, out);
  }

  template <class Body>
  __device__ __forceinline__ void for_own_columns(Body&& body) const {
    for (int share = 0; share * kDecodeThreads < args_.num_rows * Shared::kQuads; ++share) {
      const int quad = share * kDecodeThreads + thread_;
      if (quad < args_.num_rows * Shared::kQuads) body(share, quad / Shared::kQuads, quad % Shared::kQuads * 4);
    }
  }
  __device__ Partial warp_partial(int warp, int row, int column) const {
    const int at = warp * args_.num_rows + row;
    const auto value = load_vec<float, 4>(shared_.exchange + at * Shared::kExchangeStride + column);
    const auto statistics = load_vec<float, 2>(shared_.statistics + 2 * at);
    return {{value.data[0], value.data[1], value.data[2], value.data[3]}, statistics.data[0], statistics.data[1]};
  }

  // Each thread's own share, so no barrier guards it.
  __device__ float* joined(Level level, int share) const {
    return shared_.joined + (2 * share + level) * 6 * kDecodeThreads + thread_;
  }
  __device__ Partial load_joined(Level level, int share) const { return Partial::load(joined(level, share)); }
  __device__ void clear_joined() const {
    for_own_columns([&](int share, int, int) {
      for (const Level level : {kNode, kPair}) Partial::none().store(joined(level, share));
    });
  }

  __device__ const PieceRange& pieces_of(const PairPart& part) const {
    return part.begins_here() ? start_.last_pieces : start_.pieces;
  }
  __device__ float* piece(int index) const {
    return args_.pieces + std::int64_t{index} * piece_floats(args_.num_rows, kDim);
  }
  __device__ void store_piece(int row, int column, const Partial& partial, bool ends_node) const {
    float* to = piece(piece_);
    store_vec<float, 4>(to + row * kDim + column,
                        {{partial.value[0], partial.value[1], partial.value[2], partial.value[3]}});
    if (column == 0)
      store_vec<float, 4>(to + args_.num_rows * kDim + 4 * row,
                          {{partial.max, partial.sum, ends_node ? 1.0f : 0.0f, 0.0f}});
  }

  const DecodeArguments& args_;
  const DecodeStart &start_, &end_;
  const Shared shared_;
  const int thread_, lane_, warp_;
  int piece_ = 0;  // the next one that the block leaves
  std::uint32_t query_[Shared::kQueryInShared ? 1 : kDim / 16][4];
  RowKeys keys_;
  RowPartial<T, kDim> partial_[1];
};

// Idle sequences are in no plan; what later ops read of their rows is zeros. `length`: of this block's first sequence.
template <class T, int kDim>
__device__ __forceinline__ void clear_idle_rows(const DecodeArguments& args, int length) {
  const int width = args.num_kv_heads * args.group * kDim;
  for (int sequence = static_cast<int>(blockIdx.x); sequence < args.num_sequences;) {
    if (length == 0) {
      T* row = static_cast<T*>(args.out) + args.query_start[sequence] * args.out_stride;
      for (int i = static_cast<int>(threadIdx.x); i < width; i += kDecodeThreads) row[i] = from_float<T>(0.0f);
    }
    sequence += static_cast<int>(gridDim.x);
    length = sequence < args.num_sequences ? args.seq_lens[sequence] : 1;
  }
}

template <class T, int kDim, int kStages, int kBlocksEach>
__global__ void __launch_bounds__(kDecodeThreads, kBlocksEach) decode_attention_kernel(const DecodeArguments args) {
  GPU_DYN_SHARED(unsigned char, memory);
  release_dependents();
  const DecodeStart start = load_past_l1(args.plan.starts + blockIdx.x);
  const DecodeStart end = load_past_l1(args.plan.starts + blockIdx.x + 1);
  const int sequence = static_cast<int>(blockIdx.x);
  const int length = sequence < args.num_sequences ? load_past_l1(args.seq_lens + sequence) : 1;
  if (start.pair == end.pair && start.tile == end.tile)
    wait_for_predecessors();
  else
    DecodeBlock<T, kDim, kStages>(args, start, end, memory).run();
  clear_idle_rows<T, kDim>(args, length);
}

}  // namespace paged::gpu
