// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/divide_up.h"
#include "cpu/cpu_ops.h"
#include "cpu/kernel_table.h"
#include "cpu/shared_prefix.h"

namespace paged::cpu {
namespace {

// Batches of at most this many query tokens may give the chunks of one context to several threads; larger ones have
// items enough, and the workspace stays small.
constexpr int kMaxSplitTokens = 8;
constexpr int kMaxSharingTokens = 64;  // that are sure of a state

// States of a head that the workspace has for a batch.
std::int64_t num_states(std::int64_t num_tokens, std::int64_t num_chunks) {
  return std::max(std::min<std::int64_t>(num_tokens, kMaxSplitTokens) * num_chunks,
                  std::min<std::int64_t>(num_tokens, kMaxSharingTokens));
}

// How the query heads of one kv head and the queries of one sequence are cut into tiles.
struct Cut {
  std::int32_t heads_per_tile;
  std::int32_t head_tiles;
  std::int32_t queries_per_tile;

  std::int32_t query_tiles(std::int32_t query_len) const { return divide_up(query_len, queries_per_tile); }
};

Cut cut_of(const AttentionParams& params, std::int32_t max_rows) {
  const std::int32_t group = params.num_heads / params.cache.num_kv_heads;
  const std::int32_t head_tiles = divide_up(group, max_rows);
  const std::int32_t heads = divide_up(group, head_tiles);
  return {heads, head_tiles, std::max(1, max_rows / heads)};
}

struct Chunks {
  std::int32_t begin;
  std::int32_t end;
};

// Chunks that hold keys of queries [first, last] of a sequence whose first query stands at `position`.
Chunks chunks_of(const AttentionParams& params, std::int32_t first, std::int32_t last) {
  const std::int32_t lowest = params.window > 0 ? std::max(0, first - params.window + 1) : 0;
  return {lowest / kKeyChunk, last / kKeyChunk + 1};
}

struct Plan {
  Cut cut;
  std::int32_t longest_chunks = 0;  // chunks of the longest sequence
  std::int64_t items = 0;           // (sequence, kv head, head tile, query tile): neighbours share keys and values
  bool split = false;               // a chunk each
};

std::int64_t items_of(const AttentionParams& params, const Cut& cut) {
  const BatchView& batch = *params.batch;
  std::int64_t tiles = 0;
  for (std::int32_t s = 0; s < batch.num_sequences; ++s) tiles += cut.query_tiles(batch.query_len(s));
  return tiles * params.cache.num_kv_heads * cut.head_tiles;
}

// A tile of few rows still shares what is done to keys and values.
constexpr std::int32_t kFewRows = 32;

// As many rows a tile as suit the kernel, for they share what is done to keys and values, but items for every thread.
Plan plan_of(const AttentionParams& params, int num_threads) {
  const std::int32_t floats = divide_up(params.cache.head_dim, 16) * 16;
  std::int32_t rows = std::min(kernels().query_rows, kMaxQueryFloats / floats / kFewRows * kFewRows);
  Plan plan{.cut = cut_of(params, rows)};
  plan.items = items_of(params, plan.cut);
  while (rows > kFewRows && plan.items < std::int64_t{4} * num_threads) {
    rows = std::max(kFewRows, rows / 2);
    plan.cut = cut_of(params, rows);
    plan.items = items_of(params, plan.cut);
  }
  const BatchView& batch = *params.batch;
  for (std::int32_t s = 0; s < batch.num_sequences; ++s)
    plan.longest_chunks = std::max(plan.longest_chunks, divide_up(batch.seq_lens[s], kKeyChunk));
  plan.split =
      num_threads > 1 && plan.items < 2 * num_threads && plan.longest_chunks > 1 && batch.num_tokens <= kMaxSplitTokens;
  return plan;
}

void take_heads(const AttentionParams& params, const Cut& cut, std::int64_t item, AttentionTile& tile) {
  const std::int32_t group = params.num_heads / params.cache.num_kv_heads;
  const auto head_tile = static_cast<std::int32_t>(item % cut.head_tiles);
  tile.kv_head = static_cast<std::int32_t>(item / cut.head_tiles);
  tile.head_begin = tile.kv_head * group + head_tile * cut.heads_per_tile;
  tile.num_heads = std::min(cut.heads_per_tile, group - head_tile * cut.heads_per_tile);
}

// item -> tile; false where the item's chunk lies outside the keys of its queries.
bool locate(const AttentionParams& params, const Plan& plan, const SharedPrefixes& shared, std::int64_t item,
            AttentionTile& tile) {
  const BatchView& batch = *params.batch;
  tile.op = &params;
  const std::int32_t chunk = plan.split ? static_cast<std::int32_t>(item % plan.longest_chunks) : 0;
  if (plan.split) item /= plan.longest_chunks;
  const std::int64_t all_heads = std::int64_t{params.cache.num_kv_heads} * plan.cut.head_tiles;
  std::int64_t tiles;
  for (tile.sequence = 0; item >= (tiles = plan.cut.query_tiles(batch.query_len(tile.sequence))) * all_heads;
       ++tile.sequence)
    item -= tiles * all_heads;
  const auto query_tile = static_cast<std::int32_t>(item % tiles);
  take_heads(params, plan.cut, item / tiles, tile);
  const std::int32_t query_len = batch.query_len(tile.sequence);
  tile.query_begin = query_tile * plan.cut.queries_per_tile;
  tile.num_queries = std::min(plan.cut.queries_per_tile, query_len - tile.query_begin);
  const std::int32_t first = batch.seq_lens[tile.sequence] - query_len + tile.query_begin;
  Chunks chunks = chunks_of(params, first, first + tile.num_queries - 1);
  if (const SharedPrefix* prefix = shared.of(tile.sequence)) {
    tile.key_begin = prefix->num_keys, tile.states_before = prefix->states;
    chunks.begin = tile.key_begin / kKeyChunk;
  }
  tile.chunk_begin = plan.split ? chunk : chunks.begin;
  tile.chunk_end = plan.split ? chunk + 1 : chunks.end;
  if (plan.split) tile.states_out = {static_cast<float*>(params.workspace), 0, plan.longest_chunks};
  return !plan.split || (chunk >= chunks.begin && chunk < chunks.end);
}

void merge_item(const AttentionParams& params, const Plan& plan, std::int64_t item) {
  const BatchView& batch = *params.batch;
  const std::int64_t token = item / params.num_heads;
  std::int32_t sequence = 0;
  while (batch.query_start[sequence + 1] <= token) ++sequence;
  const std::int32_t position =
      batch.seq_lens[sequence] - batch.query_start[sequence + 1] + static_cast<std::int32_t>(token);
  const Chunks chunks = chunks_of(params, position, position);
  kernels().attention_merge(params, token, static_cast<std::int32_t>(item % params.num_heads),
                            {static_cast<float*>(params.workspace), 0, plan.longest_chunks}, chunks.begin, chunks.end);
}

// Items (prefix, kv head, head tile, chunk, tile of sequences) of the keys that sequences share, the last innermost.
void attend_to_shared(ThreadPool& threads, const AttentionParams& params, const SharedPrefixes& shared) {
  const Cut cut = cut_of(params, kFewRows);
  const std::int64_t all_heads = std::int64_t{params.cache.num_kv_heads} * cut.head_tiles;
  const auto items_of = [&](const SharedPrefix& prefix) {
    return all_heads * prefix.states.num_chunks * cut.query_tiles(prefix.num_sequences);
  };
  std::int64_t items = 0;
  for (int i = 0; i < shared.size(); ++i) items += items_of(shared[i]);
  threads.parallel_for(items, [&](std::int64_t item, int thread) {
    int index = 0;
    for (; item >= items_of(shared[index]); ++index) item -= items_of(shared[index]);
    const SharedPrefix& prefix = shared[index];
    const std::int32_t tiles = cut.query_tiles(prefix.num_sequences), queries = divide_up(prefix.num_sequences, tiles);
    AttentionTile tile{};
    tile.op = &params, tile.sequence = prefix.sequence, tile.scratch = threads.scratch(thread);
    tile.query_begin = static_cast<std::int32_t>(item % tiles) * queries;
    tile.num_queries = std::min(queries, prefix.num_sequences - tile.query_begin);
    tile.chunk_begin = static_cast<std::int32_t>(item / tiles % prefix.states.num_chunks);
    tile.chunk_end = tile.chunk_begin + 1;
    tile.key_end = prefix.num_keys, tile.states_out = prefix.states;
    take_heads(params, cut, item / tiles / prefix.states.num_chunks, tile);
    if (tile.num_queries > 0) kernels().attention(tile);
  });
}

}  // namespace

void attention(ThreadPool& threads, const AttentionParams& params) {
  const Plan plan = plan_of(params, threads.num_threads());
  const std::int64_t items = plan.items * (plan.split ? plan.longest_chunks : 1);
  SharedPrefixes shared;
  if (!plan.split)
    shared = SharedPrefixes::find(params, static_cast<float*>(params.workspace),
                                  num_states(params.batch->num_tokens, plan.longest_chunks));
  if (shared.size() > 0) attend_to_shared(threads, params, shared);
  threads.parallel_for(items, [&](std::int64_t item, int thread) {
    AttentionTile tile{}, after{};
    if (!locate(params, plan, shared, item, tile)) return;
    const std::int64_t next = item + threads.threads_by_turns();
    if (next < items && locate(params, plan, shared, next, after)) tile.after = &after;
    tile.scratch = threads.scratch(thread);
    kernels().attention(tile);
  });
  if (!plan.split) return;
  threads.parallel_for(std::int64_t{params.batch->num_tokens} * params.num_heads,
                       [&](std::int64_t item, int) { merge_item(params, plan, item); });
}

std::int64_t attention_workspace_bytes(int max_tokens, int num_heads, int head_dim, int max_seq_len) {
  return num_states(max_tokens, divide_up(max_seq_len, kKeyChunk)) * num_heads * state_floats(head_dim) *
         static_cast<std::int64_t>(sizeof(float));
}

}  // namespace paged::cpu
