// SPDX-License-Identifier: Apache-2.0
// The CPU ops against naive double loops, on whatever machine and under whatever sanitizer this is built for. The
// Python tests go further (every dtype, format and instruction set); this one runs where Python is not.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/thread_pool.h"
#include "ops/ops.h"

namespace paged {
namespace {

class Inputs {
 public:
  std::vector<float> floats(std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal_(random_);
    return values;
  }

 private:
  std::mt19937 random_{11};
  std::normal_distribution<float> normal_;
};

MatrixView view(std::vector<float>& values, std::int64_t cols) {
  return {values.data(), static_cast<std::int64_t>(values.size()) / cols, cols, cols, DType::kFloat32};
}

void check_close(const std::vector<float>& values, const std::vector<double>& expected, double tolerance) {
  CHECK_EQ(values.size(), expected.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    CHECK(std::abs(values[i] - expected[i]) <= tolerance * (1.0 + std::abs(expected[i])), "element ", i, " is ",
          values[i], ", expected ", expected[i]);
}

// The upper half of each float: what is left is exactly a bfloat16.
std::vector<std::uint16_t> truncate_to_bf16(std::vector<float>& values) {
  std::vector<std::uint16_t> halves;
  for (float& value : values) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    halves.push_back(static_cast<std::uint16_t>(bits >> 16));
    bits &= 0xffff0000u;
    std::memcpy(&value, &bits, 4);
  }
  return halves;
}

TEST(linear_of_float32_and_bfloat16_weights_with_odd_sizes) {
  ThreadPool threads(3);
  const ExecutionContext context{Device::kCpu, &threads, nullptr};
  Inputs inputs;
  for (std::int64_t rows : {1, 2, 5, 70})
    for (std::int64_t k : {8, 37, 300})
      for (bool half : {false, true}) {
        const std::int64_t n = 41;
        std::vector<float> x = inputs.floats(rows * k), w = inputs.floats(n * k),
                           out(static_cast<std::size_t>(rows * n));
        const std::vector<std::uint16_t> halves = half ? truncate_to_bf16(w) : std::vector<std::uint16_t>();
        const void* data = half ? static_cast<const void*>(halves.data()) : w.data();
        const WeightMatrixPtr packed = pack_matrix(
            {data, n * k * (half ? 2 : 4), n, k, half ? WeightType::kBFloat16 : WeightType::kFloat32, nullptr},
            threads);
        const WeightMatrix* part = packed.get();
        ops::linear(context, {view(x, k), &part, 1, nullptr, view(out, n)});
        std::vector<double> expected;
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t c = 0; c < n; ++c) {
            double sum = 0;
            for (std::int64_t i = 0; i < k; ++i)
              sum += double{x[static_cast<std::size_t>(r * k + i)]} * w[static_cast<std::size_t>(c * k + i)];
            expected.push_back(sum);
          }
        check_close(out, expected, 2e-5);
      }
}

TEST(rms_norm_of_heads) {
  ThreadPool threads(2);
  Inputs inputs;
  const std::int64_t width = 20, heads = 3, rows = 7;
  std::vector<float> x = inputs.floats(rows * heads * width), weight = inputs.floats(width), out(x.size());
  ops::rms_norm({Device::kCpu, &threads, nullptr},
                {view(x, heads * width), weight.data(), width, 1e-5f, view(out, heads * width)});
  std::vector<double> expected;
  for (std::size_t group = 0; group < x.size(); group += width) {
    double squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += double{x[group + i]} * x[group + i];
    for (std::size_t i = 0; i < width; ++i)
      expected.push_back(x[group + i] / std::sqrt(squares / width + 1e-5) * weight[i]);
  }
  check_close(out, expected, 1e-6);
}

struct AttentionCase {
  std::int32_t num_kv_heads, group, head_dim, block_size, past, query_len, window, num_threads;
};

// One sequence whose keys and values are stored in two steps and attended to in the second.
void check_attention(const AttentionCase& c) {
  ThreadPool threads(c.num_threads);
  const ExecutionContext context{Device::kCpu, &threads, nullptr};
  Inputs inputs;
  const std::int32_t length = c.past + c.query_len, heads = c.num_kv_heads * c.group;
  const std::int32_t num_blocks = (length + c.block_size - 1) / c.block_size;
  const std::int64_t kv_cols = std::int64_t{c.num_kv_heads} * c.head_dim, q_cols = std::int64_t{heads} * c.head_dim;
  std::vector<float> k = inputs.floats(length * kv_cols), v = inputs.floats(length * kv_cols);
  std::vector<float> q = inputs.floats(c.query_len * q_cols), out(q.size());
  KvCacheView cache{nullptr, num_blocks, c.block_size, c.num_kv_heads, c.head_dim, DType::kFloat32};
  std::vector<float> storage(static_cast<std::size_t>(num_blocks * cache.block_bytes() / 4), std::nanf(""));
  cache.data = storage.data();

  std::vector<std::int32_t> table, slots;
  for (std::int32_t i = 0; i < num_blocks; ++i) table.push_back((i * 7 + 3) % num_blocks);
  if (num_blocks % 7 == 0) std::iota(table.begin(), table.end(), 0);
  for (std::int32_t p = 0; p < length; ++p)
    slots.push_back(table[static_cast<std::size_t>(p / c.block_size)] * c.block_size + p % c.block_size);
  ops::store_kv(context, {view(k, kv_cols), view(v, kv_cols), slots.data(), cache});

  const std::int32_t query_start[] = {0, c.query_len}, row = 0;
  BatchView batch;
  batch.num_tokens = c.query_len;
  batch.num_sequences = 1;
  batch.query_start = query_start;
  batch.seq_lens = &length;
  batch.block_table_rows = &row;
  batch.block_tables = table.data();
  batch.block_table_stride = num_blocks;
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(ops::attention_workspace_bytes(c.query_len, heads, c.head_dim, length)));
  ops::attention(context, {view(q, q_cols), cache, &batch, heads, c.window, 0.3f, 0.0f, nullptr, workspace.data(),
                           view(out, q_cols), nullptr, nullptr});

  std::vector<double> expected;
  for (std::int32_t t = 0; t < c.query_len; ++t)
    for (std::int32_t h = 0; h < heads; ++h) {
      const std::int32_t last = c.past + t, first = c.window > 0 ? std::max(0, last - c.window + 1) : 0;
      const auto at = [&](std::int32_t p) { return static_cast<std::size_t>(p * kv_cols + h / c.group * c.head_dim); };
      std::vector<double> sum(static_cast<std::size_t>(c.head_dim), 0.0);
      double total = 0;
      for (std::int32_t p = first; p <= last; ++p) {
        double score = 0;
        for (std::int32_t d = 0; d < c.head_dim; ++d)
          score += double{q[static_cast<std::size_t>(t * q_cols + h * c.head_dim + d)]} *
                   k[at(p) + static_cast<std::size_t>(d)];
        const double weight = std::exp(0.3 * score);
        total += weight;
        for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += weight * v[at(p) + d];
      }
      for (double element : sum) expected.push_back(element / total);
    }
  check_close(out, expected, 3e-5);
}

TEST(attention_of_prefill_decode_windows_and_long_contexts) {
  check_attention({2, 3, 20, 4, 0, 37, 0, 2});
  check_attention({1, 1, 64, 16, 100, 1, 0, 3});
  check_attention({2, 2, 16, 1, 30, 9, 8, 1});
  check_attention({1, 4, 32, 64, 2100, 2, 0, 3});  // several chunks, split over the threads
  check_attention({1, 2, 80, 8, 1500, 1, 700, 2});
}

}  // namespace
}  // namespace paged
