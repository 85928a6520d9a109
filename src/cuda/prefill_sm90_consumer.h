// SPDX-License-Identifier: Apache-2.0
// The warp groups that compute prefill attention: 64 rows each. The scores of the next tile of keys and the values of
// the last one are in the tensor cores while the softmax between them is computed.
#pragma once

#include <algorithm>

#include "prefill_sm90.h"

namespace paged::gpu::prefill_sm90 {

constexpr float kMinusInfinity = -INFINITY;
constexpr float kLog2E = 1.4426950408889634f;

// A thread's two rows, r and r + 8 of its warp group.
struct RowState {
  float max[2];  // of the scores seen so far, in units of log2
  float sum[2];  // of 2^(score - max), this thread's columns
  int last_key[2];
  int first_key[2];

  __device__ __forceinline__ void restart() {
    max[0] = max[1] = kMinusInfinity;
    sum[0] = sum[1] = 0.0f;
  }
};

__device__ __forceinline__ void mask_scores(float* s, int num_scores, const RowState& rows, int first_key) {
  const int column = first_key + static_cast<int>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int i = 0; i < num_scores; ++i) {
    const int key = column + i / 4 * 8 + i % 2, row = i / 2 % 2;
    if (key > rows.last_key[row] || key < rows.first_key[row]) s[i] = kMinusInfinity;
  }
}

// s becomes 2^(s - max), with the new maximum; what was summed up before is to be multiplied by `rescale`.
template <bool with_softcap, int n>
__device__ __forceinline__ void softmax_step(float (&s)[n], RowState& rows, float (&rescale)[2], const Arguments& a) {
  const float scale = with_softcap ? 1.0f : a.scale;
  if constexpr (with_softcap) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      // tanh(x) = 1 - 2 / (e^2x + 1); minus infinity is a masked score and stays
      const float tanh = 1.0f - 2.0f * fast_reciprocal(fast_exp2(s[i] * a.scale) + 1.0f);
      s[i] = s[i] == kMinusInfinity ? s[i] : a.softcap * tanh;
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float top = s[2 * row];
#pragma unroll
    for (int i = 2 * row; i < n; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    const float max = fmaxf(rows.max[row], top * scale);
    const float base = max == kMinusInfinity ? 0.0f : max;
    rescale[row] = fast_exp2(rows.max[row] - base);  // exactly 1 where the maximum stays
    rows.max[row] = max;
    float sum = 0.0f;
#pragma unroll
    for (int i = 2 * row; i < n; i += 4) {
      s[i] = fast_exp2(fmaf(s[i], scale, -base));
      s[i + 1] = fast_exp2(fmaf(s[i + 1], scale, -base));
      sum += s[i] + s[i + 1];
    }
    rows.sum[row] = rows.sum[row] * rescale[row] + sum;
  }
}

// Scores as the next product's left side.
template <class T, int n>
__device__ __forceinline__ void pack_scores(std::uint32_t (&p)[n / 8][4], const float (&s)[n]) {
#pragma unroll
  for (int i = 0; i < n / 2; ++i) p[i / 4][i % 4] = pack_pair<T>(s[2 * i], s[2 * i + 1]);
}

