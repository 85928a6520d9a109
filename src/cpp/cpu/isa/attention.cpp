// SPDX-License-Identifier: Apache-2.0
// Paged attention for prefill and decode alike: online softmax (Milakov and Gimelshein, arXiv 1805.02867;
// FlashAttention, arXiv 2205.14135) over tiles of 64 absolute key positions, chunks of 1024 merged in ascending order
// (init, merge, normalise as in FlashInfer's state). The tree is fixed by positions alone, so a row's result does not
// depend on the batch, on how its prompt was chunked, on the block size or on how many threads share the context. A
// score is one fma chain over head_dim (of int8, over each group of components with a scale); an output one chain over
// the keys of a tile. (Products of bfloat16: attention_bfloat16.h.) Keys past a row's range score -infinity; values
// outside the tile's range are never read.
#include "cpu/isa/attention_pairs.h"
#include "cpu/isa/attention_tiles.h"
#include "cpu/isa/attention_walk.h"
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/isa/vec_math.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

constexpr float kNegativeInfinity = -__builtin_inff();
constexpr int kOutVectors = kScoreVectors;

// Lines to ask for beside `bytes` / 4 multiply-adds of vectors, so that a tile's are all asked for in the end.
constexpr int lines_of(std::size_t bytes) { return bytes < 4 ? 1 : static_cast<int>(bytes / 4); }

// ---- scores

// One component of the keys, or a pair of them, by as many rows of q.
template <typename C, int kRows>
PAGED_INLINE void score_step(const C* const (&keys)[kScoreVectors], const float* q, std::int64_t q_stride,
                             F32 (&acc)[kRows][kScoreVectors]) {
  for (int v = 0; v < kScoreVectors; ++v) {
    const F32 key = load(keys[v]);
    for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set1(q[r * q_stride]), key, acc[r][v]);
    free_registers();
  }
}

template <int kRows>
PAGED_INLINE void score_pair_step(const BFloat16* const (&keys)[kScoreVectors], const float* q, std::int64_t q_stride,
                                  F32 (&acc)[kRows][kScoreVectors]) {
  for (int v = 0; v < kScoreVectors; ++v) {
    const F32 even = even_bf16(load_words(keys[v]));
    for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set1(q[r * q_stride]), even, acc[r][v]);
    free_registers();
    const F32 odd = odd_bf16(load_words(keys[v]));
    for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set1(q[r * q_stride + 1]), odd, acc[r][v]);
    free_registers();
  }
}

// Sums over the components from d on -> scores; those of the next group with a scale of its own go on top.
template <typename C, int kRows>
PAGED_INLINE void keep_scores(const Walk& walk, int first, int row, int d, const F32 (&acc)[kRows][kScoreVectors]) {
  for (int v = 0; v < kScoreVectors; ++v) {
    F32 scale = set1(walk.tile.op->scale);
    if constexpr (kScaled<C>)
      scale = scale * load(walk.s.key_scales + d / kKeyScaleGroup * kKeyTile + (first + v) * 16);
    for (int r = 0; r < kRows; ++r) {
      float* p = walk.s.p + (row + r) * kKeyTile + (first + v) * 16;
      store(p, d == 0 ? acc[r][v] * scale : fma(acc[r][v], scale, load(p)));
    }
  }
}

// Rows of q by kScoreVectors vectors of keys, from vector `first` of the tile on.
template <typename C, int kRows>
PAGED_INLINE void score_vectors(const Walk& walk, const KeyVectors<C>& keys, int first, int row, Ahead<C>& values) {
  constexpr int kGroup = kKeyGroup<C>;
  constexpr int kLines = lines_of(sizeof(C) * kGroup * kScoreVectors);
  const std::int64_t q_stride = walk.head_stride, key_stride = keys.stride;
  const float* q = walk.s.q + row * q_stride;
  const C* at[kScoreVectors];
  for (int v = 0; v < kScoreVectors; ++v) at[v] = keys.at[first + v];
  const int span = kScaled<C> ? kKeyScaleGroup : walk.head_dim;
  for (int d = 0; d < walk.head_dim; d += span) {
    const float* const end = q + smaller(span, walk.head_dim - d);
    F32 acc[kRows][kScoreVectors];
    for (int v = 0; v < kScoreVectors; ++v)
      for (int r = 0; r < kRows; ++r) acc[r][v] = zero();
    for (; q < end; q += kGroup) {
      values.fetch_lines(kLines);
      if constexpr (kGroup == 2)
        score_pair_step<kRows>(at, q, q_stride, acc);
      else
        score_step<C, kRows>(at, q, q_stride, acc);
      for (int v = 0; v < kScoreVectors; ++v) at[v] += key_stride;
    }
    keep_scores<C, kRows>(walk, first, row, d, acc);
  }
}

