// SPDX-License-Identifier: Apache-2.0
// Where CUDA's runtime differs from the others in more than a prefix; for src/gpu/runtime.cuh.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace paged::gpu {

constexpr const char* kRuntimeName = "cuda";

using VendorProperties = cudaDeviceProp;

inline int compute_capability_of(const VendorProperties& device) { return 10 * device.major + device.minor; }
inline cudaError_t allocate_pinned(void** data, std::size_t num_bytes) {
  return cudaHostAlloc(data, num_bytes, cudaHostAllocDefault);
}
inline cudaError_t free_pinned(void* data) { return cudaFreeHost(data); }
inline cudaError_t instantiate_graph(cudaGraphExec_t* executable, cudaGraph_t graph) {
  return cudaGraphInstantiate(executable, graph, 0);
}

}  // namespace paged::gpu
