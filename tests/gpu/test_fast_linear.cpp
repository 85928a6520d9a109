// SPDX-License-Identifier: Apache-2.0
// The vendor's fast matrix products (gpu/fast_paths.h) against double loops. Where there are none for a case they say
// so, and the case is left to the tests of ops::linear. PAGED_TEST_BLAS: folder of the vendor's library.
#include <cstdlib>
#include <functional>
#include <string>

#include "gpu/blas.h"
#include "gpu/device_matrix.h"
#include "gpu/fast_paths.h"
#include "gpu_test.h"

namespace {

using namespace paged;
using namespace paged::test;

struct Problem {
  std::int64_t rows, cols, depth;  // M, N, K
  DType dtype = DType::kBFloat16;
  DType out_dtype = DType::kBFloat16;
  bool bias = false;
  bool gated = false;
};

struct Operands {
  Operands(Gpu& gpu, const Problem& p, unsigned seed = 3)
      : random(seed),
        weight_rows(p.gated ? 2 * p.cols : p.cols),
        stride(p.depth + 8),
        x(random.floats(p.rows * stride, p.dtype)),
        weights(random.floats(weight_rows * p.depth, p.dtype, 1.0f / std::sqrt(static_cast<float>(p.depth)))),
        bias(random.floats(p.cols, p.out_dtype)),
        device_x(gpu, x, p.dtype),
        device_bias(gpu, bias),
        matrix(weight_rows, p.depth, p.dtype) {
    const std::vector<std::byte> bytes = encode(weights, p.dtype);
    gpu::copy_to_device(matrix.data(), bytes.data(), matrix.num_bytes(), gpu.gpu.stream);
    gpu::synchronize(gpu.gpu.stream);
  }
  MatrixView x_view(const Problem& p) const { return {device_x.data(), p.rows, p.depth, stride, p.dtype}; }

  Random random;
  std::int64_t weight_rows, stride;
  std::vector<float> x, weights, bias;
  OnDevice device_x, device_bias;
  gpu::DeviceMatrix matrix;
};

double dot(const Operands& o, const Problem& p, std::int64_t row, std::int64_t col) {
  double sum = 0.0;
  for (std::int64_t k = 0; k < p.depth; ++k)
    sum += double{o.x[static_cast<std::size_t>(row * o.stride + k)]} *
           double{o.weights[static_cast<std::size_t>(col * p.depth + k)]};
  return sum;
}

double expected(const Operands& o, const Problem& p, std::int64_t row, std::int64_t col, Activation activation) {
  const double sum = dot(o, p, row, col);
  if (!p.gated) return sum + (p.bias ? double{o.bias[static_cast<std::size_t>(col)]} : 0.0);
  const double up = dot(o, p, row, col + p.cols);
  if (activation == Activation::kSilu) return sum / (1.0 + std::exp(-sum)) * up;
  if (activation == Activation::kGeluErf) return 0.5 * sum * (1.0 + std::erf(sum / std::sqrt(2.0))) * up;
  return 0.5 * sum * (1.0 + std::tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum))) * up;
}

// Empty where there is no fast path.
std::vector<std::byte> product(Gpu& gpu, const Problem& p, const Operands& o, Activation activation) {
  const std::int64_t out_stride = p.cols + 4;
  const OnDevice out = OnDevice::poisoned(gpu, p.rows * out_stride * size_of(p.out_dtype));
  const OnDevice gate_up = OnDevice::poisoned(gpu, p.gated ? 2 * p.rows * p.cols * size_of(p.dtype) : 4);
  const MatrixView view{out.data(), p.rows, p.cols, out_stride, p.out_dtype};
  const WeightMatrix* part = &o.matrix;
  bool ran;
  if (p.gated) {
    const MatrixView scratch{gate_up.data(), p.rows, 2 * p.cols, 2 * p.cols, p.dtype};
    ran = gpu::fast_gated_linear(gpu.context(), {o.x_view(p), part, activation, scratch, view});
  } else {
    ran = gpu::fast_linear(gpu.context(), {o.x_view(p), &part, 1, p.bias ? o.device_bias.as<float>() : nullptr, view});
  }
  gpu::synchronize(gpu.gpu.stream);
  return ran ? out.bytes() : std::vector<std::byte>();
}

