// SPDX-License-Identifier: Apache-2.0
// Prefill attention on Hopper: the shapes of its tiles, what lies in shared memory, what a launch is given. Method: K
// and V through the Tensor Memory Accelerator, a producer warp and two or three consumer warp groups, softmax beside
// the products (FlashAttention-3, arXiv 2407.08608); one TMA box per block of the paged cache (as FlashInfer pages).
//
// A pair is one kv head and a tile of 128 or 192 rows: row r is query head r % group of token r / group. Its keys are
// visited in tiles at multiples of kKeys, from the last visible one down. At each multiple of kChunkKeys softmax starts
// afresh, and the chunks' results are folded together in the same order, by one CTA that sees them all or by the last
// of several that were given one each (when there are fewer pairs than multiprocessors). A tile or chunk that a row
// sees nothing of changes none of the row's bits. So a row's result depends neither on the rows beside it, nor on how a
// prompt was cut, nor on who computed it.
#pragma once

#include <ptx_sm90.h>

namespace paged::gpu::prefill_sm90 {

constexpr int kChunkKeys = 4096;
constexpr int kMaxGroup = 128;
constexpr int kGroupThreads = 128;
constexpr int kRowBytes = 128;  // 64 elements: a row of a swizzled tile
constexpr int kGroupBytes = 8 * kRowBytes;

// Warp groups that compute, 64 rows each. One more has the warp that loads.
constexpr int num_consumers(int head_dim) { return head_dim == 64 ? 3 : 2; }
constexpr int num_rows(int head_dim) { return 64 * num_consumers(head_dim); }

// K and V in shared memory: [groups of 8 keys][columns / 64][8 keys][64 columns], so that one box of a rank-5 map
// brings a whole block. Where 64 does not divide head_dim a box must end with the columns: [columns / 64][keys][64
// columns].
template <int head_dim>
struct Tiling {
  static constexpr int kHeadDim = head_dim;
  static constexpr int kConsumers = num_consumers(head_dim), kRows = num_rows(head_dim);
  static constexpr int kThreads = kGroupThreads * (1 + kConsumers);
  static constexpr int kQStages = head_dim > 128 ? 1 : 2, kStages = head_dim == 64 ? 3 : 2;
  static constexpr int kKeys = head_dim > 128 ? 64 : 128;
  static constexpr int kChunkTiles = kChunkKeys / kKeys;
  static constexpr int kColumnTiles = (head_dim + 63) / 64;
  static constexpr int kQTileBytes = kRows * kRowBytes;
  static constexpr int kKvBytes = kColumnTiles * kKeys * kRowBytes;
  static constexpr bool kWholeRows = head_dim % 64 == 0;
  static constexpr int kBoxColumnTiles = kWholeRows ? kColumnTiles : 1;
  static constexpr int kKeyGroupBytes = kBoxColumnTiles * kGroupBytes;  // from one group of 8 keys to the next
  static constexpr int kColumnBytes = kWholeRows ? kGroupBytes : kKeys * kRowBytes;  // from 64 columns to the next
};
// A chunk's result in the workspace: of each consuming thread its outputs, two maxima and two sums.
constexpr int slot_floats(int head_dim) { return num_consumers(head_dim) * kGroupThreads * (head_dim / 2 + 4); }

// Consecutive tokens of one sequence. num_tokens 0: no more work.
struct alignas(16) PlannedTile {
  std::int32_t first_token;  // row of q and out
  std::int32_t num_tokens;
  std::int32_t first_position;
  std::int32_t seq_len;
  std::int32_t table_row;
  std::int32_t unused[3];
};
struct alignas(16) Plan {
  std::int32_t num_tiles;
  std::int32_t heads_at_once;    // kv heads whose keys and values L2 holds: all tiles of these, then the next ones
  std::int32_t chunks_per_pair;  // 0: a CTA has all of a pair's chunks; else one, and the pair so many slots
  std::int32_t unused;
  PlannedTile tiles[1];  // num_tiles, those with the most keys first
};

struct Arguments {
  const Plan* plan;
  std::uint32_t* counters;  // zero before and after: drawn items, then one of each warp group of a shared pair
  float* slots;             // of each CTA, or of each item
  const std::int32_t* block_tables;
  const float* sinks;
  void* out;
  std::int64_t out_stride;
  std::int32_t block_table_stride;
  std::int32_t log2_block_size;
  std::int32_t num_kv_heads;
  std::int32_t num_pieces;  // of the cache; a box there reads zeros
  std::int32_t group;
  std::int32_t window;  // 0: none
  float scale;          // times log2(e) without softcap
  float softcap;        // times log2(e)
};

struct Work {
  PlannedTile tile;
  std::int32_t kv_head;
  std::int32_t first_key;  // that some row sees
  std::int32_t first_tile, last_tile;
  std::int32_t pair;
  std::int32_t chunk;       // of num_chunks, if the pair is shared
  std::int32_t num_chunks;  // 0: the pair is this CTA's
};

template <class Tl>
struct Shared {
  unsigned char q[Tl::kQStages][Tl::kColumnTiles * Tl::kQTileBytes];
  unsigned char k[Tl::kStages][Tl::kKvBytes];
  unsigned char v[Tl::kStages][Tl::kKvBytes];
  Work work[Tl::kQStages];  // with q
  Barrier q_full[Tl::kQStages], q_empty[Tl::kQStages];
  Barrier k_full[Tl::kStages], k_empty[Tl::kStages];
  Barrier v_full[Tl::kStages], v_empty[Tl::kStages];
  Barrier v_landed;              // of a tile whose tail the producer clears before v_full
  bool is_last[Tl::kConsumers];  // of a shared pair's CTAs, said to a warp group by its first thread
};

// Position in a ring of stages: the parity to wait for where it is full; the other one where it is empty.
template <int stages>
struct RingPosition {
  int stage = 0;
  int parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The keys that some row of the tile of queries sees.
struct KeyRange {
  int first, last;
  __host__ __device__ int num_chunks() const { return last / kChunkKeys - first / kChunkKeys + 1; }
};
__host__ __device__ inline KeyRange key_range(const PlannedTile& tile, int window) {
  const int first = window > 0 && tile.first_position >= window ? tile.first_position - window + 1 : 0;
  return {first, tile.first_position + tile.num_tokens - 1};
}

}  // namespace paged::gpu::prefill_sm90
