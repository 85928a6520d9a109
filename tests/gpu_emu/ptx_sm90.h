// SPDX-License-Identifier: Apache-2.0
// The functions of src/cuda/ptx_sm90.h on the emulator, at warp 32. Tiles lie in dynamic shared memory. A TMA copy
// lands when some thread next looks at a barrier, so that a reader who does not wait shows.
#pragma once

#include "cuda/tensor_map.h"
#include "gpu/gpu.h"
#include "ops/gpu_context.h"
#include "ptx.h"

#if GPU_EMU_WARP == 32
#define PAGED_SM90A 1

namespace paged::gpu {

inline bool has_sm90(const GpuContext&) { return true; }

struct alignas(8) Barrier {
  std::int32_t bytes;  // expected and not yet landed
  std::uint16_t pending;
  std::uint16_t arrivals : 15, phase : 1;
};

namespace emulated {

struct EncodedMap {
  const std::byte* data;
  std::int32_t rank;
  std::uint32_t sizes[5];
  std::uint64_t strides[5];
  std::uint32_t box[5];
};
static_assert(sizeof(EncodedMap) <= sizeof(TensorMap));

inline void end_phase_if_complete(Barrier* barrier) {
  if (barrier->pending != 0 || barrier->bytes != 0) return;
  barrier->pending = barrier->arrivals;
  barrier->phase ^= 1;
}

inline std::vector<std::function<void()>>& copies_in_flight() {
  static thread_local std::vector<std::function<void()>> all;
  return all;
}
inline void start_copy(Barrier* barrier, int bytes, std::function<void()> copy) {
  copies_in_flight().push_back([=] {
    copy();
    barrier->bytes -= bytes;
    end_phase_if_complete(barrier);
  });
}
inline void land_copies() {
  for (const auto& copy : std::exchange(copies_in_flight(), {})) copy();
}

// The chunks of 16 bytes of a 1024-byte group change places with the row.
inline std::uintptr_t swizzled(std::uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

// Calls fn(address in the tensor or null outside it, address in shared memory) for every element of a box.
template <class Fn>
void for_box(const TensorMap& encoded, const void* tile, const int (&first)[5], Fn&& fn) {
  EncodedMap map;
  std::memcpy(&map, &encoded, sizeof(map));
  if (reinterpret_cast<std::uintptr_t>(tile) % 128 != 0) gpu_emu::stuck("TMA with an unaligned tile");
  std::int64_t count = 1;
  for (int d = 0; d < map.rank; ++d) count *= map.box[d];
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, offset = 0;
    bool inside = true;
    for (int d = 0; d < map.rank; ++d) {
      const std::int64_t at = first[d] + rest % map.box[d];
      rest /= map.box[d];
      inside = inside && at >= 0 && at < map.sizes[d];
      offset += at * static_cast<std::int64_t>(d == 0 ? 2 : map.strides[d]);
    }
    fn(inside ? map.data + offset : nullptr,
       swizzled(reinterpret_cast<std::uintptr_t>(tile) + 2 * static_cast<std::uintptr_t>(i)));
  }
}
inline int box_bytes(const TensorMap& encoded) {
  EncodedMap map;
  std::memcpy(&map, &encoded, sizeof(map));
  int bytes = 2;
  for (int d = 0; d < map.rank; ++d) bytes *= static_cast<int>(map.box[d]);
  return bytes;
}

inline void load_box(void* tile, const TensorMap* map, Barrier* barrier, int c0, int c1, int c2, int c3, int c4) {
  start_copy(barrier, box_bytes(*map), [=, map = *map] {
    for_box(map, tile, {c0, c1, c2, c3, c4}, [](const std::byte* from, std::uintptr_t to) {
      if (from != nullptr)
        std::memcpy(reinterpret_cast<void*>(to), from, 2);
      else
        std::memset(reinterpret_cast<void*>(to), 0, 2);
    });
  });
}

}  // namespace emulated

inline TensorMap make_swizzled_tensor_map(const TensorBoxes& boxes) {
  emulated::EncodedMap map{static_cast<const std::byte*>(boxes.data), boxes.rank, {}, {}, {}};
  for (int d = 0; d < boxes.rank; ++d) {
    map.sizes[d] = static_cast<std::uint32_t>(boxes.sizes[d]);
    map.strides[d] = boxes.strides[d];
    map.box[d] = boxes.box[d];
    if (boxes.box[d] == 0 || boxes.box[d] > 256) gpu_emu::stuck("a tensor map with too large a box");
    if (d > 0 && boxes.strides[d] % 16 != 0) gpu_emu::stuck("a tensor map with an unaligned stride");
  }
  if (boxes.box[0] != 64 || reinterpret_cast<std::uintptr_t>(boxes.data) % 16 != 0)
    gpu_emu::stuck("a tensor map whose rows are not 128 bytes or whose data is unaligned");
  TensorMap encoded{};
  std::memcpy(&encoded, &map, sizeof(map));
  return encoded;
}

inline void init_barrier(Barrier* barrier, int arrivals) {
  barrier->bytes = 0;
  barrier->phase = 0;
  barrier->arrivals = barrier->pending = static_cast<std::uint16_t>(arrivals);
}
inline void fence_barrier_init() {}
inline void arrive_and_expect(Barrier* barrier, int bytes) {
  barrier->bytes += bytes;
  if (barrier->pending == 0) gpu_emu::stuck("more arrivals at a barrier than it was made for");
  --barrier->pending;
  emulated::end_phase_if_complete(barrier);
}
inline void arrive(Barrier* barrier) { arrive_and_expect(barrier, 0); }
inline bool try_wait(Barrier* barrier, int parity) {
  emulated::land_copies();
  return barrier->phase != parity;
}
inline void wait(Barrier* barrier, int parity) {
  constexpr int kPatience = 200000;
  for (int i = 0; !try_wait(barrier, parity); ++i) {
    if (i == kPatience) gpu_emu::stuck("a barrier in shared memory that nobody completes");
    gpu_emu::let_others_run("wait");
  }
}
inline void spin(Barrier* barrier, int parity) { wait(barrier, parity); }
inline std::int64_t cycles() {
  static std::int64_t passed = 0;
  gpu_emu::let_others_run("cycles");
  return passed += 100;
}
inline void fence_async_proxy() {}

constexpr std::uint64_t kEvictNormal = 0, kEvictFirst = 1, kEvictLast = 2;

inline void prefetch_tensor_map(const TensorMap*) {}
inline void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t, int c0, int c1) {
  emulated::load_box(tile, map, barrier, c0, c1, 0, 0, 0);
}
inline void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t, int c0, int c1, int c2) {
  emulated::load_box(tile, map, barrier, c0, c1, c2, 0, 0);
}
inline void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t, int c0, int c1, int c2,
                     int c3) {
  emulated::load_box(tile, map, barrier, c0, c1, c2, c3, 0);
}
inline void load_box(void* tile, const TensorMap* map, Barrier* barrier, std::uint64_t, int c0, int c1, int c2, int c3,
                     int c4) {
  emulated::load_box(tile, map, barrier, c0, c1, c2, c3, c4);
}
inline void load_bulk(void* to_shared, const void* from, int bytes, Barrier* barrier, std::uint64_t) {
  emulated::start_copy(barrier, bytes, [=] { std::memcpy(to_shared, from, static_cast<std::size_t>(bytes)); });
}
inline void store_box(const TensorMap* map, const void* tile, int c0, int c1) {
  emulated::for_box(*map, tile, {c0, c1, 0, 0, 0}, [](const std::byte* to, std::uintptr_t from) {
    if (to != nullptr) std::memcpy(const_cast<std::byte*>(to), reinterpret_cast<const void*>(from), 2);
  });
}
inline void commit_stores() {}
template <int pending>
void wait_stores_read() {}

