// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set. The sources in cpu/isa are compiled once for each; kernels() picks the best the
// CPU and the operating system support, once, at its first call. PAGED_ISA=baseline|avx2|avx512|avx512bf16|amx
// overrides it and throws std::invalid_argument where the CPU lacks it. (baseline is SSE2 on x86-64 and NEON on 64-bit
// Arm.)
//
// A kernel works on a range of rows or on one tile in the calling thread; who gets which is decided above, in
// cpu/*.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/ops.h"

namespace paged::cpu {

class PackedMatrix;
struct QuantisedRows;

// What a LinearTile may have.
struct LinearTileSize {
  int rows;
  int panels;
  int row_step;  // tiles begin at multiples of it
};
inline constexpr LinearTileSize kMaxLinearTile{96, 8, 1};
inline constexpr LinearTileSize kMaxBFloat16Tile{128, 16, 32};  // bfloat16 x bfloat16 by AMX
inline constexpr int kBFloat16Cols = 32;
inline constexpr int kPairPanels = 16;                     // at most, of bfloat16 x bfloat16 by dpbf16
inline constexpr LinearTileSize kMaxCodeTile{256, 8, 16};  // quantised weights by AMX
inline constexpr int kKeyTile = 64;                        // keys of one step of the online softmax
inline constexpr int kKeyChunk = 1024;  // keys whose state starts from init; states merge in ascending order
inline constexpr int kMaxHeadDim = 512;
// (query token, head) pairs of one attention tile, and what they may have of head_dim rounded up to 16 altogether.
inline constexpr int kMaxQueryRows = 128;
inline constexpr int kMaxQueryFloats = 32 * kMaxHeadDim;

// out[rows, 16 * panels] = x @ weights.T + bias for some rows and some panels of one matrix.
struct LinearTile {
  MatrixView x;
  MatrixView out;
  const QuantisedRows* codes;  // of x, read in its place where the weights are quantised
  const PackedMatrix* weights;
  const float* bias;  // [weights.rows] or null
  std::int64_t row_begin;
  std::int64_t panel_begin;
  std::int64_t column_begin;  // column of out that takes the matrix's first row
  int num_rows;
  int num_panels;
  std::byte* scratch;  // ThreadPool::kScratchBytes
  bool is_new;         // the thread has not read these weights for other rows just before
  // Weights that the thread will read after these, or these where nothing comes: kernels ask for them meanwhile, for
  // the nearest cache or the second one.
  const std::byte* next;
  std::int64_t next_bytes = 0;
  bool asks_nearest;
};

// State of the online softmax of one (query token, head) over keys of one chunk: [m, l, 14 unused, 16 parts of l,
// acc[head_dim to 16]].
constexpr std::int64_t state_floats(std::int64_t head_dim) { return 32 + (head_dim + 15) / 16 * 16; }

// The states of some query tokens: [token - first_token, head, chunk].
struct SoftmaxStates {
  float* data;  // null: none
  std::int32_t first_token;
  std::int32_t num_chunks;

  float* at(const AttentionParams& op, std::int64_t token, int head, int chunk) const {
    return data +
           (((token - first_token) * op.num_heads + head) * num_chunks + chunk) * state_floats(op.cache.head_dim);
  }
};

// Some queries of a sequence, some query heads of one kv head, the keys of some chunks. Of a shared prefix: the only
// query of each of some neighbours, all of which see all keys up to key_end.
struct AttentionTile {
  const AttentionParams* op;
  std::int32_t sequence;
  std::int32_t kv_head;
  std::int32_t head_begin;
  std::int32_t num_heads;
  std::int32_t query_begin;  // inside the sequence's scheduled tokens
  std::int32_t num_queries;  // num_heads * num_queries: see kMaxQueryRows
  std::int32_t chunk_begin;
  std::int32_t chunk_end;
  std::int32_t key_begin;  // states of the keys before it are in states_before
  std::int32_t key_end;    // 0: every query sees the keys up to its own position
  SoftmaxStates states_before;
  SoftmaxStates states_out;  // nowhere: merge the chunks and write out
  std::byte* scratch;
  const AttentionTile* after = nullptr;  // one that the thread will probably work on next
};

// One row of logits under temperature: probabilities relative to the largest.
struct ExpRow {
  const float* logits;  // [n]
  std::int64_t n;
  float max;
  float inverse_temperature;
  float* weights;      // [n] out: exp((logit - max) / temperature)
  double* block_sums;  // [ceil(n / kSumBlock)] out
};
inline constexpr int kSumBlock = 256;

struct KernelTable {
  const char* isa;
  LinearTileSize linear_tile;    // that suits the registers best
  LinearTileSize bfloat16_tile;  // where x and all weights are bfloat16, and columns a multiple of kBFloat16Cols
  LinearTileSize integer_tile;   // where all weights are quantised
  LinearTileSize code_tile;      // and codes are tiled (quantised_rows.h)
  // So many rows or more want tiled codes if all weights are quantised, where all codes of x are fine or most are
  // coarse (quantised_rows.h). 0: none do.
  int fine_tile_rows;
  int coarse_tile_rows;
  int query_rows;  // of an AttentionTile, where there are many; <= kMaxQueryRows

  void (*linear)(const LinearTile& tile);
  void (*quantise_rows)(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end);
  void (*attention)(const AttentionTile& tile);
  // Merges the states of chunks [begin, end) of one (token, head) and writes its row of out.
  void (*attention_merge)(const AttentionParams& op, std::int64_t token, std::int32_t head, const SoftmaxStates& states,
                          std::int32_t begin, std::int32_t end);

  void (*rms_norm)(const RmsNormParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*add_rms_norm)(const AddRmsNormParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*add)(const AddParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*rope)(const RopeParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*store_kv)(const StoreKvParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*rope_store_kv)(const RopeStoreKvParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*gated_activation)(const GatedActivationParams& op, std::int64_t row_begin, std::int64_t row_end);
  void (*softcap)(const SoftcapParams& op, std::int64_t row_begin, std::int64_t row_end);

  // Largest of row[0 .. n); NaN if any is NaN.
  float (*row_max)(const float* row, std::int64_t n);
  void (*exp_row)(const ExpRow& row);
  // Writes the indices i with row[i] >= threshold to out in ascending order, at most capacity, beginning at `begin`;
  // returns how many and sets next to where the search stopped.
  std::int64_t (*collect)(const float* row, std::int64_t n, float threshold, std::int32_t* out, std::int64_t capacity,
                          std::int64_t begin, std::int64_t* next);
};

const KernelTable& kernels();

}  // namespace paged::cpu
