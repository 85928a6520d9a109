// SPDX-License-Identifier: Apache-2.0
// Ops that work on one row at a time.
#include <cstring>

#include "cpu/cpu_ops.h"
#include "cpu/float16.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"
#include "cpu/parallel_rows.h"

namespace paged::cpu {
namespace {

std::int64_t row_bytes(const MatrixView& view) { return view.cols * size_of(view.dtype); }

std::byte* row_data(const MatrixView& view, std::int64_t row) {
  return static_cast<std::byte*>(view.data) + row * view.row_stride * size_of(view.dtype);
}

template <typename T>
void write_scaled(const float* x, float scale, std::int64_t cols, std::byte* out) {
  for (std::int64_t i = 0; i < cols; ++i) {
    const T value = from_float<T>(x[i] * scale);
    std::memcpy(out + i * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
  }
}

}  // namespace

void embedding(ThreadPool& threads, const EmbeddingParams& params) {
  // A row comes out of its panel in float32 first: into the thread's scratch, or into out itself where that is float32.
  threads.parallel_for(params.out.rows, [&](std::int64_t row, int thread) {
    const MatrixView& out = params.out;
    std::byte* to = row_data(out, row);
    const bool direct = out.dtype == DType::kFloat32;
    float* values = reinterpret_cast<float*>(direct ? to : threads.scratch(thread));
    unpack_row(static_cast<const PackedMatrix&>(*params.table), params.token_ids[row], values);
    if (direct && params.scale == 1.0f) return;
    if (direct) write_scaled<float>(values, params.scale, out.cols, to);
    if (out.dtype == DType::kBFloat16) write_scaled<BFloat16>(values, params.scale, out.cols, to);
    if (out.dtype == DType::kFloat16) write_scaled<Float16>(values, params.scale, out.cols, to);
  });
}

void rms_norm(ThreadPool& threads, const RmsNormParams& params) {
  parallel_rows(threads, params.x.rows, row_bytes(params.x),
                [&](std::int64_t begin, std::int64_t end) { kernels().rms_norm(params, begin, end); });
}

void add_rms_norm(ThreadPool& threads, const AddRmsNormParams& params) {
  parallel_rows(threads, params.out.rows, 2 * row_bytes(params.out),
                [&](std::int64_t begin, std::int64_t end) { kernels().add_rms_norm(params, begin, end); });
}

void add(ThreadPool& threads, const AddParams& params) {
  parallel_rows(threads, params.out.rows, row_bytes(params.out),
                [&](std::int64_t begin, std::int64_t end) { kernels().add(params, begin, end); });
}

void rope(ThreadPool& threads, const RopeParams& params) {
  parallel_rows(threads, params.x.rows, row_bytes(params.x),
                [&](std::int64_t begin, std::int64_t end) { kernels().rope(params, begin, end); });
}

// A key is written to a line of the cache for each one or two of its components. Those of neighbouring tokens share
// them, and two threads would take them from each other; tokens of a step in which everybody decodes have lines alone.
template <typename Body>
void parallel_keys(ThreadPool& threads, const MatrixView& k, const std::int32_t* slots, std::int64_t other_bytes,
                   Body body) {
  constexpr std::int64_t kKeysOfLine = 16, kLine = 64;
  const auto neighbours = [&](std::int64_t row) { return slots[row + 1] == slots[row] + 1; };
  const bool together = k.rows > 1 && (neighbours(0) || neighbours(k.rows - 2));  // a prompt comes first or last
  const std::int64_t key_bytes = together ? 4 * row_bytes(k) : k.cols * kLine;
  parallel_rows(threads, k.rows, other_bytes + key_bytes, body, together ? kKeysOfLine : 1);
}

void store_kv(ThreadPool& threads, const StoreKvParams& params) {
  parallel_keys(threads, params.k, params.slot_mapping, 0,
                [&](std::int64_t begin, std::int64_t end) { kernels().store_kv(params, begin, end); });
}

void rope_store_kv(ThreadPool& threads, const RopeStoreKvParams& params) {
  parallel_keys(threads, params.k.x, params.slot_mapping, row_bytes(params.q.x),
                [&](std::int64_t begin, std::int64_t end) { kernels().rope_store_kv(params, begin, end); });
}

void gated_activation(ThreadPool& threads, const GatedActivationParams& params) {
  parallel_rows(threads, params.out.rows, 4 * row_bytes(params.out),
                [&](std::int64_t begin, std::int64_t end) { kernels().gated_activation(params, begin, end); });
}

void softcap(ThreadPool& threads, const SoftcapParams& params) {
  parallel_rows(threads, params.out.rows, 4 * row_bytes(params.out),
                [&](std::int64_t begin, std::int64_t end) { kernels().softcap(params, begin, end); });
}

void gather_rows(ThreadPool& threads, const GatherRowsParams& params) {
  const auto bytes = static_cast<std::size_t>(row_bytes(params.out));
  parallel_rows(threads, params.out.rows, row_bytes(params.out), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      std::memcpy(row_data(params.out, row), row_data(params.x, params.rows[row]), bytes);
  });
}

void copy_blocks(ThreadPool& threads, const CopyBlocksParams& params) {
  const std::int64_t bytes = params.cache.block_bytes();
  auto* data = static_cast<std::byte*>(params.cache.data);
  parallel_rows(threads, params.num_copies, bytes, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      std::memcpy(data + params.destination[i] * bytes, data + params.source[i] * bytes,
                  static_cast<std::size_t>(bytes));
  });
}

}  // namespace paged::cpu
