// SPDX-License-Identifier: Apache-2.0
// Rotary embedding (Su et al., RoFormer, arXiv 2104.09864), the write of keys and values into the cache, and both at
// once: one kernel, whose threads take a vector each. A rotated key is rounded to the activations' dtype first, so that
// the fused op stores what rope followed by store_kv would. And copies of whole blocks.
#pragma once

#include "base/check.h"
#include "gpu/kv_layout.h"
#include "gpu/rows.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

constexpr int kCacheThreads = 256;

// The heads of q, k or v of one token. Items of a head: first those that rotate kVec pairs, then those that copy kVec
// elements.
struct Heads {
  Rows x, out;
  const std::int32_t* positions;
  const float* table;
  int head_dim;
  int rotary_dim;
  bool interleaved;
  int rotated;         // items of a head
  int items_per_head;  // rotated, and copied where they would not stay where they are
  int items;           // of all heads
};

struct CacheWork {
  Heads q, k, v;
  const std::int32_t* slots;
  void* cache;
  int num_kv_heads;
  int block_shift;  // log2 of the block size
};

template <class From, class To, int kVec>
__device__ __forceinline__ Vec<To, kVec> converted(const Vec<From, kVec>& from) {
  Vec<To, kVec> to;
#pragma unroll
  for (int i = 0; i < kVec; ++i) to.data[i] = from_float<To>(to_float(from.data[i]));
  return to;
}

// Rotates the pairs (a[i], b[i]).
template <class T, int kVec>
__device__ __forceinline__ void rotate(Vec<T, kVec>& a, Vec<T, kVec>& b, const Vec<float, kVec>& cosines,
                                       const Vec<float, kVec>& sines) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float first = to_float(a.data[i]), second = to_float(b.data[i]);
    a.data[i] = from_float<T>(fmaf(first, cosines.data[i], -(second * sines.data[i])));
    b.data[i] = from_float<T>(fmaf(second, cosines.data[i], first * sines.data[i]));
  }
}

// Neighbours to pairs and back: (a, b) holds 2 kVec elements in order.
template <class T, int kVec>
__device__ __forceinline__ void split_pairs(Vec<T, kVec>& a, Vec<T, kVec>& b) {
  Vec<T, kVec> even, odd;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    even.data[i] = 2 * i < kVec ? a.data[2 * i % kVec] : b.data[2 * i % kVec];
    odd.data[i] = 2 * i + 1 < kVec ? a.data[(2 * i + 1) % kVec] : b.data[(2 * i + 1) % kVec];
  }
  a = even;
  b = odd;
}
template <class T, int kVec>
__device__ __forceinline__ void join_pairs(Vec<T, kVec>& a, Vec<T, kVec>& b) {
  Vec<T, kVec> low, high;
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    low.data[i] = i % 2 == 0 ? a.data[i / 2] : b.data[i / 2];
    high.data[i] = (kVec + i) % 2 == 0 ? a.data[(kVec + i) / 2] : b.data[(kVec + i) / 2];
  }
  a = low;
  b = high;
}

// Item `item` of one head, from x to out.
template <class T, class To, int kVec>
__device__ __forceinline__ void do_item(const Heads& heads, std::int64_t token, int item, const T* x, To* out) {
  if (item >= heads.rotated) {
    const int at = heads.rotary_dim + (item - heads.rotated) * kVec;
    store_vec(out + at, converted<T, To, kVec>(load_vec<T, kVec>(x + at)));
    return;
  }
  const int half = heads.rotary_dim / 2, pair = item * kVec;
  const int first = heads.interleaved ? 2 * pair : pair, second = first + (heads.interleaved ? kVec : half);
  Vec<T, kVec> a = load_vec<T, kVec>(x + first), b = load_vec<T, kVec>(x + second);
  const float* cosines = heads.table + std::int64_t{heads.positions[token]} * heads.rotary_dim + pair;
  const auto c = load_vec<float, kVec>(cosines), s = load_vec<float, kVec>(cosines + half);
  if (heads.interleaved) split_pairs(a, b);
  rotate(a, b, c, s);
  if (heads.interleaved) join_pairs(a, b);
  store_vec(out + first, converted<T, To, kVec>(a));
  store_vec(out + second, converted<T, To, kVec>(b));
}

