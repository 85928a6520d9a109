// SPDX-License-Identifier: Apache-2.0
// What GPU ops share on one stream. Ops run in the stream's order, so one scratch serves them all.
#pragma once

#include <cstdint>

namespace paged {

namespace gpu {
class Blas;  // gpu/blas.h
}

struct GpuContext {
  void* stream = nullptr;
  int compute_capability = 0;  // 90 for sm_90; 0 where the vendor has none
  int num_multiprocessors = 1;
  bool batch_invariant = false;       // a GEMM's result for a row may not depend on the number of rows
  void* scratch = nullptr;            // an op may leave anything in it
  std::int64_t scratch_bytes = 0;     // kScratchBytes
  std::uint32_t* counters = nullptr;  // [kCounters] zero between ops: who counts up resets before it ends
  gpu::Blas* blas = nullptr;          // null: no library was found

  static constexpr std::int64_t kScratchBytes = 64 << 20;
  static constexpr std::int64_t kCounters = 16384;
};

}  // namespace paged