template <typename C, int kRows>
void score_rows(const Walk& walk, const KeyVectors<C>& keys, int row, Ahead<C>& values) {
  Ahead<C> ahead = values;
  for (int first = 0; first < kKeyTile / 16; first += kScoreVectors)
    score_vectors<C, kRows>(walk, keys, first, row, ahead);
  values = ahead;
}

// ---- softmax

// Scores of row r -> exponentials, times the values' scales where they have any; updates the row's max, sum and the
// factor its accumulators are scaled by.
template <typename C>
void softmax_row(const Walk& walk, int row, int tile_begin) {
  AttentionScratch& s = walk.s;
  float* p = s.p + row * kKeyTile;
  const Range keys = walk.keys_of(row);
  const int begin = larger(keys.begin - tile_begin, 0);
  const int end = smaller(keys.end - tile_begin, kKeyTile);
  s.scale[row] = 1.0f;
  if (begin >= end) {
    for (int i = 0; i < kKeyTile; i += 16) store(p + i, zero());
    return;
  }
  F32 v[kKeyTile / 16];
  for (int i = 0; i < kKeyTile / 16; ++i) {
    v[i] = load(p + 16 * i);
    if (walk.tile.op->softcap > 0.0f) v[i] = set1(walk.tile.op->softcap) * tanh(v[i] / set1(walk.tile.op->softcap));
    if (begin > 0 || end < kKeyTile) v[i] = keep_lanes(v[i], begin - 16 * i, end - 16 * i, kNegativeInfinity);
  }
  const float tile_max = reduce_max(max(max(v[0], v[1]), max(v[2], v[3])));
  const float new_max = tile_max > s.max[row] ? tile_max : s.max[row];
  for (int i = 0; i < kKeyTile / 16; ++i) {
    v[i] = exp(v[i] - set1(new_max));
    store(p + 16 * i, kScaled<C> ? v[i] * load(s.value_scales + 16 * i) : v[i]);
  }
  s.scale[row] = s.max[row] == new_max ? 1.0f : exp_scalar(s.max[row] - new_max);
  s.sum[row] = s.sum[row] * s.scale[row] + reduce_add((v[0] + v[1]) + (v[2] + v[3]));
  s.max[row] = new_max;
}

// ---- values

