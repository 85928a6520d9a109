// SPDX-License-Identifier: Apache-2.0
// Rotary embedding (Su et al., RoFormer, arXiv 2104.09864) and the write of keys and values into the cache. The fused
// op rounds a rotated key to the activations' dtype first, so that it stores what rope followed by store_kv would.
#include "cpu/isa/kernels.h"
#include "cpu/isa/rows.h"
#include "cpu/kv_layout.h"

namespace paged::cpu::PAGED_ISA_NAMESPACE {
namespace {

// x -> out, one head. cosines [rotary_dim / 2], then as many sines. out may be x.
template <typename T>
void rotate_head(const RopeParams& op, const float* cosines, const T* x, T* out) {
  const int half = op.rotary_dim / 2;
  const float* sines = cosines + half;
  if (op.interleaved) {
    for (int i = 0; i < half; ++i) {
      const float a = to_float(x[2 * i]);
      const float b = to_float(x[2 * i + 1]);
      out[2 * i] = from_float<T>(a * cosines[i] - b * sines[i]);
      out[2 * i + 1] = from_float<T>(b * cosines[i] + a * sines[i]);
    }
  } else {
    for_lanes(half, [&](std::int64_t i, int n) {
      const F32 a = load_lanes(x + i, n);
      const F32 b = load_lanes(x + half + i, n);
      const F32 c = load_lanes(cosines + i, n);
      const F32 s = load_lanes(sines + i, n);
      store_lanes(out + i, a * c - b * s, n);
      store_lanes(out + half + i, b * c + a * s, n);
    });
  }
  for (int i = op.rotary_dim; i < op.head_dim && out != x; ++i) out[i] = x[i];
}

PAGED_INLINE const float* table_row(const RopeParams& op, std::int64_t row) {
  return op.table + std::int64_t{op.positions[row]} * op.rotary_dim;
}

template <typename T, typename C>
void store_key(const T* key, C* piece, int slot, int head_dim, int block_size) {
  for (int d = 0; d < head_dim; ++d) piece[key_offset<C>(slot, d, block_size)] = from_float<C>(to_float(key[d]));
}

template <typename T, typename C>
void store_value(const T* value, C* piece, int slot, int head_dim) {
  C* to = piece + std::int64_t{slot} * head_dim;
  for_lanes(head_dim, [&](std::int64_t i, int n) { store_lanes(to + i, load_lanes(value + i, n), n); });
}

// Stores row `row` of v and the keys of `key_of_head(head)`.
template <typename T, typename C, typename KeyOfHead>
void store_row(const KvCacheView& cache, std::int32_t slot, const T* values, KeyOfHead key_of_head) {
  const std::int64_t piece = std::int64_t{cache.block_size} * cache.head_dim;
  const int in_block = slot % cache.block_size;
  C* data = static_cast<C*>(cache.data);
  for (int head = 0; head < cache.num_kv_heads; ++head) {
    C* keys = data + piece_offset(slot / cache.block_size, 0, head, cache.num_kv_heads, piece);
    C* vals = data + piece_offset(slot / cache.block_size, 1, head, cache.num_kv_heads, piece);
    store_key(key_of_head(head), keys, in_block, cache.head_dim, cache.block_size);
    store_value(values + std::int64_t{head} * cache.head_dim, vals, in_block, cache.head_dim);
  }
}

}  // namespace

void rope(const RopeParams& op, std::int64_t row_begin, std::int64_t row_end) {
  with_type(op.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (std::int64_t row = row_begin; row < row_end; ++row)
      for (std::int64_t at = 0; at < op.x.cols; at += op.head_dim)
        rotate_head(op, table_row(op, row), row_of<const T>(op.x, row) + at, row_of<T>(op.out, row) + at);
  });
}

void store_kv(const StoreKvParams& op, std::int64_t row_begin, std::int64_t row_end) {
  with_type(op.k.dtype, [&](auto tag) {
    with_type(op.cache.dtype, [&](auto cache_tag) {
      using T = decltype(tag);
      for (std::int64_t row = row_begin; row < row_end; ++row) {
        if (op.slot_mapping[row] < 0) continue;
        const T* keys = row_of<const T>(op.k, row);
        store_row<T, decltype(cache_tag)>(op.cache, op.slot_mapping[row], row_of<const T>(op.v, row),
                                          [&](int head) { return keys + std::int64_t{head} * op.cache.head_dim; });
      }
    });
  });
}

void rope_store_kv(const RopeStoreKvParams& op, std::int64_t row_begin, std::int64_t row_end) {
  rope(op.q, row_begin, row_end);
  with_type(op.k.x.dtype, [&](auto tag) {
    with_type(op.cache.dtype, [&](auto cache_tag) {
      using T = decltype(tag);
      for (std::int64_t row = row_begin; row < row_end; ++row) {
        if (op.slot_mapping[row] < 0) continue;
        T rotated[kMaxHeadDim];
        const T* keys = row_of<const T>(op.k.x, row);
        store_row<T, decltype(cache_tag)>(op.cache, op.slot_mapping[row], row_of<const T>(op.v, row), [&](int head) {
          rotate_head<T>(op.k, table_row(op.k, row), keys + std::int64_t{head} * op.k.head_dim, rotated);
          return static_cast<const T*>(rotated);
        });
      }
    });
  });
}

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
