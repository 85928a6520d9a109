// SPDX-License-Identifier: Apache-2.0
#include "exec/host_sampler.h"

#include <utility>

namespace paged {

HostSampler::HostSampler(std::shared_ptr<ThreadPool> threads, std::int32_t vocab_size)
    : threads_(std::move(threads)),
      vocab_size_(vocab_size),
      workspace_(ops::sample_workspace_bytes(threads_->num_threads(), vocab_size)) {}

void HostSampler::sample(const float* logits, std::span<const SamplingRow> rows) {
  token_ids_.resize(rows.size());
  if (rows.empty()) return;
  const MatrixView view{const_cast<float*>(logits), static_cast<std::int64_t>(rows.size()), vocab_size_, vocab_size_,
                        DType::kFloat32};
  ops::sample({Device::kCpu, threads_.get(), nullptr},
              {view, rows.data(), workspace_.data(), token_ids_.data(), nullptr, nullptr});
}

}  // namespace paged