// acc[rows][kVectors * 16 columns from d] = acc * scale + p @ values; `lanes` columns of the last vector exist.
template <typename C, int kRows, int kVectors>
PAGED_INLINE void value_columns(const Walk& walk, int row, int d, int lanes, Range keys, Ahead<C>& ahead) {
  F32 acc[kRows][kVectors];
  float* out = walk.s.acc + row * walk.head_stride + d;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = load(out + r * walk.head_stride + 16 * v) * set1(walk.s.scale[row + r]);
  const float* p = walk.s.p + row * kKeyTile;
  const std::byte* const* values = walk.s.values;
  for (int key = keys.begin; key < keys.end; ++key) {
    ahead.fetch_lines(lines_of(sizeof(C) * kVectors));
    const C* value = reinterpret_cast<const C*>(values[key]) + d;
    for (int v = 0; v < kVectors; ++v) {
      const F32 column = v + 1 < kVectors ? load(value + 16 * v) : load_lanes(value + 16 * v, lanes);
      for (int r = 0; r < kRows; ++r) acc[r][v] = fma(set1(p[r * kKeyTile + key]), column, acc[r][v]);
      free_registers();
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(out + r * walk.head_stride + 16 * v, acc[r][v]);
}

template <typename C, int kRows>
void value_rows(const Walk& walk, int row, Range keys, Ahead<C>& next) {
  Ahead<C> ahead = next;
  int d = 0;
  for (; d + 16 * kOutVectors <= walk.head_dim; d += 16 * kOutVectors)
    value_columns<C, kRows, kOutVectors>(walk, row, d, 16, keys, ahead);
  for (; d < walk.head_dim; d += 16)
    value_columns<C, kRows, 1>(walk, row, d, smaller(16, walk.head_dim - d), keys, ahead);
  next = ahead;
}

// ---- a tile of keys

constexpr int kAttentionRows = kTileRows / 2;

template <typename C, int kRows>
PAGED_INLINE void score_some(const Walk& walk, const KeyVectors<C>& keys, int row, int num_rows, Ahead<C>& values) {
  if (num_rows == kRows)
    score_rows<C, kRows>(walk, keys, row, values);
  else if constexpr (kRows > 1)
    score_some<C, kRows - 1>(walk, keys, row, num_rows, values);
}

template <typename C, int kRows>
PAGED_INLINE void value_some(const Walk& walk, int row, int num_rows, Range keys, Ahead<C>& next) {
  if (num_rows == kRows)
    value_rows<C, kRows>(walk, row, keys, next);
  else if constexpr (kRows > 1)
    value_some<C, kRows - 1>(walk, row, num_rows, keys, next);
}

// One step of the online softmax. `next` is on its way from memory meanwhile.
template <typename C>
void visit_keys(const Walk& walk, Range range, const Coming& next) {
  AttentionScratch& s = walk.s;
  const int tile_begin = range.begin / kKeyTile * kKeyTile;
  const KeyVectors<C> keys = key_vectors<C>(walk, tile_begin, range);
  find_values<C>(walk, tile_begin, range, s.values);
  find_scales<C>(walk, tile_begin, range);
  Ahead<C> values({walk, range}, 1), next_keys(next, 0);
  for (int row = 0; row < walk.num_rows; row += kAttentionRows)
    score_some<C, kAttentionRows>(walk, keys, row, smaller(kAttentionRows, walk.num_rows - row), values);
  for (int row = 0; row < walk.num_rows; ++row) softmax_row<C>(walk, row, tile_begin);
  const Range in_tile{range.begin - tile_begin, range.end - tile_begin};
  for (int row = 0; row < walk.num_rows; row += kAttentionRows)
    value_some<C, kAttentionRows>(walk, row, smaller(kAttentionRows, walk.num_rows - row), in_tile, next_keys);
}

// ---- states: init, merge, normalise

void init(float* max, float* sum, float* acc, int head_stride) {
  *max = kNegativeInfinity;
  *sum = 0.0f;
  for (int d = 0; d < head_stride; d += 16) store(acc + d, zero());
}

// (max, sum, acc) += (other_max, other_sum, other_acc). An empty state changes nothing.
void merge(float* max, float* sum, float* acc, float other_max, float other_sum, const float* other, int head_stride) {
  if (other_max == kNegativeInfinity) return;
  const bool larger_max = other_max > *max;  // of the two scales one is exp(0), which is exactly 1
  const float new_max = larger_max ? other_max : *max;
  const float scale = larger_max ? exp_scalar(*max - new_max) : 1.0f;
  const float other_scale = larger_max ? 1.0f : exp_scalar(other_max - new_max);
  for (int d = 0; d < head_stride; d += 16)
    store(acc + d, load(acc + d) * set1(scale) + load(other + d) * set1(other_scale));
  *sum = *sum * scale + other_sum * other_scale;
  *max = new_max;
}

// (max, sum, acc) += the states of chunks [begin, end) of a row.
void merge_states(const AttentionParams& op, const SoftmaxStates& states, std::int64_t token, int head, int begin,
                  int end, float* max, float* sum, float* acc) {
  const int head_stride = (op.cache.head_dim + 15) / 16 * 16;
  for (int chunk = begin; chunk < end; ++chunk) {
    const float* state = states.at(op, token, head, chunk);
    merge(max, sum, acc, state[0], state[1], state + 32, head_stride);
  }
}

// out = acc / sum, with the head's sink in the sum.
void normalise(const AttentionParams& op, int head, std::int64_t token, float max, float sum, const float* acc) {
  const int head_dim = op.cache.head_dim;
  float scale = 1.0f;
  if (op.sinks != nullptr) {
    const float new_max = op.sinks[head] > max ? op.sinks[head] : max;
    scale = exp_scalar(max - new_max);
    sum = sum * scale + exp_scalar(op.sinks[head] - new_max);
  }
  const F32 factor = set1(scale / sum);
  with_type(op.out.dtype, [&](auto tag) {
    auto* out = row_of<decltype(tag)>(op.out, token) + std::int64_t{head} * head_dim;
    for_lanes(head_dim, [&](std::int64_t i, int n) { store_lanes(out + i, load(acc + i) * factor, n); });
  });
}

void load_queries(const Walk& walk) {
  with_type(walk.tile.op->q.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int row = 0; row < walk.num_rows; ++row) {
      const T* q = row_of<const T>(walk.tile.op->q, walk.token(row)) + std::int64_t{walk.head(row)} * walk.head_dim;
      float* to = walk.s.q + row * walk.head_stride;
      for_lanes(walk.head_dim, [&](std::int64_t i, int n) { store(to + i, load_lanes(q + i, n)); });
    }
  });
}

