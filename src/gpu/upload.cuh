// SPDX-License-Identifier: Apache-2.0
// Weights on their way to the device: the threads fill a page-locked slot, converting where they must, while those
// filled before are copied. The slots are small: to lock 16 MB takes longer than to copy 400.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "base/check.h"
#include "cpu/gguf_blocks.h"
#include "cpu/thread_pool.h"
#include "gpu/device_matrix.h"
#include "gpu/gpu.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

constexpr int kSlots = 4;
constexpr std::int64_t kSlotBytes = 1 << 20;
constexpr std::int64_t kFillBytes = 64 << 10;  // a thread's turn

bool is_same(WeightType type, DType dtype) {
  switch (type) {
    case WeightType::kFloat32: return dtype == DType::kFloat32;
    case WeightType::kBFloat16: return dtype == DType::kBFloat16;
    case WeightType::kFloat16: return dtype == DType::kFloat16;
    default: return false;
  }
}

template <class From, class To>
void convert(const std::byte* from, std::int64_t count, To* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof(From)), sizeof(From));
    to[i] = from_float<To>(to_float(value));
  }
}

template <class To>
void convert_row(WeightType type, const std::byte* from, std::int64_t cols, To* to) {
  switch (type) {
    case WeightType::kFloat32: return convert<float>(from, cols, to);
    case WeightType::kBFloat16: return convert<BFloat16>(from, cols, to);
    case WeightType::kFloat16: return convert<Float16>(from, cols, to);
    default: break;
  }
  std::vector<float> values(static_cast<std::size_t>(cols));
  cpu::read_row(type, from, cols, values.data());
  for (std::int64_t i = 0; i < cols; ++i) to[i] = from_float<To>(values[static_cast<std::size_t>(i)]);
}

// Rows begin .. end of the matrix that the source describes.
void fill_rows(const WeightSource& source, std::int64_t source_row_bytes, DType dtype, std::int64_t begin,
               std::int64_t end, std::byte* to) {
  const auto* data = static_cast<const std::byte*>(source.data);
  const std::int64_t row_bytes = source.cols * size_of(dtype);
  const bool same = is_same(source.type, dtype);
  if (same && source.row_order == nullptr) {
    std::memcpy(to, data + begin * row_bytes, static_cast<std::size_t>((end - begin) * row_bytes));
    return;
  }
  for (std::int64_t row = begin; row < end; ++row, to += row_bytes) {
    const std::byte* from = data + (source.row_order != nullptr ? source.row_order[row] : row) * source_row_bytes;
    if (same)
      std::memcpy(to, from, static_cast<std::size_t>(row_bytes));
    else
      with_type(dtype, [&](auto element) {
        convert_row(source.type, from, source.cols, reinterpret_cast<decltype(element)*>(to));
      });
  }
}

class Uploader {
 public:
  Uploader(DeviceMatrix& matrix, ThreadPool& threads)
      : matrix_(matrix),
        threads_(threads),
        row_bytes_(matrix.cols * size_of(matrix.dtype)),
        rows_at_once_(std::clamp<std::int64_t>(kSlotBytes / row_bytes_, 1, matrix.rows)),
        staging_(kSlots * rows_at_once_ * row_bytes_) {}

  void add(const WeightSource& source) {
    const std::int64_t source_row_bytes = cpu::checked_row_bytes(source);
    const std::int64_t rows_a_turn = std::max<std::int64_t>(1, kFillBytes / row_bytes_);
    for (std::int64_t row = 0; row < source.rows; row += rows_at_once_) {
      const auto slot = static_cast<std::size_t>(num_copies_++ % kSlots);
      std::byte* to = staging_.data() + static_cast<std::int64_t>(slot) * rows_at_once_ * row_bytes_;
      copied_[slot].synchronize();
      const std::int64_t end = std::min(source.rows, row + rows_at_once_);
      threads_.parallel_for((end - row + rows_a_turn - 1) / rows_a_turn, [&](std::int64_t turn, int) {
        const std::int64_t begin = row + turn * rows_a_turn;
        fill_rows(source, source_row_bytes, matrix_.dtype, begin, std::min(end, begin + rows_a_turn),
                  to + (begin - row) * row_bytes_);
      });
      copy_to_device(matrix_.data() + row_ * row_bytes_, to, (end - row) * row_bytes_, stream_.handle());
      copied_[slot].record(stream_.handle());
      row_ += end - row;
    }
  }
  void finish() { stream_.synchronize(); }

 private:
  DeviceMatrix& matrix_;
  ThreadPool& threads_;
  const std::int64_t row_bytes_;
  const std::int64_t rows_at_once_;
  PinnedBuffer staging_;
  OwnedStream stream_;
  std::array<Event, kSlots> copied_;
  std::int64_t num_copies_ = 0;
  std::int64_t row_ = 0;  // of the matrix, the next one
};

}  // namespace

WeightMatrixPtr upload_matrix(std::span<const WeightSource> sources, DType dtype, ThreadPool& threads) {
  PAGED_CHECK(!sources.empty(), "weights: nothing to upload");
  std::int64_t rows = 0;
  for (const WeightSource& source : sources) {
    PAGED_CHECK(source.cols == sources[0].cols, "weights: stacked matrices of ", sources[0].cols, " and of ",
                source.cols, " columns");
    static_cast<void>(cpu::checked_row_bytes(source));
    rows += source.rows;
  }
  auto matrix = std::make_unique<DeviceMatrix>(rows, sources[0].cols, dtype);
  Uploader uploader(*matrix, threads);
  for (const WeightSource& source : sources) uploader.add(source);
  uploader.finish();
  return matrix;
}

}  // namespace paged::gpu
