// SPDX-License-Identifier: Apache-2.0
// What the shared attention kernel is made of: which keys a token sees, how a warp reads keys and values through the
// block table, and one tile of 64 keys.
#pragma once

#include "gpu/gpu.h"
#include "gpu/kv_layout.h"
#include "ops/ops.h"

namespace paged::gpu {
namespace {

constexpr int kAttentionThreads = 256;
constexpr int kTileKeys = 64;
constexpr int kLeafTiles = 4;
constexpr int kMinShare = 2;         // leaves of a CTA, if others share the token
constexpr int kKeyBatch = 4;         // keys of a lane in flight
constexpr int kMinLanesPerKey = 4;   // a multiple of kKeyBatch
constexpr int kMaxLanesPerKey = 32;  // of any warp
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kNone = -__builtin_inff();

// What the kernel gets. BatchView's pointers are the device's.
struct AttentionWork {
  AttentionParams op;
  BatchView batch;
  int group;          // query heads of a kv head
  int row_tiles;      // parts into which a group falls
  int lanes_per_key;  // a power of two
  int block_shift;    // log2 of the block size
  bool decodes;       // sequences with is_decode are computed
  bool prefills;      // the others are
  int num_shares;     // CTAs that share one token's rows, at most
  int max_leaves;     // that one token sees
  float* leaves;      // [num_tokens, num_heads, max_leaves, head_dim + 2] states, if num_shares > 1
  std::uint32_t* counters;
};

// A softmax over some keys: out = acc / sum, in units of 2^max.
struct SoftmaxState {
  float max = kNone;
  float sum = 0.0f;
  float acc = 0.0f;

  __device__ void merge(const SoftmaxState& other) {
    const float both = fmaxf(max, other.max);
    const float base = both == kNone ? 0.0f : both;
    const float mine = fast_exp2(max - base), theirs = fast_exp2(other.max - base);
    sum = sum * mine + other.sum * theirs;
    acc = acc * mine + other.acc * theirs;
    max = both;
  }
};

// One token: the keys it sees are [lowest, position].
struct AttentionQuery {
  const std::int32_t* block_table = nullptr;
  int lowest = 0;
  int position = -1;  // nothing to see
  bool computed = false;
};

// The last sequence that starts at or before the token.
__device__ __forceinline__ int sequence_of(const BatchView& batch, int token) {
  const std::int32_t* starts = batch.query_start;
  if (token < batch.num_sequences && starts[token] == token) return token;  // only single tokens so far
  int low = 0, high = batch.num_sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

__device__ __forceinline__ AttentionQuery query_of(const AttentionWork& work, int token) {
  const BatchView& batch = work.batch;
  const int sequence = sequence_of(batch, token);
  const int end = batch.query_start[sequence + 1], seq_len = batch.seq_lens[sequence];
  AttentionQuery query;
  query.computed = batch.is_decode[sequence] != 0 ? work.decodes : work.prefills;
  if (token >= end || seq_len == 0) return query;  // padding
  query.position = seq_len - (end - token);
  query.lowest = work.op.window > 0 && query.position >= work.op.window ? query.position - work.op.window + 1 : 0;
  query.block_table =
      batch.block_tables + static_cast<std::int64_t>(batch.block_table_rows[sequence]) * batch.block_table_stride;
  return query;
}

// How a warp reads a key or a value: `lanes` lanes hold kPieces vectors each, so kWarp / lanes keys are read at once.
template <class T, int kVec, int kPieces>
struct KeyReader {
  const T* cache;
  const std::int32_t* block_table;
  std::int64_t block_elements, head_elements;  // to the next block; to this kv head's piece inside a block
  std::int64_t value_elements;                 // from K to V
  int head_dim, block_shift, lowest, position;
  int lanes, lane;  // of the key's lanes, this one

  __device__ bool sees(int key) const { return key >= lowest && key <= position; }
  __device__ void read(int key, bool is_value, Vec<T, kVec> (&out)[kPieces]) const {
    const bool seen = sees(key);
    const T* from = cache;
    if (seen) {
      const int slot = key & ((1 << block_shift) - 1);
      from += block_table[key >> block_shift] * block_elements + head_elements + (is_value ? value_elements : 0) +
              static_cast<std::int64_t>(slot) * head_dim;
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int d = (piece * lanes + lane) * kVec;
      out[piece] = seen && d < head_dim ? load_vec<T, kVec>(from + d) : Vec<T, kVec>{};
    }
  }
};

template <class T, int kVec, int kPieces>
__device__ KeyReader<T, kVec, kPieces> reader_of(const AttentionWork& work, const AttentionQuery& query, int kv_head) {
  const KvCacheView& cache = work.op.cache;
  const std::int64_t piece = static_cast<std::int64_t>(cache.head_dim) << work.block_shift;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return {.cache = static_cast<const T*>(cache.data),
          .block_table = query.block_table,
          .block_elements = piece_offset(1, 0, 0, cache.num_kv_heads, piece),
          .head_elements = piece_offset(0, 0, kv_head, cache.num_kv_heads, piece),
          .value_elements = piece_offset(0, 1, 0, cache.num_kv_heads, piece),
          .head_dim = cache.head_dim,
          .block_shift = work.block_shift,
          .lowest = query.lowest,
          .position = query.position,
          .lanes = work.lanes_per_key,
          .lane = lane % work.lanes_per_key};
}

// The tile's scores in units of log2. Lane `lane` keeps those of keys that its own lanes read in turn `lane`:
// score[row][r] is key tile_begin + r * kWarp + reader.lane * keys_at_once + the lane's place among those at once.
template <class T, int kVec, int kPieces, int kRows, int kHeld>
__device__ void score_tile(const KeyReader<T, kVec, kPieces>& reader, const AttentionParams& op, int tile_begin,
                           const float* q, float (&score)[kRows][kHeld]) {
  const int width = kPieces * reader.lanes * kVec;
  const int at_once = kWarp / reader.lanes, place = static_cast<int>(threadIdx.x) % kWarp / reader.lanes;
#pragma unroll
  for (int held = 0; held < kHeld; ++held) {
    for (int turn = 0; turn < reader.lanes; turn += kKeyBatch) {
      const int first = tile_begin + held * kWarp + turn * at_once + place;
      Vec<T, kVec> k[kKeyBatch][kPieces];
#pragma unroll
      for (int i = 0; i < kKeyBatch; ++i) reader.read(first + i * at_once, false, k[i]);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        float sum[kKeyBatch] = {};
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const auto part = load_vec<float, kVec>(q + row * width + (piece * reader.lanes + reader.lane) * kVec);
#pragma unroll
          for (int e = 0; e < kKeyBatch * kVec; ++e)
            sum[e / kVec] += part.data[e % kVec] * to_float(k[e / kVec][piece].data[e % kVec]);
        }
#pragma unroll
        for (int i = 0; i < kKeyBatch; ++i) {
#pragma unroll 1
          for (int mask = reader.lanes / 2; mask > 0; mask >>= 1) sum[i] += shuffle_xor(sum[i], mask);
          sum[i] *= op.scale;
          if (op.softcap > 0.0f) sum[i] = op.softcap * tanhf(sum[i] / op.softcap);
          if (reader.lane == turn + i) score[row][held] = reader.sees(first + i * at_once) ? sum[i] * kLog2e : kNone;
        }
      }
    }
  }
}

// acc[row] += weight * value over the tile's keys that this lane reads.
template <class T, int kVec, int kPieces, int kRows, int kHeld>
__device__ void weigh_tile(const KeyReader<T, kVec, kPieces>& reader, int tile_begin,
                           const float (&weight)[kRows][kHeld], float (&acc)[kRows][kPieces][kVec]) {
  const int at_once = kWarp / reader.lanes, place = static_cast<int>(threadIdx.x) % kWarp / reader.lanes;
#pragma unroll
  for (int held = 0; held < kHeld; ++held) {
    for (int turn = 0; turn < reader.lanes; turn += kKeyBatch) {
      const int first = tile_begin + held * kWarp + turn * at_once + place;
      Vec<T, kVec> v[kKeyBatch][kPieces];
#pragma unroll
      for (int i = 0; i < kKeyBatch; ++i) reader.read(first + i * at_once, true, v[i]);
#pragma unroll
      for (int i = 0; i < kKeyBatch; ++i) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const float p = shuffle(weight[row][held], place * reader.lanes + turn + i);
#pragma unroll
          for (int e = 0; e < kPieces * kVec; ++e)
            acc[row][e / kVec][e % kVec] += p * to_float(v[i][e / kVec].data[e % kVec]);
        }
      }
    }
  }
}

