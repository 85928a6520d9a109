// SPDX-License-Identifier: Apache-2.0
// The functions of src/cuda/ptx.h on the emulator, at warp 32. An asynchronous copy lands when it is waited for, so
// that reading too early shows.
#pragma once

#include "gpu/gpu.h"

#if GPU_EMU_WARP == 32
namespace paged::gpu {

namespace emulated {

struct PendingCopy {
  void* to;
  const void* from;  // null: zeros
};
// Of each fiber: groups of copies in flight, the oldest first; the last one is still open.
inline std::vector<std::vector<PendingCopy>>& copies() {
  static thread_local std::vector<std::vector<std::vector<PendingCopy>>> all;
  const auto index = static_cast<std::size_t>(gpu_emu::machine().current->index);
  if (all.size() <= index) all.resize(index + 1);
  if (all[index].empty()) all[index].emplace_back();
  return all[index];
}

template <class T>
T element(std::uint32_t pair, int which) {
  return {static_cast<std::uint16_t>(which == 0 ? pair & 0xffff : pair >> 16)};
}

}  // namespace emulated

inline void copy_async_16(void* to_shared, const void* from, bool valid = true) {
  if (reinterpret_cast<std::uintptr_t>(to_shared) % 16 != 0 || (valid && reinterpret_cast<std::uintptr_t>(from) % 16))
    gpu_emu::stuck("copy_async_16 of an unaligned address");
  emulated::copies().back().push_back({to_shared, valid ? from : nullptr});
}
inline void commit_copies() { emulated::copies().emplace_back(); }
template <int pending>
void wait_copies() {
  auto& groups = emulated::copies();
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const emulated::PendingCopy& copy : groups.front()) {
      if (copy.from != nullptr)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

namespace emulated {

inline void load_matrices(std::uint32_t (&r)[4], const void* row, bool transposed) {
  const gpu_emu::WarpPost<const void*> rows(row, "load_matrices");
  const int g = gpu_emu::lane() / 4, t = gpu_emu::lane() % 4;
  for (int m = 0; m < 4; ++m) {
    const auto at = [&](int i, int j) { return static_cast<const std::uint16_t*>(rows.read(8 * m + i))[j]; };
    const std::uint32_t low = transposed ? at(2 * t, g) : at(g, 2 * t);
    const std::uint32_t high = transposed ? at(2 * t + 1, g) : at(g, 2 * t + 1);
    r[m] = low | high << 16;
  }
  sync_warp();
}

}  // namespace emulated

inline void load_matrices(std::uint32_t (&r)[4], const void* row) { emulated::load_matrices(r, row, false); }
inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) { emulated::load_matrices(r, row, true); }

template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  };
  Fragments mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const gpu_emu::WarpPost<Fragments> posted(mine, "mma_16x8x16");
  const int lane = gpu_emu::lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), col = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      const Fragments fa = posted.read(row % 8 * 4 + k % 8 / 2), fb = posted.read(col * 4 + k % 8 / 2);
      c[i] += to_float(emulated::element<T>(fa.a[row / 8 + 2 * (k / 8)], k % 2)) *
              to_float(emulated::element<T>(fb.b[k / 8], k % 2));
    }
  }
  sync_warp();
}

template <class T>
std::uint32_t pack_pair(float first, float second) {
  return from_float<T>(first).bits | static_cast<std::uint32_t>(from_float<T>(second).bits) << 16;
}

}  // namespace paged::gpu
#endif
