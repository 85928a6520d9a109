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

template <int kVec>
struct Angles {
  Vec<float, kVec> cosines, sines;
};
// Of the pairs from `pair` on; may be called ahead of the kernel's wait.
template <int kVec>
__device__ __forceinline__ Angles<kVec> angles_of(const Heads& heads, std::int64_t token, int pair) {
  const std::int64_t position = load_past_l1(heads.positions + token);
  const float* cosines = heads.table + position * heads.rotary_dim + pair;
  return {load_vec<float, kVec>(cosines), load_vec<float, kVec>(cosines + heads.rotary_dim / 2)};
}

// Item `item` of one head, from x to out.
template <class T, class To, int kVec>
__device__ __forceinline__ void do_item(const Heads& heads, const Angles<kVec>& angles, int item, const T* x, To* out) {
  if (item >= heads.rotated) {
    const int at = heads.rotary_dim + (item - heads.rotated) * kVec;
    store_vec(out + at, converted<T, To, kVec>(load_vec<T, kVec>(x + at)));
    return;
  }
  const int half = heads.rotary_dim / 2, pair = item * kVec;
  const int first = heads.interleaved ? 2 * pair : pair, second = first + (heads.interleaved ? kVec : half);
  Vec<T, kVec> a = load_vec<T, kVec>(x + first), b = load_vec<T, kVec>(x + second);
  if (heads.interleaved) split_pairs(a, b);
  rotate(a, b, angles.cosines, angles.sines);
  if (heads.interleaved) join_pairs(a, b);
  store_vec(out + first, converted<T, To, kVec>(a));
  store_vec(out + second, converted<T, To, kVec>(b));
}

template <class C>
__device__ __forceinline__ C* head_in_cache(const CacheWork& work, const Heads& heads, std::int32_t slot, bool is_value,
                                            int head) {
  const std::int64_t piece = std::int64_t{heads.head_dim} << work.block_shift;
  const int in_block = slot & ((1 << work.block_shift) - 1);
  return static_cast<C*>(work.cache) +
         piece_offset(slot >> work.block_shift, is_value ? 1 : 0, head, work.num_kv_heads, piece) +
         std::int64_t{in_block} * heads.head_dim;
}

// Block x is a token, block y some of its items: q's, then k's, then v's.
template <class T, class C, int kVec>
__global__ void __launch_bounds__(kCacheThreads) cache_kernel(CacheWork work) {
  release_dependents();
  int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const std::int64_t token = blockIdx.x;
  const bool is_query = item < work.q.items;
  if (!is_query) item -= work.q.items;
  const bool is_value = !is_query && item >= work.k.items;
  if (is_value) item -= work.k.items;
  const Heads& heads = is_query ? work.q : is_value ? work.v : work.k;
  if (item >= heads.items) return wait_for_predecessors();
  const std::int32_t slot = is_query ? 0 : load_past_l1(work.slots + token);
  const int head = item / heads.items_per_head, lane = item % heads.items_per_head;
  Angles<kVec> angles{};
  if (lane < heads.rotated) angles = angles_of<kVec>(heads, token, lane * kVec);
  const T* x = heads.x.row<const T>(token) + std::int64_t{head} * heads.head_dim;
  wait_for_predecessors();
  if (is_query)
    do_item<T, T, kVec>(heads, angles, lane, x, heads.out.row<T>(token) + std::int64_t{head} * heads.head_dim);
  else if (slot >= 0)
    do_item<T, C, kVec>(heads, angles, lane, x, head_in_cache<C>(work, heads, slot, is_value, head));
}

template <class T, int kVec>
__device__ __forceinline__ float sum_squares(const Vec<T, kVec>& values) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVec; ++i) sum = fmaf(to_float(values.data[i]), to_float(values.data[i]), sum);
  return sum;
}

template <class T, int kVec>
__device__ __forceinline__ void normalise(Vec<T, kVec>& values, float scale, const Vec<float, kVec>& weight) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) values.data[i] = from_float<T>(to_float(values.data[i]) * scale * weight.data[i]);
}

struct HeadNorms {
  const float* q;
  const float* k;
  float eps;
};

