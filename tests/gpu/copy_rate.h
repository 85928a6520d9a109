// SPDX-License-Identifier: Apache-2.0
// The limit that benchmarks of memory-bound kernels compare with: what a copy kernel with 16-byte accesses reaches,
// bytes read and written. (The runtime's own copy between two places of a device reaches less: 2,430 of 3,000 GB/s on
// an H100.)
#pragma once

#include <algorithm>
#include <vector>

#include "gpu_test.h"

namespace paged::test {

// Bytes a second.
inline double copy_rate(Gpu& gpu) {
  const KvCacheView cache{nullptr, 2, 256, 2048, 512, DType::kBFloat16};  // two blocks of 1 GiB
  const gpu::DeviceBuffer data(2 * cache.block_bytes());
  KvCacheView view = cache;
  view.data = data.data();
  gpu::fill_zero(data.data(), data.num_bytes(), gpu.gpu.stream);
  const OnDevice source(gpu, std::vector<std::int32_t>{0}), destination(gpu, std::vector<std::int32_t>{1});
  std::vector<double> seconds;
  for (int i = 0; i < 9; ++i) {
    gpu::Event start(true), end(true);
    start.record(gpu.gpu.stream);
    ops::copy_blocks(gpu.context(), {view, source.as<std::int32_t>(), destination.as<std::int32_t>(), 1});
    end.record(gpu.gpu.stream);
    end.synchronize();
    seconds.push_back(end.seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return 2.0 * static_cast<double>(cache.block_bytes()) / seconds[seconds.size() / 2];
}

}  // namespace paged::test
