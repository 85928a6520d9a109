// SPDX-License-Identifier: Apache-2.0
// Rotary embedding (Su et al., RoFormer, arXiv 2104.09864) and the write of keys and values into the cache. The fused
// op rounds a rotated key to the activations' dtype first, so that it stores what rope followed by store_kv would.
#include <type_traits>

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
  int d = 0;
  if constexpr (std::is_same_v<T, C> && kKeyGroup<C> == 2)
    for (; d + 2 <= head_dim; d += 2)
      __builtin_memcpy(piece + key_offset<C>(slot, d, block_size), key + d, 2 * sizeof(C));
  for (; d < head_dim; ++d) piece[key_offset<C>(slot, d, block_size)] = from_float<C>(to_float(key[d]));
}

template <typename T, typename C>
void store_value(const T* value, C* piece, int slot, int head_dim) {
  C* to = piece + std::int64_t{slot} * head_dim;
  for_lanes(head_dim, [&](std::int64_t i, int n) { store_lanes(to + i, load_lanes(value + i, n), n); });
}

// `count` elements as codes in [-127, 127], rounded to nearest even; returns their scale: NaN if a NaN or an infinity
// is among them. `codes` has room for count rounded up to 16. The same bits on every instruction set.
template <typename T>
float quantise_part(const T* x, int count, std::int8_t* codes) {
  constexpr float kSmallest = 1e-30f;  // whose reciprocal is far from infinity; less counts as zero
  F32 magnitude = zero(), not_finite = zero();
  for_lanes(count, [&](std::int64_t i, int n) {
    const F32 lanes = load_lanes(x + i, n);
    magnitude = max(magnitude, max(lanes, zero() - lanes));
    not_finite = not_finite + (lanes - lanes);  // max may lose a NaN
  });
  const float largest = reduce_max(magnitude) + reduce_add(not_finite);
  if (!(largest >= kSmallest)) {
    __builtin_memset(codes, 0, static_cast<unsigned>(count));
    return largest < kSmallest ? 0.0f : largest;
  }
  const F32 inverse = set1(127.0f / largest);
  for_lanes(count,
            [&](std::int64_t i, int n) { store_bytes(codes + i, round_to_int(load_lanes(x + i, n) * inverse)); });
  return largest * (1.0f / 127.0f);
}

template <typename T, typename C>
void store_head(const KvCacheView& cache, int slot, const T* row, std::byte* piece, bool is_value) {
  C* to = elements_of<C>(cache, piece, is_value);
  if constexpr (kScaled<C>) {
    alignas(64) std::int8_t codes[kMaxHeadDim];
    const int part = is_value ? cache.head_dim : kKeyScaleGroup;
    for (int d = 0; d < cache.head_dim; d += part) {
      const int count = part < cache.head_dim - d ? part : cache.head_dim - d;
      store_scale(piece, d / part * cache.block_size + slot, quantise_part(row + d, count, codes + d));
    }
    for (int d = 0; d < cache.head_dim; ++d)
      to[is_value ? std::int64_t{slot} * cache.head_dim + d : key_offset<C>(slot, d, cache.block_size)] = codes[d];
  } else if (is_value) {
    store_value(row, to, slot, cache.head_dim);
  } else {
    store_key(row, to, slot, cache.head_dim, cache.block_size);
  }
}

// Stores row `row` of v and the keys of `key_of_head(head)`.
template <typename T, typename C, typename KeyOfHead>
void store_row(const KvCacheView& cache, std::int32_t slot, const T* values, KeyOfHead key_of_head) {
  const int in_block = slot % cache.block_size;
  const std::int64_t block = slot / cache.block_size;
  for (int head = 0; head < cache.num_kv_heads; ++head) {
    store_head<T, C>(cache, in_block, key_of_head(head), piece_at<C>(cache, block, 0, head), false);
    store_head<T, C>(cache, in_block, values + std::int64_t{head} * cache.head_dim, piece_at<C>(cache, block, 1, head),
                     true);
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
    with_cache_type(op.cache.dtype, [&](auto cache_tag) {
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
    with_cache_type(op.cache.dtype, [&](auto cache_tag) {
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