bool check_product(Gpu& gpu, const Problem& p, Activation activation = Activation::kSilu) {
  const Operands o(gpu, p);
  const std::vector<std::byte> bytes = product(gpu, p, o, activation);
  if (bytes.empty()) return false;
  const std::vector<float> values = decode(bytes, p.out_dtype);
  const double tolerance = p.out_dtype == DType::kFloat32 ? 1e-4 : tolerance_of(p.out_dtype);
  for (std::int64_t row = 0; row < p.rows; ++row)
    for (std::int64_t col = 0; col < p.cols + 4; ++col) {
      const float value = values[static_cast<std::size_t>(row * (p.cols + 4) + col)];
      if (col >= p.cols) {
        CHECK(std::isnan(value), "wrote beyond the row ", row);
        continue;
      }
      const double want = expected(o, p, row, col, activation);
      CHECK(std::abs(value - want) <= tolerance * (1.0 + std::abs(want)), "M ", p.rows, " N ", p.cols, " K ", p.depth,
            " ", name_of(p.dtype), " to ", name_of(p.out_dtype), p.gated ? " gated" : "", " row ", row, " col ", col,
            ": ", value, ", expected ", want);
    }
  const std::vector<std::byte> again = product(gpu, p, o, activation);
  CHECK(again == bytes, "a second run gave other bits");
  return true;
}

bool is_real(const Gpu& gpu) { return gpu.gpu.compute_capability > 0; }
bool must_run(const Gpu& gpu) { return gpu.gpu.compute_capability == 90; }

void check_counters(Gpu& gpu) {
  std::vector<std::uint32_t> counters(GpuContext::kCounters);
  gpu::copy_to_host(counters.data(), gpu.gpu.counters, GpuContext::kCounters * 4, gpu.gpu.stream);
  gpu::synchronize(gpu.gpu.stream);
  for (std::uint32_t counter : counters) CHECK_EQ(counter, 0u);
}

TEST(small_products) {
  Gpu gpu;
  const bool own = must_run(gpu);
  const DType b = DType::kBFloat16, h = DType::kFloat16, f = DType::kFloat32;
  for (bool invariant : {false, true}) {
    gpu.gpu.batch_invariant = invariant;
    for (const Problem& p : {Problem{1, 136, 64}, Problem{2, 40, 72, b, f}, Problem{8, 256, 320, h, h, true},
                             Problem{9, 200, 200, b, b, true}, Problem{17, 128, 8, h, f, true},
                             Problem{40, 264, 392, b, f}, Problem{12, 1208, 72}})
      CHECK(check_product(gpu, p) || !own);
  }
  check_counters(gpu);
}

TEST(gated_products) {
  Gpu gpu;
  const bool own = must_run(gpu);
  const DType b = DType::kBFloat16, h = DType::kFloat16;
  for (bool invariant : {false, true}) {
    gpu.gpu.batch_invariant = invariant;
    CHECK(check_product(gpu, {1, 72, 136, b, b, false, true}) || !own);
    CHECK(check_product(gpu, {5, 128, 264, h, h, false, true}, Activation::kGeluErf) || !own);
    CHECK(check_product(gpu, {20, 8, 64, h, h, false, true}, Activation::kGeluTanh) || !own);
    CHECK(check_product(gpu, {33, 104, 72, b, b, false, true}) || !own);
    CHECK(check_product(gpu, {131, 72, 136, b, b, false, true}) || !own);
    CHECK(check_product(gpu, {250, 520, 72, h, h, false, true}) || !own);
  }
  check_counters(gpu);
}

// Bits of every row, alone and in company.
void check_invariance(Gpu& gpu, Problem p, std::initializer_list<std::int64_t> row_counts) {
  gpu.gpu.batch_invariant = true;
  const Operands o(gpu, p);
  const std::vector<std::byte> all = product(gpu, p, o, Activation::kSilu);
  if (all.empty()) return;
  for (std::int64_t rows : row_counts) {
    Problem few = p;
    few.rows = rows;
    const std::vector<std::byte> bytes = product(gpu, few, o, Activation::kSilu);
    CHECK(std::equal(bytes.begin(), bytes.end(), all.begin()), "M ", rows, " of ", p.rows, " N ", p.cols, " K ",
          p.depth, p.gated ? " gated" : "", ": other bits");
  }
}

