// SPDX-License-Identifier: Apache-2.0
// Which of NVIDIA's attention kernels take a shape. The matrix products choose in fast_linear.cu.
#include <initializer_list>

#include "attention_paths.h"
#include "gpu/fast_paths.h"

namespace paged::gpu {
namespace {

const FastAttention* first_that_takes(const GpuContext& gpu, const AttentionShape& shape,
                                      std::initializer_list<const FastAttention*> kernels) {
  for (const FastAttention* kernel : kernels)
    if (kernel->takes(gpu, shape)) return kernel;
  return nullptr;
}

}  // namespace

const FastAttention* fast_decode_attention(const GpuContext& gpu, const AttentionShape& shape) {
  return first_that_takes(gpu, shape, {mma_decode_attention()});
}

const FastAttention* fast_prefill_attention(const GpuContext& gpu, const AttentionShape& shape) {
  return first_that_takes(gpu, shape, {prefill_attention_sm90(), mma_prefill_attention()});
}

}  // namespace paged::gpu