template <int registers>
void increase_registers() {}
template <int registers>
void decrease_registers() {}

inline void arrive_threads(int id, int threads) {
  gpu_emu::NamedBarrier& barrier = gpu_emu::machine().named_barriers[id];
  if (++barrier.arrived < threads) return;
  barrier.arrived = 0;
  ++barrier.generation;
}
inline void sync_threads(int id, int threads) {
  const gpu_emu::NamedBarrier& barrier = gpu_emu::machine().named_barriers[id];
  const unsigned generation = barrier.generation;
  arrive_threads(id, threads);
  while (barrier.generation == generation) gpu_emu::let_others_run("sync_threads");
}
inline bool elect_one() {
  sync_warp();
  return gpu_emu::lane() == 0;
}
inline float fast_reciprocal(float x) { return 1.0f / x; }

inline std::uint64_t k_major_descriptor(const void* tile, int group_bytes = 1024) {
  const auto offset =
      static_cast<std::uint64_t>(static_cast<const char*>(tile) - gpu_emu::machine().dynamic_shared.get());
  if (offset >= 256 * 1024) gpu_emu::stuck("a wgmma tile outside dynamic shared memory");
  return offset >> 4 | static_cast<std::uint64_t>(group_bytes >> 4) << 32;
}
inline std::uint64_t mn_major_descriptor(const void* tile, int tile_bytes, int group_bytes = 1024) {
  return k_major_descriptor(tile, group_bytes) | static_cast<std::uint64_t>(tile_bytes >> 4) << 16;
}
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int pending>
void wgmma_wait() {
  sync_warp();
}
template <int n>
void hold(float (&)[n]) {}

