// SPDX-License-Identifier: Apache-2.0
// What a product loads ahead of the wait for the kernel before it: a ring of weights on every multiprocessor, together
// what the memory gives in ten microseconds. All asked for at once they would stand in the way of what that kernel,
// often a norm of few rows, still has to read, and it would take 7 µs for 2.5. So they are asked for at an even pace.
#pragma once

#include <ptx_sm90.h>

namespace paged::gpu {

// Of a multiprocessor, for 1,024 bytes. Measured on H100: at 80, which is what its memory gives to each, a ring that is
// begun late is full too late, and one stream of a 1B model 4 % slower.
constexpr int kPaceCycles = 50;

// By a whole warp: load(0) to load(count - 1), one every `pace` cycles; 0: all at once.
template <class Load>
__device__ __forceinline__ void load_ahead(int count, int pace, const Load& load) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (pace == 0) {
    for (int i = lane; i < count; i += 32) load(i);
  } else if (lane == 0) {
    const std::int64_t begin = cycles();
    for (int i = 0; i < count; ++i) {
      while (cycles() - begin < std::int64_t{i} * pace) {
      }
      load(i);
    }
  }
  sync_warp();
}

}  // namespace paged::gpu