// As cache_kernel, where q's and k's heads are normalised first. A head's items are neighbours in a warp, and all of
// the head is theirs: it rotates as a whole, in halves.
template <class T, class C, int kVec>
__global__ void __launch_bounds__(kCacheThreads) norm_cache_kernel(CacheWork work, HeadNorms norms) {
  release_dependents();
  int item = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const std::int64_t token = blockIdx.x;
  const bool is_query = item < work.q.items;
  if (!is_query) item -= work.q.items;
  const bool is_key = !is_query && item < work.k.items, is_value = !is_query && !is_key;
  if (is_value) item -= work.k.items;
  const Heads& heads = is_query ? work.q : is_key ? work.k : work.v;
  const int head = item / heads.items_per_head, lane = item % heads.items_per_head;
  const int first = lane * kVec, second = heads.head_dim / 2 + first;
  const T* x = heads.x.row<const T>(token) + std::int64_t{head} * heads.head_dim;
  Vec<float, kVec> first_weight{}, second_weight{};
  Angles<kVec> angles{};
  if (!is_value) {
    const float* weight = is_query ? norms.q : norms.k;
    first_weight = load_vec<float, kVec>(weight + first);
    second_weight = load_vec<float, kVec>(weight + second);
    angles = angles_of<kVec>(heads, token, first);
  }
  const std::int32_t slot = is_query || item >= heads.items ? -1 : load_past_l1(work.slots + token);
  const float inverse_dim = 1.0f / static_cast<float>(heads.head_dim);
  wait_for_predecessors();
  Vec<T, kVec> a{}, b{};
  if (!is_value) {
    a = load_vec<T, kVec>(x + first);
    b = load_vec<T, kVec>(x + second);
  }
  float squares = sum_squares(a) + sum_squares(b);
  for (int mask = work.q.items_per_head / 2; mask > 0; mask >>= 1) squares += shuffle_xor(squares, mask);
  if (!is_query && slot < 0) return;
  if (is_value) return do_item<T, C, kVec>(heads, angles, lane, x, head_in_cache<C>(work, heads, slot, true, head));
  const float scale = fast_rsqrt(fmaf(squares, inverse_dim, norms.eps));
  normalise(a, scale, first_weight);
  normalise(b, scale, second_weight);
  rotate(a, b, angles.cosines, angles.sines);
  if (is_query) {
    T* out = heads.out.row<T>(token) + std::int64_t{head} * heads.head_dim;
    store_vec(out + first, a);
    store_vec(out + second, b);
  } else {
    C* out = head_in_cache<C>(work, heads, slot, false, head);
    store_vec(out + first, converted<T, C, kVec>(a));
    store_vec(out + second, converted<T, C, kVec>(b));
  }
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

template <class... Params, class... Args>
void launch_cache(const ExecutionContext& context, void (*kernel)(CacheWork, Params...), const CacheWork& work,
                  std::int64_t tokens, const Args&... args) {
  const int items = work.q.items + work.k.items + work.v.items;
  if (items == 0 || tokens == 0) return;
  const unsigned threads = block_threads(items, kCacheThreads);
  launch(kernel, dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(divide_up(items, threads))), dim3(threads),
         0, stream_of(context), work, args...);
}

// k (rotated) and v go into the cache; q, if it has heads, into q.out.
struct CacheWrite {
  RopeParams q, k, v;
  const std::int32_t* slots;
  KvCacheView cache;

  bool moves_vectors() const {
    const bool q_does = q.x.cols == 0 || (gpu::moves_vectors(q) && has_vectors(q.out));
    return q_does && gpu::moves_vectors(k) && gpu::moves_vectors(v) && is_aligned(cache.data);
  }
  CacheWork work(int vec) const {
    CacheWork work{.q = heads_of(q, q.out, vec),
                   .k = heads_of(k, {}, vec),
                   .v = heads_of(v, {}, vec),
                   .slots = slots,
                   .cache = cache.data,
                   .num_kv_heads = cache.num_kv_heads,
                   .block_shift = 0};
    while (1 << work.block_shift < cache.block_size) ++work.block_shift;
    return work;
  }
};