TEST(rows_do_not_depend_on_their_number) {
  Gpu gpu;
  check_invariance(gpu, {135, 200, 328, DType::kBFloat16, DType::kFloat32}, {1, 9, 17, 35});
  check_invariance(gpu, {250, 520, 136, DType::kBFloat16, DType::kBFloat16}, {1, 70, 130, 170, 200});
  check_invariance(gpu, {20, 72, 320, DType::kFloat16, DType::kFloat16, false, true}, {1, 8, 9});  // slabs and tiles
  if (!is_real(gpu)) return;
  for (bool gated : {false, true})
    for (const auto& [cols, depth] :
         {std::pair{1024, 4096}, std::pair{2048, 4096}, std::pair{4096, 1024}, std::pair{1000, 1048}}) {
      const DType out = gated ? DType::kBFloat16 : DType::kFloat32;
      check_invariance(gpu, {1030, cols, depth, DType::kBFloat16, out, false, gated},
                       {1, 2, 8, 9, 16, 31, 32, 33, 64, 65, 100, 128, 129, 150, 180, 200, 256, 257, 512, 1024});
    }
  check_counters(gpu);
}

TEST(larger_products) {
  Gpu gpu;
  if (!is_real(gpu)) return;
  const bool own = must_run(gpu);
  const DType b = DType::kBFloat16, h = DType::kFloat16, f = DType::kFloat32;
  for (bool invariant : {false, true}) {
    gpu.gpu.batch_invariant = invariant;
    for (std::int64_t rows : {1, 3, 16, 33, 64, 128, 200, 300}) {
      CHECK(check_product(gpu, {rows, 1000, 1032, b, f, true}) || !own);
      CHECK(check_product(gpu, {rows, 520, 2048, h, h}) || !own);
      CHECK(check_product(gpu, {rows, 264, 1024, b, b, false, true}) || !own);
    }
  }
  check_counters(gpu);
}

// Shapes that swapped tiles take: whole, of two parts, and with x shared within clusters.
TEST(swapped_tiles) {
  Gpu gpu;
  if (!is_real(gpu)) return;
  const DType b = DType::kBFloat16, h = DType::kFloat16;
  gpu.gpu.batch_invariant = true;
  for (std::int64_t rows : {130, 190, 256})
    CHECK(check_product(gpu, {rows, 8192, 72, b, b, false, true}) || !must_run(gpu));
  CHECK(check_product(gpu, {140, 16384, 136, h, h, true}) || !must_run(gpu));
  check_invariance(gpu, {150, 4096, 4096, b, DType::kFloat32, true}, {64});
  check_invariance(gpu, {1024, 2048, 4096, b, b, false, true}, {64});
}

TEST(vendor_library) {
  Gpu gpu;
  std::string reason;
  const char* folder = std::getenv("PAGED_TEST_BLAS");
  const std::vector<std::string> folders(folder == nullptr ? 0 : 1, folder == nullptr ? "" : folder);
  const std::unique_ptr<gpu::Blas> blas = gpu::Blas::load(folders, &reason);
  CHECK(blas != nullptr || folder == nullptr, reason);
  if (blas == nullptr) return;
  gpu.gpu.blas = blas.get();
  const DType b = DType::kBFloat16, h = DType::kFloat16, f = DType::kFloat32;
  for (const Problem& p :
       {Problem{3, 100, 60, f, f}, Problem{7, 64, 128, f, f, true}, Problem{200, 512, 512, b, b, true},
        Problem{300, 520, 264, h, f}, Problem{700, 256, 512, b, b}, Problem{650, 256, 512, b, f, true}})
    CHECK(check_product(gpu, p), reason);
  CHECK(check_product(gpu, {200, 128, 256, b, b, false, true}, Activation::kGeluTanh));
}

}  // namespace
