// SPDX-License-Identifier: Apache-2.0
// Where HIP's runtime differs from the others in more than a prefix; for src/gpu/runtime.cuh.
#pragma once

#include <hip/hip_runtime.h>

#include <cstddef>

namespace paged::gpu {

constexpr const char* kRuntimeName = "hip";

using VendorProperties = hipDeviceProp_t;

inline int compute_capability_of(const VendorProperties&) { return 0; }
inline hipError_t allocate_pinned(void** data, std::size_t num_bytes) {
  return hipHostMalloc(data, num_bytes, hipHostMallocDefault);
}
inline hipError_t free_pinned(void* data) { return hipHostFree(data); }
inline hipError_t instantiate_graph(hipGraphExec_t* executable, hipGraph_t graph) {
  return hipGraphInstantiate(executable, graph, nullptr, nullptr, 0);
}

}  // namespace paged::gpu
