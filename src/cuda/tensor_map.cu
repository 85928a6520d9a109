// SPDX-License-Identifier: Apache-2.0
// Tensor maps are encoded by the driver; it is found through the runtime, so that nothing links against libcuda.
#include <cuda.h>

#include <cstring>

#include "base/check.h"
#include "gpu/gpu.h"
#include "tensor_map.h"

namespace paged::gpu {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "finding cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) throw DeviceError("the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

TensorMap make_swizzled_tensor_map(const TensorBoxes& boxes) {
  static const Encode encode = find_encode();
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap));
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  cuuint64_t sizes[5], strides[5];
  for (int i = 0; i < boxes.rank; ++i) sizes[i] = boxes.sizes[i];
  for (int i = 1; i < boxes.rank; ++i) strides[i - 1] = boxes.strides[i];
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, static_cast<cuuint32_t>(boxes.rank), const_cast<void*>(boxes.data),
             sizes, strides, boxes.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  PAGED_INVARIANT(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", static_cast<int>(result));
  TensorMap copy;
  std::memcpy(&copy, &map, sizeof(copy));
  return copy;
}

}  // namespace paged::gpu
