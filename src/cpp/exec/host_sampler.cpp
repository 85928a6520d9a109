// SPDX-License-Identifier: Apache-2.0
#include "exec/host_sampler.h"

#include <algorithm>
#include <utility>

namespace paged {

HostSampler::HostSampler(std::shared_ptr<ThreadPool> threads, std::int32_t vocab_size)
    : threads_(std::move(threads)),
      vocab_size_(vocab_size),
      workspace_(ops::sample_workspace_bytes(threads_->num_threads(), vocab_size)) {}

void HostSampler::copy_rows(const float* logits, std::span<const std::int32_t> rows, std::vector<float>& out) const {
  const auto vocab = static_cast<std::size_t>(vocab_size_);
  out.resize(rows.size() * vocab);
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::copy_n(logits + static_cast<std::size_t>(rows[i]) * vocab, vocab, out.data() + i * vocab);
}

void HostSampler::sample(float* logits, std::span<const SamplingRow> rows, const StepExtras* extras,
                         const float* unedited) {
  token_ids_.resize(rows.size());
  if (rows.empty()) return;
  const MatrixView view{logits, static_cast<std::int64_t>(rows.size()), vocab_size_, vocab_size_, DType::kFloat32};
  const ExecutionContext context{Device::kCpu, threads_.get(), nullptr};
  if (extras != nullptr) {
    copy_rows(logits, extras->exported, exported_);
    copy_rows(unedited != nullptr ? unedited : logits, extras->unedited, unedited_);
    ops::edit_logits(
        context, {view, extras->edited.data(), static_cast<std::int32_t>(extras->edited.size()), extras->masks.data(),
                  extras->bans.data(), extras->biases.data(), extras->counts.data(), nullptr});
  }
  ops::sample(context, {view, rows.data(), workspace_.data(), token_ids_.data(), nullptr, nullptr});
  if (extras == nullptr) return;
  scores_.resize(static_cast<std::size_t>(extras->num_scores));
  ops::score_logits(context,
                    {view, unedited_.data(), extras->scored.data(), static_cast<std::int32_t>(extras->scored.size()),
                     token_ids_.data(), workspace_.data(), scores_.data()});
}

}  // namespace paged
