// SPDX-License-Identifier: Apache-2.0
// Weights on the device are the checkpoint's own values, rounded once.
#include <numeric>
#include <stdexcept>
#include <string>

#include "cpu/gguf_blocks.h"
#include "cpu/packed_matrix.h"
#include "gpu/device_matrix.h"
#include "matrix_pair.h"

namespace paged {
namespace {

using namespace test;

constexpr WeightType kTypes[] = {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kFloat16, WeightType::kQ8_0,
                                 WeightType::kQ4_0,    WeightType::kQ4_1,     WeightType::kQ5_0,    WeightType::kQ5_1,
                                 WeightType::kQ4_K,    WeightType::kQ5_K,     WeightType::kQ6_K};

// Raw rows of a checkpoint: random codes, and scales that are numbers.
std::vector<std::byte> random_rows(Random& random, WeightType type, std::int64_t rows, std::int64_t cols) {
  switch (type) {
    case WeightType::kFloat32: return encode(random.floats(rows * cols), DType::kFloat32);
    case WeightType::kBFloat16: return encode(random.floats(rows * cols), DType::kBFloat16);
    case WeightType::kFloat16: return encode(random.floats(rows * cols), DType::kFloat16);
    default: break;
  }
  const auto [num_weights, num_bytes] = cpu::block_size_of(type);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * cols / num_weights * num_bytes));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.below(256));
  const int d = type == WeightType::kQ6_K ? 208 : 0;
  const bool has_min =
      type == WeightType::kQ4_1 || type == WeightType::kQ5_1 || type == WeightType::kQ4_K || type == WeightType::kQ5_K;
  for (std::size_t block = 0; block < bytes.size(); block += static_cast<std::size_t>(num_bytes)) {
    const std::vector<float> scales = random.floats(2, DType::kFloat16, 0.01f);
    std::memcpy(&bytes[block + static_cast<std::size_t>(d)], encode(scales, DType::kFloat16).data(), has_min ? 4 : 2);
  }
  return bytes;
}

std::vector<std::byte> download(Gpu& gpu, const WeightMatrix& matrix) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(matrix.num_bytes()));
  gpu::copy_to_host(bytes.data(), gpu::device_matrix(matrix).data(), matrix.num_bytes(), gpu.gpu.stream);
  gpu::synchronize(gpu.gpu.stream);
  return bytes;
}

// The CPU's packed matrix holds the exact values of every type.
void append_values(Gpu& gpu, const WeightSource& source, std::vector<float>& values) {
  const WeightMatrixPtr packed = pack_matrix(source, gpu.threads);
  std::vector<float> row(static_cast<std::size_t>(source.cols));
  for (std::int64_t i = 0; i < source.rows; ++i) {
    cpu::unpack_row(static_cast<const cpu::PackedMatrix&>(*packed), i, row.data());
    values.insert(values.end(), row.begin(), row.end());
  }
}

TEST(every_type_becomes_every_dtype) {
  Gpu gpu;
  Random random;
  for (const WeightType type : kTypes) {
    for (const DType dtype : kDTypes) {
      const std::vector<std::byte> data = random_rows(random, type, 9, 512);
      const std::int32_t order[] = {8, 0, 3, 2, 1, 4, 7, 6, 5};
      for (const std::int32_t* row_order : {static_cast<const std::int32_t*>(nullptr), &order[0]}) {
        const WeightSource source{data.data(), std::ssize(data), 9, 512, type, row_order};
        const WeightMatrixPtr matrix = gpu::upload_matrix({&source, 1}, dtype, gpu.threads);
        CHECK_EQ(matrix->rows, 9);
        CHECK_EQ(matrix->cols, 512);
        std::vector<float> values;
        append_values(gpu, source, values);
        CHECK(download(gpu, *matrix) == encode(values, dtype), name_of(type), " to ", name_of(dtype));
      }
    }
  }
}

TEST(sources_lie_under_each_other) {
  Gpu gpu;
  Random random;
  std::vector<std::vector<std::byte>> data;
  std::vector<WeightSource> sources;
  std::vector<float> values;
  std::int64_t rows = 0;
  for (const auto& [type, count] :
       {std::pair{WeightType::kBFloat16, 5}, {WeightType::kQ6_K, 3}, {WeightType::kFloat16, 1}}) {
    data.push_back(random_rows(random, type, count, 256));
    sources.push_back({data.back().data(), std::ssize(data.back()), count, 256, type, nullptr});
    append_values(gpu, sources.back(), values);
    rows += count;
  }
  const WeightMatrixPtr matrix = gpu::upload_matrix(sources, DType::kBFloat16, gpu.threads);
  CHECK_EQ(matrix->rows, rows);
  CHECK(download(gpu, *matrix) == encode(values, DType::kBFloat16));
}

// More than the staging holds, so that its halves are used again and again; the last copy is a short one.
TEST(large_matrices_arrive_whole) {
  Gpu gpu;
  constexpr std::int64_t kRows = 30011, kCols = 1000;
  std::vector<std::uint16_t> words(kRows * kCols);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint16_t>(i * 2654435761u >> 16);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(words));
  const WeightSource source{words.data(), std::ssize(bytes), kRows, kCols, WeightType::kBFloat16, nullptr};
  for (const int num_threads : {1, 3}) {
    ThreadPool threads(num_threads);
    const std::vector<std::byte> found = download(gpu, *gpu::upload_matrix({&source, 1}, DType::kBFloat16, threads));
    CHECK(std::equal(found.begin(), found.end(), bytes.begin(), bytes.end()), num_threads, " threads");
  }
}

TEST(contradictions_are_refused) {
  Gpu gpu;
  const std::vector<std::byte> data(4096);
  const auto upload = [&](std::vector<WeightSource> sources) {
    return gpu::upload_matrix(sources, DType::kBFloat16, gpu.threads);
  };
  CHECK_THROWS(upload({}), std::invalid_argument, "nothing");
  CHECK_THROWS(upload({{data.data(), 4096, 4, 256, WeightType::kFloat32, nullptr},
                       {data.data(), 4096, 8, 128, WeightType::kFloat32, nullptr}}),
               std::invalid_argument, "256 and of 128");
  CHECK_THROWS(upload({{data.data(), 4095, 4, 256, WeightType::kFloat32, nullptr}}), std::invalid_argument, "4095");
  CHECK_THROWS(upload({{data.data(), 420, 1, 500, WeightType::kQ6_K, nullptr}}), std::invalid_argument,
               "groups of 256");
  const std::int32_t order[] = {0, 4};
  CHECK_THROWS(upload({{data.data(), 2048, 2, 256, WeightType::kFloat32, order}}), std::invalid_argument, "row_order");
}

}  // namespace
}  // namespace paged