// Block x is a token, block y some of its items: q's, then k's, then v's.
template <class T, class C, int kVec>
__global__ void __launch_bounds__(kCacheThreads) cache_kernel(CacheWork work) {
  release_dependents();
  int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const std::int64_t token = blockIdx.x;
  wait_for_predecessors();
  if (item < work.q.items) {
    const int at = item / work.q.items_per_head * work.q.head_dim;
    do_item<T, T, kVec>(work.q, token, item % work.q.items_per_head, work.q.x.row<const T>(token) + at,
                        work.q.out.row<T>(token) + at);
    return;
  }
  item -= work.q.items;
  const bool is_value = item >= work.k.items;
  if (is_value) item -= work.k.items;
  const Heads& heads = is_value ? work.v : work.k;
  if (item >= heads.items) return;
  const std::int32_t slot = work.slots[token];
  if (slot < 0) return;
  const int head = item / heads.items_per_head, in_block = slot & ((1 << work.block_shift) - 1);
  C* out = static_cast<C*>(work.cache) +
           piece_offset(slot >> work.block_shift, is_value ? 1 : 0, head, work.num_kv_heads,
                        std::int64_t{heads.head_dim} << work.block_shift) +
           std::int64_t{in_block} * heads.head_dim;
  do_item<T, C, kVec>(heads, token, item % heads.items_per_head,
                      heads.x.row<const T>(token) + std::int64_t{head} * heads.head_dim, out);
}

// How the heads of x fall into items of vec elements.
Heads heads_of(const RopeParams& rope, const MatrixView& out, int vec) {
  const bool stays = rope.x.data == out.data && rope.x.row_stride == out.row_stride;  // what is not rotated
  const int rotated = rope.rotary_dim / 2 / vec, copied = stays ? 0 : (rope.head_dim - rope.rotary_dim) / vec;
  return {.x = rows_of(rope.x),
          .out = rows_of(out),
          .positions = rope.positions,
          .table = rope.table,
          .head_dim = rope.head_dim,
          .rotary_dim = rope.rotary_dim,
          .interleaved = rope.interleaved,
          .rotated = rotated,
          .items_per_head = rotated + copied,
          .items = static_cast<int>(rope.x.cols / rope.head_dim) * (rotated + copied)};
}

// Heads that are only copied.
RopeParams no_rope(const MatrixView& x, std::int32_t head_dim) {
  return {.x = x,
          .positions = nullptr,
          .table = nullptr,
          .max_positions = 0,
          .head_dim = head_dim,
          .rotary_dim = 0,
          .interleaved = false,
          .out = {}};
}

// Whether all that an item moves are whole vectors.
bool moves_vectors(const RopeParams& rope) {
  const std::int64_t vec = 16 / size_of(rope.x.dtype);
  return has_vectors(rope.x) && rope.rotary_dim / 2 % vec == 0 && rope.head_dim % vec == 0 && is_aligned(rope.table);
}

template <class T, class C, int kVec>
void launch_cache(const ExecutionContext& context, const CacheWork& work, std::int64_t tokens) {
  const int items = work.q.items + work.k.items + work.v.items;
  if (items == 0 || tokens == 0) return;
  const unsigned threads = block_threads(items, kCacheThreads);
  launch(cache_kernel<T, C, kVec>,
         dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(divide_up(items, threads))), dim3(threads), 0,
         stream_of(context), work);
}