void begin_queries(const Walk& walk) {
  if constexpr (kHasTiles) begin_tiles(attention_shapes(walk.num_rows));
  if constexpr (kDotBf16) {
    if (pairs_take(*walk.tile.op)) {
      __builtin_memset(walk.s.zeros, 0, sizeof(walk.s.zeros));
      return copy_queries(walk);
    }
  }
  load_queries(walk);
}

// Of the chunks before the tile's.
void begin_totals(const Walk& walk, int row) {
  AttentionScratch& s = walk.s;
  float* total = s.total + row * walk.head_stride;
  init(&s.total_max[row], &s.total_sum[row], total, walk.head_stride);
  if (walk.tile.key_begin > 0)
    merge_states(*walk.tile.op, walk.tile.states_before, walk.token(row), walk.head(row), 0,
                 walk.tile.key_begin / kKeyChunk, &s.total_max[row], &s.total_sum[row], total);
}

// A chunk's state: empty, or that of its keys before the tile's.
void begin_chunk(const Walk& walk, int chunk) {
  AttentionScratch& s = walk.s;
  for (int row = 0; row < walk.num_rows; ++row) {
    float *acc = s.acc + row * walk.head_stride, *parts = s.partial_sums + 16 * row;
    if (chunk * kKeyChunk < walk.tile.key_begin) {
      const float* from = walk.tile.states_before.at(*walk.tile.op, walk.token(row), walk.head(row), chunk);
      s.max[row] = from[0], s.sum[row] = from[1];
      store(parts, load(from + 16));
      for (int d = 0; d < walk.head_stride; d += 16) store(acc + d, load(from + 32 + d));
    } else {
      init(&s.max[row], &s.sum[row], acc, walk.head_stride);
      store(parts, zero());
    }
    if constexpr (kDotBf16) follow_max(s, row);
  }
}

void end_chunk(const Walk& walk, int chunk) {
  AttentionScratch& s = walk.s;
  for (int row = 0; row < walk.num_rows; ++row) {
    const float* acc = s.acc + row * walk.head_stride;
    if (walk.tile.states_out.data == nullptr) {
      merge(&s.total_max[row], &s.total_sum[row], s.total + row * walk.head_stride, s.max[row], s.sum[row], acc,
            walk.head_stride);
      continue;
    }
    float* out = walk.tile.states_out.at(*walk.tile.op, walk.token(row), walk.head(row), chunk);
    out[0] = s.max[row], out[1] = s.sum[row];
    store(out + 16, load(s.partial_sums + 16 * row));
    for (int d = 0; d < walk.head_stride; d += 16) store(out + 32 + d, load(acc + d));
  }
}

