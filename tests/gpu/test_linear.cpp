// SPDX-License-Identifier: Apache-2.0
// The matrix product for every shape and dtype, against sums in double. On a real GPU the context hides the chip, so
// that no fast path takes over: those have tests of their own.
#include <string>

#include "gpu/device_matrix.h"
#include "matrix_pair.h"

namespace paged {
namespace {

using namespace test;

struct PlainGpu : Gpu {
  PlainGpu() { gpu.compute_capability = 0; }
};

std::unique_ptr<gpu::DeviceMatrix> on_device(Gpu& gpu, std::span<const float> values, std::int64_t rows,
                                             std::int64_t cols, DType dtype) {
  auto matrix = std::make_unique<gpu::DeviceMatrix>(rows, cols, dtype);
  const std::vector<std::byte> bytes = encode(values, dtype);
  gpu::copy_to_device(matrix->data(), bytes.data(), matrix->num_bytes(), gpu.gpu.stream);
  gpu::synchronize(gpu.gpu.stream);
  return matrix;
}

struct Product {
  Layout x;
  std::int64_t cols;
  std::int64_t out_padding = 0;
  bool has_bias = false;
};
const Product kProducts[] = {
    {{1, 1}, 1},    {{3, 5}, 7, 0, true},    {{1, 64}, 64},        {{16, 96, 32}, 130, 6, true},
    {{17, 70}, 33}, {{67, 72}, 65, 0, true}, {{66, 40, 1, 1}, 72}, {{2, 1040}, 5},
    {{0, 8}, 8},
};

// Rounding errors of a chain grow with its terms: the tolerance is relative to the sum of their sizes.
void check_product(Gpu& gpu, Random& random, const Product& product, DType dtype, DType weight_dtype, DType out_dtype) {
  const std::int64_t depth = product.x.cols;
  const MatrixPair x(gpu, random, product.x, dtype);
  const std::vector<float> values = decode(x.bytes(), dtype);
  const std::vector<float> weights = random.floats(product.cols * depth, weight_dtype);
  const std::vector<float> bias = random.floats(product.cols);
  const auto matrix = on_device(gpu, weights, product.cols, depth, weight_dtype);
  const OnDevice device_bias(gpu, bias);
  const Layout layout{product.x.rows, product.cols, product.out_padding};
  const OnDevice out = OnDevice::poisoned(gpu, layout.elements() * size_of(out_dtype));
  const WeightMatrix* part = matrix.get();
  ops::linear(gpu.context(), {x.device(),
                              &part,
                              1,
                              product.has_bias ? device_bias.as<float>() : nullptr,
                              {out.data(), layout.rows, layout.cols, layout.stride(), out_dtype}});
  const std::vector<float> result = out.floats(out_dtype);
  for (std::int64_t row = 0; row < layout.rows; ++row) {
    for (std::int64_t col = 0; col < layout.cols; ++col) {
      double sum = product.has_bias ? bias[static_cast<std::size_t>(col)] : 0.0, size = std::abs(sum);
      for (std::int64_t k = 0; k < depth; ++k) {
        const double term = double{values[static_cast<std::size_t>(product.x.offset + row * product.x.stride() + k)]} *
                            double{weights[static_cast<std::size_t>(col * depth + k)]};
        sum += term;
        size += std::abs(term);
      }
      const double found = result[static_cast<std::size_t>(row * layout.stride() + col)];
      const double rounding = out_dtype == DType::kFloat32 ? 0.0 : out_dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
      CHECK(std::abs(found - sum) <= 2e-6 * size + rounding * std::abs(sum) + 1e-7, "row ", row, " col ", col, " is ",
            found, ", expected ", sum);
    }
    for (std::int64_t col = layout.cols; col < layout.stride(); ++col)
      CHECK(std::isnan(result[static_cast<std::size_t>(row * layout.stride() + col)]), "written past the columns");
  }
}

TEST(linear_is_right_for_all_dtypes_and_shapes) {
  PlainGpu gpu;
  Random random;
  for (const DType dtype : kDTypes)
    for (const DType weight_dtype : kDTypes)
      for (const DType out_dtype : {dtype, DType::kFloat32})
        for (const Product& product : kProducts) check_product(gpu, random, product, dtype, weight_dtype, out_dtype);
}

TEST(a_row_of_a_product_is_the_same_in_every_batch) {
  PlainGpu gpu;
  gpu.gpu.batch_invariant = true;
  Random random;
  constexpr std::int64_t kRows = 40, kDepth = 200, kCols = 70;
  for (const DType dtype : kDTypes) {
    const MatrixPair x(gpu, random, {kRows, kDepth}, dtype);
    const auto matrix = on_device(gpu, random.floats(kCols * kDepth, dtype), kCols, kDepth, dtype);
    const WeightMatrix* part = matrix.get();
    const OnDevice all = OnDevice::poisoned(gpu, kRows * kCols * 4),
                   single = OnDevice::poisoned(gpu, kRows * kCols * 4);
    const auto run = [&](const OnDevice& to, std::int64_t first, std::int64_t rows) {
      MatrixView from = x.device();
      from.data = static_cast<std::byte*>(from.data) + first * kDepth * size_of(dtype);
      from.rows = rows;
      ops::linear(gpu.context(),
                  {from, &part, 1, nullptr, {to.as<float>() + first * kCols, rows, kCols, kCols, DType::kFloat32}});
    };
    run(all, 0, kRows);
    for (std::int64_t row = 0; row < kRows; ++row) run(single, row, 1);
    CHECK(all.bytes() == single.bytes(), name_of(dtype));
  }
}

TEST(gated_linear_is_linear_and_then_the_activation) {
  PlainGpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const std::int64_t cols : {24, 33}) {
      const MatrixPair x(gpu, random, {5, 48}, dtype), scratch(gpu, random, {5, 2 * cols, 2}, dtype),
          gate_up(gpu, random, {5, 2 * cols}, dtype), out(gpu, random, {5, cols, 8}, dtype),
          expected(gpu, random, {5, cols}, dtype);
      const auto matrix = on_device(gpu, random.floats(2 * cols * 48, dtype), 2 * cols, 48, dtype);
      const WeightMatrix* part = matrix.get();
      for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
        ops::gated_linear(gpu.context(), {x.device(), part, activation, scratch.device(), out.device()});
        ops::linear(gpu.context(), {x.device(), &part, 1, nullptr, gate_up.device()});
        MatrixView gate = gate_up.device(), up = gate;
        gate.cols = up.cols = cols;
        up.data = static_cast<std::byte*>(up.data) + cols * size_of(dtype);
        ops::gated_activation(gpu.context(), {gate, up, activation, expected.device()});
        const std::vector<float> found = decode(out.bytes(), dtype), wanted = decode(expected.bytes(), dtype);
        // A fast path need not round what lies between.
        for (std::ptrdiff_t row = 0; row < 5; ++row)
          check_close(
              std::span(found).subspan(static_cast<std::size_t>(row * (cols + 8)), static_cast<std::size_t>(cols)),
              std::span(wanted).subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(cols)),
              2 * tolerance_of(dtype), "gated_linear");
      }
    }
  }
}

}  // namespace
}  // namespace paged