// k (rotated) and v into the cache; q, if there is one, into q->out.
void write_cache(const ExecutionContext& context, const RopeParams* q, const RopeParams& k, const RopeParams& v,
                 const std::int32_t* slots, const KvCacheView& cache) {
  const bool vectors = moves_vectors(k) && moves_vectors(v) && is_aligned(cache.data) &&
                       (q == nullptr || (moves_vectors(*q) && has_vectors(q->out)));
  const auto work_for = [&](int vec) {
    CacheWork work{.q = {},
                   .k = heads_of(k, {}, vec),
                   .v = heads_of(v, {}, vec),
                   .slots = slots,
                   .cache = cache.data,
                   .num_kv_heads = cache.num_kv_heads,
                   .block_shift = 0};
    if (q != nullptr) work.q = heads_of(*q, q->out, vec);
    while (1 << work.block_shift < cache.block_size) ++work.block_shift;
    return work;
  };
  with_type(k.x.dtype, [&](auto element) {
    with_type(cache.dtype, [&](auto stored) {
      using T = decltype(element);
      using C = decltype(stored);
      if (vectors)
        launch_cache<T, C, kVecOf<T>>(context, work_for(kVecOf<T>), k.x.rows);
      else
        launch_cache<T, C, 1>(context, work_for(1), k.x.rows);
    });
  });
}

constexpr int kCopyHeld = 4;

// Block x is a copy, block y some of its units.
template <class Unit>
__global__ void __launch_bounds__(kCacheThreads)
    copy_blocks_kernel(Unit* cache, const std::int32_t* source, const std::int32_t* destination, std::int64_t units) {
  release_dependents();
  wait_for_predecessors();
  const Unit* from = cache + source[blockIdx.x] * units;
  Unit* to = cache + destination[blockIdx.x] * units;
  const std::int64_t first = std::int64_t{blockIdx.y} * blockDim.x * kCopyHeld + threadIdx.x;
  Unit held[kCopyHeld];
#pragma unroll
  for (int h = 0; h < kCopyHeld; ++h)
    if (first + h * blockDim.x < units) held[h] = from[first + h * blockDim.x];
#pragma unroll
  for (int h = 0; h < kCopyHeld; ++h)
    if (first + h * blockDim.x < units) to[first + h * blockDim.x] = held[h];
}

template <class Unit>
void launch_copy(const ExecutionContext& context, const CopyBlocksParams& params) {
  const std::int64_t units = params.cache.block_bytes() / static_cast<std::int64_t>(sizeof(Unit));
  const dim3 grid(static_cast<unsigned>(params.num_copies),
                  static_cast<unsigned>(divide_up(units, kCacheThreads * kCopyHeld)));
  launch(copy_blocks_kernel<Unit>, grid, dim3(kCacheThreads), 0, stream_of(context),
         static_cast<Unit*>(params.cache.data), params.source, params.destination, units);
}

}  // namespace

void rope(const ExecutionContext& context, const RopeParams& params) {
  const bool vectors = moves_vectors(params) && has_vectors(params.out);
  with_type(params.x.dtype, [&](auto element) {
    using T = decltype(element);
    CacheWork work{};
    work.q = heads_of(params, params.out, vectors ? kVecOf<T> : 1);
    if (vectors)
      launch_cache<T, T, kVecOf<T>>(context, work, params.x.rows);
    else
      launch_cache<T, T, 1>(context, work, params.x.rows);
  });
}

void store_kv(const ExecutionContext& context, const StoreKvParams& params) {
  write_cache(context, nullptr, no_rope(params.k, params.cache.head_dim), no_rope(params.v, params.cache.head_dim),
              params.slot_mapping, params.cache);
}

void rope_store_kv(const ExecutionContext& context, const RopeStoreKvParams& params) {
  write_cache(context, &params.q, params.k, no_rope(params.v, params.cache.head_dim), params.slot_mapping,
              params.cache);
}

void copy_blocks(const ExecutionContext& context, const CopyBlocksParams& params) {
  if (params.num_copies == 0) return;
  if (params.cache.block_bytes() % 16 == 0 && is_aligned(params.cache.data))
    launch_copy<unsigned __int128>(context, params);  // a scalar: clang keeps copies of structs in memory
  else
    launch_copy<std::uint16_t>(context, params);
}

}  // namespace paged::gpu
