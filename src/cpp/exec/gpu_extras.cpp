// SPDX-License-Identifier: Apache-2.0
#include "exec/gpu_extras.h"

#include <algorithm>
#include <cstring>

namespace paged {
namespace {

constexpr std::int64_t kExtrasAlignment = 16;

template <class T>
std::int64_t after(std::int64_t offset, std::span<const T> values) {
  return (offset + static_cast<std::int64_t>(values.size_bytes()) + kExtrasAlignment - 1) / kExtrasAlignment *
         kExtrasAlignment;
}

// Half as much again, so that growing tokens do not grow it often.
template <class Buffer>
void reserve(Buffer& buffer, std::int64_t num_bytes) {
  if (buffer.num_bytes() >= num_bytes) return;
  buffer = Buffer();  // first gives back
  buffer = Buffer(num_bytes + num_bytes / 2);
}

// A step in flight uses the old one.
void reserve_on_device(const ExecutionContext& context, gpu::DeviceBuffer& buffer, std::int64_t num_bytes) {
  if (buffer.num_bytes() >= num_bytes) return;
  gpu::synchronize(context.gpu->stream);
  reserve(buffer, num_bytes);
}

}  // namespace

GpuExtras::Layout::Layout(const StepExtras& extras) {
  edited = 0;
  masks = after(edited, extras.edited);
  bans = after(masks, extras.masks);
  biases = after(bans, extras.bans);
  counts = after(biases, extras.biases);
  scored = after(counts, extras.counts);
  unedited = after(scored, extras.scored);
  num_bytes = after(unedited, extras.unedited);
}

void GpuExtras::stage(const ExecutionContext& context, const Step& step, const Layout& layout) {
  gpu::PinnedBuffer& staging = slots_[static_cast<std::size_t>(step.slot)].staging;
  reserve(staging, layout.num_bytes);
  reserve_on_device(context, inputs_, layout.num_bytes);
  const auto put = [&](std::int64_t offset, const auto& values) {
    if (!values.empty()) std::memcpy(staging.data() + offset, values.data(), values.size_bytes());
  };
  put(layout.edited, step.extras->edited);
  put(layout.masks, step.extras->masks);
  put(layout.bans, step.extras->bans);
  put(layout.biases, step.extras->biases);
  put(layout.counts, step.extras->counts);
  put(layout.scored, step.extras->scored);
  put(layout.unedited, step.extras->unedited);
  gpu::copy_to_device(inputs_.data(), staging.data(), layout.num_bytes, context.gpu->stream);
}

void GpuExtras::export_rows(const ExecutionContext& context, const Step& step) {
  Slot& slot = slots_[static_cast<std::size_t>(step.slot)];
  const std::int64_t vocab = step.logits.cols, row_bytes = vocab * std::int64_t{sizeof(float)};
  const auto& rows = step.extras->exported;
  slot.num_exported = std::ssize(rows) * vocab;
  reserve(slot.exported, std::ssize(rows) * row_bytes);
  const auto* logits = static_cast<const float*>(step.logits.data);
  for (std::int64_t i = 0; i < std::ssize(rows); ++i)
    gpu::copy_to_host(slot.exported.data() + i * row_bytes,
                      logits + rows[static_cast<std::size_t>(i)] * step.logits.row_stride, row_bytes,
                      context.gpu->stream);
}

void GpuExtras::enqueue_before(const ExecutionContext& context, const Step& step) {
  export_rows(context, step);
  const StepExtras& extras = *step.extras;
  const Layout layout(extras);
  if (layout.num_bytes == 0) return;
  stage(context, step, layout);
  const std::byte* at = inputs_.data();
  const std::int64_t vocab = step.logits.cols, num_copies = std::ssize(extras.unedited);
  if (num_copies > 0) {
    reserve_on_device(context, unedited_, num_copies * vocab * std::int64_t{sizeof(float)});
    ops::gather_rows(context, {step.logits,
                               reinterpret_cast<const std::int32_t*>(at + layout.unedited),
                               {unedited_.data(), num_copies, vocab, vocab, DType::kFloat32}});
  }
  ops::edit_logits(
      context,
      {step.logits, reinterpret_cast<const EditedRow*>(at + layout.edited),
       static_cast<std::int32_t>(extras.edited.size()), reinterpret_cast<const std::uint32_t*>(at + layout.masks),
       reinterpret_cast<const LogitBan*>(at + layout.bans), reinterpret_cast<const LogitBias*>(at + layout.biases),
       reinterpret_cast<const TokenCount*>(at + layout.counts), step.last_tokens});
}

void GpuExtras::enqueue_after(const ExecutionContext& context, const Step& step) {
  Slot& slot = slots_[static_cast<std::size_t>(step.slot)];
  const StepExtras& extras = *step.extras;
  slot.num_scores = extras.num_scores;
  if (extras.scored.empty()) return;
  const std::int64_t bytes = extras.num_scores * std::int64_t{sizeof(ScoredToken)};
  reserve(slot.scores, bytes);
  reserve_on_device(context, scores_, bytes);
  const Layout layout(extras);
  ops::score_logits(context, {step.logits, reinterpret_cast<const float*>(unedited_.data()),
                              reinterpret_cast<const ScoredRow*>(inputs_.data() + layout.scored),
                              static_cast<std::int32_t>(extras.scored.size()), step.sampled, nullptr,
                              reinterpret_cast<ScoredToken*>(scores_.data())});
  gpu::copy_to_host(slot.scores.data(), scores_.data(), bytes, context.gpu->stream);
}

ExtraOutputs GpuExtras::outputs(int slot) const {
  const Slot& of = slots_[static_cast<std::size_t>(slot)];
  return {{reinterpret_cast<const ScoredToken*>(of.scores.data()), static_cast<std::size_t>(of.num_scores)},
          {reinterpret_cast<const float*>(of.exported.data()), static_cast<std::size_t>(of.num_exported)}};
}

}  // namespace paged