template <class T, class Tl, bool with_softcap>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(Shared<Tl>& shared, const Arguments& a)
      : shared_(shared), a_(a), group_index_(shuffle(static_cast<int>(threadIdx.x) / kGroupThreads - 1, 0)) {}

  __device__ __forceinline__ void run() {
    while (true) {
      wait(&shared_.q_full[q_.stage], q_.parity);
      const Work work = shared_.work[q_.stage];
      sync_warp();
      if (work.tile.num_tokens == 0) return;
      if (64 * group_index_ >= work.tile.num_tokens * a_.group) {
        skip(work);
        continue;
      }
      float o[Tl::kHeadDim / 2];
      RowState rows = first_state(work);
      attend(work, rows, o);
      if (work.num_chunks > 1 && !join_chunks(work, rows, o)) continue;
      finish(work, rows, o);
      store(work, o);
    }
  }

 private:
  static constexpr int kScores = Tl::kKeys / 2;

  __device__ __forceinline__ int first_row() const {
    const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
    return 64 * group_index_ + thread / 32 * 16 + thread % 32 / 4;
  }

  __device__ __forceinline__ RowState first_state(const Work& work) const {
    RowState rows;
    rows.restart();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows.last_key[i] = work.tile.first_position + (first_row() + 8 * i) / a_.group;
      rows.first_key[i] = a_.window > 0 ? rows.last_key[i] - a_.window + 1 : 0;
    }
    return rows;
  }

  __device__ __forceinline__ void release(Barrier* barrier) const {
    if (threadIdx.x % 32 == 0) arrive(barrier);
  }

  __device__ __forceinline__ void start_scores(float (&s)[kScores]) const {
    const std::uint64_t q = k_major_descriptor(shared_.q[q_.stage] + group_index_ * 64 * kRowBytes);
    const std::uint64_t k = k_major_descriptor(shared_.k[k_.stage], Tl::kKeyGroupBytes);
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 16; ++i)
      wgmma<T, false>(s, q + i / 4 * (Tl::kQTileBytes / 16) + i % 4 * 2,
                      k + i / 4 * (Tl::kColumnBytes / 16) + i % 4 * 2, i != 0);
    wgmma_commit();
  }

  __device__ __forceinline__ void start_values(float (&o)[Tl::kHeadDim / 2],
                                               const std::uint32_t (&p)[kScores / 8][4]) const {
    const std::uint64_t v = mn_major_descriptor(shared_.v[v_.stage], Tl::kColumnBytes, Tl::kKeyGroupBytes);
#pragma unroll
    for (int i = 0; i < Tl::kKeys / 16; ++i) wgmma<T, true>(o, p[i], v + i * (2 * Tl::kKeyGroupBytes / 16), true);
    wgmma_commit();
  }

  // Tiles that all 64 rows see all of.
  struct Unmasked {
    int first, last;
  };
  __device__ __forceinline__ Unmasked unmasked_tiles(const Work& work) const {
    const int first = work.tile.first_position + 64 * group_index_ / a_.group;
    const int last = work.tile.first_position + (64 * group_index_ + 63) / a_.group;
    return {a_.window > 0 ? (std::max(last - a_.window + 1, 0) + Tl::kKeys - 1) / Tl::kKeys : 0,
            (first + 1) / Tl::kKeys - 1};
  }

  __device__ __forceinline__ void weigh(float (&s)[kScores], RowState& rows, float (&rescale)[2], int tile,
                                        const Unmasked& unmasked) const {
    if (tile < unmasked.first || tile > unmasked.last) mask_scores(s, kScores, rows, tile * Tl::kKeys);
    softmax_step<with_softcap>(s, rows, rescale, a_);
  }

  // The scores of a tile, and meanwhile p, the weights of the one before, times its values.
  template <bool new_chunk>
  __device__ __forceinline__ void step(std::uint32_t (&p)[kScores / 8][4], float (&o)[Tl::kHeadDim / 2], RowState& rows,
                                       int tile, const Unmasked& unmasked, bool is_aside) {
    float s[kScores], rescale[2];
    wait(&shared_.k_full[k_.stage], k_.parity);
    wgmma_fence();
    start_scores(s);
    wait(&shared_.v_full[v_.stage], v_.parity);
    wgmma_fence();
    start_values(o, p);
    wgmma_wait<1>();
    hold(s);
    release(&shared_.k_empty[k_.stage]);
    k_.advance();
    const RowState done = rows;
    if constexpr (new_chunk) rows.restart();
    weigh(s, rows, rescale, tile, unmasked);
    wgmma_wait<0>();
    hold(o);
    release(&shared_.v_empty[v_.stage]);
    v_.advance();
    pack_scores<T>(p, s);
    if constexpr (new_chunk) set_aside(done, o, is_aside);
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
  }

  __device__ __forceinline__ void attend(const Work& work, RowState& rows, float (&o)[Tl::kHeadDim / 2]) {
    const Unmasked unmasked = unmasked_tiles(work);
    float s[kScores], rescale[2];
    std::uint32_t p[kScores / 8][4];
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i) o[i] = 0.0f;

    wait(&shared_.k_full[k_.stage], k_.parity);
    wgmma_fence();
    start_scores(s);
    wgmma_wait<0>();
    hold(s);
    release(&shared_.k_empty[k_.stage]);
    k_.advance();
    weigh(s, rows, rescale, work.last_tile, unmasked);
    pack_scores<T>(p, s);

    bool is_aside = false;
    for (int tile = work.last_tile - 1; tile >= work.first_tile; --tile) {
      if ((tile + 1) % Tl::kChunkTiles != 0) {
        step<false>(p, o, rows, tile, unmasked, false);
      } else {
        step<true>(p, o, rows, tile, unmasked, is_aside);
        is_aside = true;
      }
    }
    release(&shared_.q_empty[q_.stage]);
    q_.advance();

    wait(&shared_.v_full[v_.stage], v_.parity);
    wgmma_fence();
    start_values(o, p);
    wgmma_wait<0>();
    hold(o);
    release(&shared_.v_empty[v_.stage]);
    v_.advance();
    if (is_aside) fold<true>(slot(static_cast<int>(blockIdx.x)), rows, o);
  }

  // This thread's part of a slot; consecutive values are kGroupThreads floats apart.
  __device__ __forceinline__ float* slot(int index) const {
    constexpr int kFloats = slot_floats(Tl::kHeadDim);
    return a_.slots + std::int64_t{index} * kFloats + group_index_ * (kFloats / Tl::kConsumers) +
           threadIdx.x % kGroupThreads;
  }

  __device__ __forceinline__ void save(float* to, const RowState& rows, const float (&o)[Tl::kHeadDim / 2]) const {
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i) to[kGroupThreads * i] = o[i];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      to[kGroupThreads * (Tl::kHeadDim / 2 + i)] = rows.max[i];
      to[kGroupThreads * (Tl::kHeadDim / 2 + 2 + i)] = rows.sum[i];
    }
  }

  // Folds two results: the one of the later keys is saved_first ? the saved one : rows and o, where the result goes.
  template <bool saved_first>
  __device__ __forceinline__ void fold(const float* saved, RowState& rows, float (&o)[Tl::kHeadDim / 2]) const {
    const auto join = [](float mine, float my_scale, float other, float other_scale) {
      return saved_first ? fmaf(other, other_scale, mine * my_scale) : fmaf(mine, my_scale, other * other_scale);
    };
    float scale[2], saved_scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float saved_max = saved[kGroupThreads * (Tl::kHeadDim / 2 + i)], max = fmaxf(saved_max, rows.max[i]);
      const float base = max == kMinusInfinity ? 0.0f : max;
      scale[i] = fast_exp2(rows.max[i] - base);
      saved_scale[i] = fast_exp2(saved_max - base);
      rows.max[i] = max;
      rows.sum[i] = join(rows.sum[i], scale[i], saved[kGroupThreads * (Tl::kHeadDim / 2 + 2 + i)], saved_scale[i]);
    }
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i)
      o[i] = join(o[i], scale[i / 2 % 2], saved[kGroupThreads * i], saved_scale[i / 2 % 2]);
  }

  // Folds a finished chunk into those that this CTA set aside before.
  __device__ __forceinline__ void set_aside(RowState rows, float (&o)[Tl::kHeadDim / 2], bool is_aside) const {
    float* aside = slot(static_cast<int>(blockIdx.x));
    if (is_aside) fold<true>(aside, rows, o);
    save(aside, rows, o);
  }

  // A pair that several CTAs share: each saves its chunk, the last to do so goes on with all of them folded.
  __device__ __forceinline__ bool join_chunks(const Work& work, RowState& rows, float (&o)[Tl::kHeadDim / 2]) const {
    const int first_slot = work.pair * a_.plan->chunks_per_pair;
    save(slot(first_slot + work.chunk), rows, o);
    thread_fence();
    sync_threads(1 + group_index_, kGroupThreads);
    if (threadIdx.x % kGroupThreads == 0) {
      std::uint32_t* arrivals = a_.counters + 1 + Tl::kConsumers * work.pair + group_index_;
      const bool is_last = atomic_add(arrivals, 1u) == static_cast<std::uint32_t>(work.num_chunks) - 1;
      if (is_last) *arrivals = 0;
      shared_.is_last[group_index_] = is_last;
      thread_fence();
    }
    sync_threads(1 + group_index_, kGroupThreads);
    if (!shared_.is_last[group_index_]) return false;
    thread_fence();
    rows.restart();
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i) o[i] = 0.0f;
    for (int chunk = work.num_chunks - 1; chunk >= 0; --chunk) fold<false>(slot(first_slot + chunk), rows, o);
    return true;
  }

  // The tile has too few rows for this group: hands back what it is not going to read.
  __device__ __forceinline__ void skip(const Work& work) {
    for (int tile = work.last_tile; tile >= work.first_tile; --tile) {
      wait(&shared_.k_full[k_.stage], k_.parity);
      release(&shared_.k_empty[k_.stage]);
      k_.advance();
      wait(&shared_.v_full[v_.stage], v_.parity);
      release(&shared_.v_empty[v_.stage]);
      v_.advance();
    }
    release(&shared_.q_empty[q_.stage]);
    q_.advance();
  }

  // Divides by the softmax's sum.
  __device__ __forceinline__ void finish(const Work& work, const RowState& rows, float (&o)[Tl::kHeadDim / 2]) const {
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = rows.sum[i] + shuffle_xor(rows.sum[i], 1);
      sum += shuffle_xor(sum, 2);
      if (a_.sinks != nullptr) {
        const float sink = a_.sinks[work.kv_head * a_.group + (first_row() + 8 * i) % a_.group];
        sum += fast_exp2(sink * kLog2E - rows.max[i]);
      }
      inverse[i] = 1.0f / sum;
    }
    // The addition makes a zero positive, whichever masked tiles left it.