template <typename C>
void visit(const Walk& walk, Range range, const Coming& next) {
  if constexpr (kDotBf16 && kPairsRead<C>) {
    if (pairs_take(*walk.tile.op)) {
      if constexpr (!kHasTiles)
        return visit_keys_in_pairs(walk, range, next);
      else
        return walk.head_dim == 64    ? visit_keys_tiled<C, 64>(walk, range, next)
               : walk.head_dim == 128 ? visit_keys_tiled<C, 128>(walk, range, next)
                                      : visit_keys_tiled<C, 0>(walk, range, next);
    }
  }
  visit_keys<C>(walk, range, next);
}

// The part of the walk's keys that its first step is about.
Range first_step(const Walk& walk) {
  const Range keys = walk.keys_in(walk.tile.chunk_begin, walk.tile.chunk_end);
  return clip(keys, keys.begin / kKeyTile * kKeyTile);
}

// `after`: what comes behind the walk.
void walk_chunk(const Walk& walk, int chunk, const Coming& after) {
  const Range keys = walk.keys_in(chunk, chunk + 1), to_come = walk.keys_in(chunk, walk.tile.chunk_end);
  begin_chunk(walk, chunk);
  with_cache_type(walk.tile.op->cache.dtype, [&](auto tag) {
    Range range = clip(keys, keys.begin / kKeyTile * kKeyTile);
    while (range.begin < range.end) {
      const int next_tile = (range.begin / kKeyTile + 1) * kKeyTile;
      const Coming next{walk, clip(to_come, next_tile)};
      visit<decltype(tag)>(walk, range, next.keys.begin < next.keys.end ? next : after);
      range = clip(keys, next_tile);
    }
  });
  if constexpr (kDotBf16)
    if (pairs_take(*walk.tile.op)) end_sums(walk);
  end_chunk(walk, chunk);
}

Walk walk_of(const AttentionTile& tile, std::byte* scratch) {
  const BatchView& batch = *tile.op->batch;
  const int sequence = tile.sequence, head_dim = tile.op->cache.head_dim;
  return {
      .tile = tile,
      .s = *reinterpret_cast<AttentionScratch*>(scratch),
      .block_table = batch.block_tables + std::int64_t{batch.block_table_rows[sequence]} * batch.block_table_stride,
      .num_rows = tile.num_queries * tile.num_heads,
      .head_dim = head_dim,
      .head_stride = (head_dim + 15) / 16 * 16,
      .position =
          tile.key_end > 0 ? tile.key_end - 1 : batch.seq_lens[sequence] - batch.query_len(sequence) + tile.query_begin,
  };
}

}  // namespace

void attention(const AttentionTile& tile) {
  const Walk walk = walk_of(tile, tile.scratch);
  const Walk other = walk_of(tile.after != nullptr ? *tile.after : tile, tile.scratch);
  const Coming after{other, tile.after != nullptr ? first_step(other) : Range{0, 0}};
  begin_queries(walk);
  AttentionScratch& s = walk.s;
  for (int row = 0; row < walk.num_rows; ++row) begin_totals(walk, row);
  for (int chunk = tile.chunk_begin; chunk < tile.chunk_end; ++chunk) walk_chunk(walk, chunk, after);
  if constexpr (kHasTiles) end_tiles();
  if (tile.states_out.data != nullptr) return;
  for (int row = 0; row < walk.num_rows; ++row)
    normalise(*tile.op, walk.head(row), walk.token(row), s.total_max[row], s.total_sum[row],
              s.total + row * walk.head_stride);
}

void attention_merge(const AttentionParams& op, std::int64_t token, std::int32_t head, const SoftmaxStates& states,
                     std::int32_t begin, std::int32_t end) {
  alignas(64) float acc[kMaxHeadDim];
  float max;
  float sum;
  init(&max, &sum, acc, (op.cache.head_dim + 15) / 16 * 16);
  merge_states(op, states, token, head, begin, end, &max, &sum, acc);
  normalise(op, head, token, max, sum, acc);
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