// Calls fn with values of the activations' and the cache's types.
template <class Fn>
void with_types(const CacheWrite& write, Fn&& fn) {
  with_type(write.k.x.dtype,
            [&](auto element) { with_type(write.cache.dtype, [&](auto stored) { fn(element, stored); }); });
}

void write_cache(const ExecutionContext& context, const CacheWrite& write) {
  with_types(write, [&](auto element, auto stored) {
    using T = decltype(element);
    using C = decltype(stored);
    if (write.moves_vectors())
      launch_cache(context, cache_kernel<T, C, kVecOf<T>>, write.work(kVecOf<T>), write.k.x.rows);
    else
      launch_cache(context, cache_kernel<T, C, 1>, write.work(1), write.k.x.rows);
  });
}

// Whether norm_cache_kernel takes the heads.
bool takes_norms(const CacheWrite& write, const HeadNorms& norms) {
  const RopeParams &q = write.q, &k = write.k;
  const std::int64_t items = q.head_dim / 2 / (16 / size_of(q.x.dtype));
  const bool whole = q.rotary_dim == q.head_dim && k.rotary_dim == k.head_dim && q.head_dim == k.head_dim;
  return whole && !q.interleaved && !k.interleaved && write.moves_vectors() && is_aligned(norms.q) &&
         is_aligned(norms.k) && items >= 1 && items <= 32 && (items & (items - 1)) == 0;
}

constexpr int kCopyHeld = 4;

// Block y is a copy, block x some of its units: a grid is far longer along x, and a block may be large.
template <class Unit>
__global__ void __launch_bounds__(kCacheThreads)
    copy_blocks_kernel(Unit* cache, const std::int32_t* source, const std::int32_t* destination, std::int64_t units) {
  release_dependents();
  wait_for_predecessors();
  const Unit* from = cache + source[blockIdx.y] * units;
  Unit* to = cache + destination[blockIdx.y] * units;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x * kCopyHeld + threadIdx.x;
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
  const dim3 grid(static_cast<unsigned>(divide_up(units, kCacheThreads * kCopyHeld)),
                  static_cast<unsigned>(params.num_copies));
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
      launch_cache(context, cache_kernel<T, T, kVecOf<T>>, work, params.x.rows);
    else
      launch_cache(context, cache_kernel<T, T, 1>, work, params.x.rows);
  });
}

void store_kv(const ExecutionContext& context, const StoreKvParams& params) {
  const std::int32_t head_dim = params.cache.head_dim;
  write_cache(context, {no_rope({}, head_dim), no_rope(params.k, head_dim), no_rope(params.v, head_dim),
                        params.slot_mapping, params.cache});
}

void rope_store_kv(const ExecutionContext& context, const RopeStoreKvParams& params) {
  CacheWrite write{params.q, params.k, no_rope(params.v, params.cache.head_dim), params.slot_mapping, params.cache};
  if (params.q_norm == nullptr) return write_cache(context, write);
  const HeadNorms norms{params.q_norm, params.k_norm, params.norm_eps};
  if (!takes_norms(write, norms)) {
    rms_norm(context, {params.q.x, norms.q, params.q.head_dim, norms.eps, params.q.out});
    rms_norm(context, {params.k.x, norms.k, params.k.head_dim, norms.eps, params.k.x});
    write.q.x = params.q.out;
    return write_cache(context, write);
  }
  with_types(write, [&](auto element, auto stored) {
    using T = decltype(element);
    launch_cache(context, norm_cache_kernel<T, decltype(stored), kVecOf<T>>, write.work(kVecOf<T>), params.k.x.rows,
                 norms);
  });
}

void copy_blocks(const ExecutionContext& context, const CopyBlocksParams& params) {
  if (params.num_copies == 0) return;
  if (params.cache.block_bytes() % 16 == 0 && is_aligned(params.cache.data))
    launch_copy<unsigned __int128>(context, params);  // a scalar: clang keeps copies of structs in memory
  else
    launch_copy<std::uint16_t>(context, params);
}

}  // namespace paged::gpu