namespace emulated {

// Element (row, k) of a K-major tile, resp. (k, column) of an MN-major one.
template <class T>
float operand(std::uint64_t descriptor, bool mn_major, int outer, int k) {
  const auto field = [=](int bit) { return (descriptor >> bit & 0x3fff) << 4; };
  const auto row = static_cast<std::uint64_t>(mn_major ? k : outer),
             column = static_cast<std::uint64_t>(mn_major ? outer : k);
  const std::uint64_t at = field(0) + row / 8 * field(32) + row % 8 * 128 + column / 64 * field(16) + column % 64 * 2;
  T value;
  std::memcpy(&value, gpu_emu::machine().dynamic_shared.get() + swizzled(at), 2);
  return to_float(value);
}

// Adds A B to d; a(row of the warp's 16, k) gives A.
template <class T, bool transposed_b, int registers, class A>
void multiply(float (&d)[registers], A&& a, std::uint64_t desc_b, bool accumulate) {
  const int lane = gpu_emu::lane(), g = lane / 4, t = lane % 4;
  float left[2][16];
  for (int i = 0; i < 32; ++i) left[i / 16][i % 16] = a(g + 8 * (i / 16), i % 16);
  for (int i = 0; i < registers; i += 1) {
    const int column = i / 4 * 8 + 2 * t + i % 2;
    float sum = accumulate ? d[i] : 0.0f;
    for (int k = 0; k < 16; ++k) sum += left[i / 2 % 2][k] * operand<T>(desc_b, transposed_b, column, k);
    d[i] = sum;
  }
  sync_warp();
}

}  // namespace emulated

template <class T, bool transposed_b, int registers>
void wgmma(float (&d)[registers], std::uint64_t desc_a, std::uint64_t desc_b, bool accumulate) {
  const int warp_row = gpu_emu::machine().current->index / 32 % 4 * 16;
  emulated::multiply<T, transposed_b>(
      d, [&](int row, int k) { return emulated::operand<T>(desc_a, false, warp_row + row, k); }, desc_b, accumulate);
}
template <class T, bool transposed_b, int registers>
void wgmma(float (&d)[registers], const std::uint32_t (&a)[4], std::uint64_t desc_b, bool accumulate) {
  struct Fragment {
    std::uint32_t a[4];
  };
  const gpu_emu::WarpPost<Fragment> posted({{a[0], a[1], a[2], a[3]}}, "wgmma");
  const auto element = [&](int row, int k) {
    const Fragment f = posted.read(row % 8 * 4 + k % 8 / 2);
    return to_float(emulated::element<T>(f.a[row / 8 + k / 8 * 2], k % 2));
  };
  emulated::multiply<T, transposed_b>(d, element, desc_b, accumulate);
}

}  // namespace paged::gpu
#endif