#pragma unroll
    for (int i = 0; i < Tl::kHeadDim / 2; ++i) o[i] = fmaf(o[i], inverse[i / 2 % 2], 0.0f);
  }

  // Four lanes hold a row in pairs of columns; they exchange them so that each stores 16 bytes.
  __device__ __forceinline__ void store(const Work& work, const float (&o)[Tl::kHeadDim / 2]) const {
    const int t = static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row() + 8 * i, token = row / a_.group, head = work.kv_head * a_.group + row % a_.group;
      T* to = static_cast<T*>(a_.out) + (std::int64_t{work.tile.first_token} + token) * a_.out_stride +
              std::int64_t{head} * Tl::kHeadDim + 8 * t;
#pragma unroll
      for (int j = 0; j < Tl::kHeadDim / 32; ++j) {
        Vec<std::uint32_t, 4> w;
#pragma unroll
        for (int c = 0; c < 4; ++c) w.data[c] = pack_pair<T>(o[16 * j + 4 * c + 2 * i], o[16 * j + 4 * c + 2 * i + 1]);
        transpose(w);
        if (token < work.tile.num_tokens) store_vec(reinterpret_cast<std::uint32_t*>(to + 32 * j), w);
      }
    }
  }

  // Lane t of four gets what all of them have in data[t].
  __device__ __forceinline__ static void transpose(Vec<std::uint32_t, 4>& w) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      const bool upper = (threadIdx.x & static_cast<unsigned>(step)) != 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if ((c & step) != 0) continue;
        const std::uint32_t low = w.data[c], high = w.data[c + step];
        const std::uint32_t other = shuffle_xor(upper ? low : high, step);
        w.data[c] = upper ? other : low;
        w.data[c + step] = upper ? high : other;
      }
    }
  }

  Shared<Tl>& shared_;
  const Arguments& a_;
  const int group_index_;
  RingPosition<Tl::kQStages> q_;
  RingPosition<Tl::kStages> k_, v_;
};

}  // namespace paged::gpu::prefill_sm90