// One warp, one tile; state [kRows][head_dim + 2]: the accumulator, the maximum, the sum.
template <class T, int kVec, int kPieces, int kRows>
__device__ void attend_tile(const KeyReader<T, kVec, kPieces>& reader, const AttentionParams& op, int tile_begin,
                            const float* q, float* state) {
  constexpr int kHeld = kTileKeys / kWarp;
  float score[kRows][kHeld];
  score_tile<T, kVec, kPieces, kRows, kHeld>(reader, op, tile_begin, q, score);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int stride = reader.head_dim + 2;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    float largest = score[row][0], sum = 0.0f;
#pragma unroll
    for (int held = 1; held < kHeld; ++held) largest = fmaxf(largest, score[row][held]);
    largest = warp_max(largest);  // finite: a tile without a key to see is not visited
#pragma unroll
    for (int held = 0; held < kHeld; ++held) sum += score[row][held] = fast_exp2(score[row][held] - largest);
    sum = warp_sum(sum);
    if (lane == 0) state[row * stride + reader.head_dim] = largest;
    if (lane == 0) state[row * stride + reader.head_dim + 1] = sum;
  }
  float acc[kRows][kPieces][kVec] = {};
  weigh_tile(reader, tile_begin, score, acc);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int e = 0; e < kPieces * kVec; ++e) {
      float sum = acc[row][e / kVec][e % kVec];
#pragma unroll 1
      for (int mask = reader.lanes; mask < kWarp; mask <<= 1) sum += shuffle_xor(sum, mask);
      const int d = (e / kVec * reader.lanes + reader.lane) * kVec + e % kVec;
      if (lane < reader.lanes && d < reader.head_dim) state[row * stride + d] = sum;
    }
  }
}

}  // namespace
}  // namespace paged::gpu
