// SPDX-License-Identifier: Apache-2.0
// Ops on rows against the CPU's: every dtype, whole vectors and odd sizes, views, in place.
#include <string>

#include "matrix_pair.h"

namespace paged {
namespace {

using namespace test;

struct NormCase {
  Layout layout;
  std::int64_t width;
};
const NormCase kNorms[] = {
    {{3, 64}, 64},
    {{2, 1024}, 1024},
    {{2, 2560}, 2560},
    {{1, 8192 + 64}, 8192 + 64},  // wider than registers
    {{5, 3 * 128, 64, 8}, 128},   // heads inside wider rows
    {{3, 2 * 80}, 80},
    {{2, 96}, 32},
    {{3, 2 * 256}, 256},
    {{2, 7}, 7},
    {{2, 1003, 2}, 1003},
    {{4, 128, 3, 1}, 64},  // aligned nowhere
    {{0, 64}, 64},
};

TEST(rms_norm_is_the_cpus) {
  Gpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const auto& [layout, width] : kNorms) {
      MatrixPair x(gpu, random, layout, dtype, 3.0f), out(gpu, random, layout, dtype);
      const std::vector<float> weight = random.floats(width);
      const OnDevice device_weight(gpu, weight);
      for (const bool in_place : {false, true}) {
        MatrixPair& to = in_place ? x : out;
        ops::rms_norm(gpu.cpu(), {x.host(), weight.data(), width, 1e-5f, to.host()});
        ops::rms_norm(gpu.context(), {x.device(), device_weight.as<float>(), width, 1e-5f, to.device()});
        to.check(tolerance_of(dtype), "rms_norm");
      }
    }
  }
}

TEST(add_rms_norm_is_add_and_then_rms_norm) {
  Gpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const auto& [layout, width] : kNorms) {
      if (width != layout.cols) continue;
      const Layout narrow{layout.rows, layout.cols};
      MatrixPair residual(gpu, random, layout, dtype), delta(gpu, random, narrow, dtype);
      MatrixPair sum(gpu, random, narrow, dtype), out(gpu, random, layout, dtype), apart(gpu, random, narrow, dtype);
      const std::vector<float> weight = random.floats(width);
      const OnDevice on_device(gpu, weight);
      const auto run = [&](bool in_place) {
        MatrixPair& to = in_place ? residual : sum;
        ops::add_rms_norm(gpu.cpu(), {residual.host(), delta.host(), weight.data(), 1e-6f, to.host(), out.host()});
        ops::add_rms_norm(gpu.context(),
                          {residual.device(), delta.device(), on_device.as<float>(), 1e-6f, to.device(), out.device()});
        to.check(0.0, "the residual");
        out.check(tolerance_of(dtype), "add_rms_norm");
      };
      run(false);
      ops::rms_norm(gpu.context(), {sum.device(), on_device.as<float>(), width, 1e-6f, apart.device()});
      if (layout.padding == 0) CHECK(apart.bytes() == out.bytes(), "fused and apart differ at width ", width);
      run(true);
    }
  }
}

TEST(a_row_is_normalised_alike_in_every_batch) {
  Gpu gpu;
  Random random;
  for (const std::int64_t width : {std::int64_t{64}, std::int64_t{640}}) {
    const Layout layout{40, 640};
    MatrixPair x(gpu, random, layout, DType::kFloat32), all(gpu, random, layout, DType::kFloat32);
    const MatrixPair single(gpu, random, layout, DType::kFloat32);
    const OnDevice weight(gpu, random.floats(width));
    ops::rms_norm(gpu.context(), {x.device(), weight.as<float>(), width, 1e-5f, all.device()});
    for (std::int64_t row = 0; row < layout.rows; ++row) {
      MatrixView from = x.device(), to = single.device();
      for (MatrixView* view : {&from, &to}) {
        view->data = static_cast<float*>(view->data) + row * view->row_stride;
        view->rows = 1;
      }
      ops::rms_norm(gpu.context(), {from, weight.as<float>(), width, 1e-5f, to});
    }
    CHECK(single.bytes() == all.bytes(), "width ", width);
  }
}

const Layout kLayouts[] = {{3, 64},    {5, 2080},     {2, 256, 64, 16}, {4, 33},
                           {3, 64, 1}, {2, 48, 8, 3}, {70, 8192},       {0, 8}};

TEST(add_is_the_cpus) {
  Gpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const Layout& layout : kLayouts) {
      MatrixPair a(gpu, random, layout, dtype), b(gpu, random, {layout.rows, layout.cols}, dtype),
          out(gpu, random, layout, dtype);
      for (MatrixPair* to : {&out, &a, &b}) {
        ops::add(gpu.cpu(), {a.host(), b.host(), to->host()});
        ops::add(gpu.context(), {a.device(), b.device(), to->device()});
        to->check(0.0, "add");
      }
    }
  }
}

TEST(gated_activations_are_the_cpus) {
  Gpu gpu;
  Random random;
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    for (const DType dtype : kDTypes) {
      for (const Layout& layout : kLayouts) {
        if (layout.rows == 70 && activation != Activation::kSilu) continue;  // one large case is enough
        MatrixPair gate(gpu, random, layout, dtype, 3.0f), up(gpu, random, {layout.rows, layout.cols}, dtype),
            out(gpu, random, layout, dtype);
        for (MatrixPair* to : {&out, &gate}) {
          ops::gated_activation(gpu.cpu(), {gate.host(), up.host(), activation, to->host()});
          ops::gated_activation(gpu.context(), {gate.device(), up.device(), activation, to->device()});
          to->check(tolerance_of(dtype), "gated_activation");
        }
      }
    }
  }
}

TEST(activations_of_large_gates_are_finite) {
  Gpu gpu;
  const std::vector<float> values = {-100.0f, -30.0f, 0.0f, 30.0f, 100.0f, 1e4f, -1e4f, 1.0f};
  const OnDevice gate(gpu, values), up(gpu, std::vector<float>(8, 1.0f));
  const OnDevice out = OnDevice::poisoned(gpu, 32);
  const auto view = [](const OnDevice& buffer) { return MatrixView{buffer.data(), 1, 8, 8, DType::kFloat32}; };
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    ops::gated_activation(gpu.context(), {view(gate), view(up), activation, view(out)});
    const std::vector<float> result = out.floats();
    for (std::size_t i = 0; i < 7; ++i)
      CHECK(std::abs(result[i] - std::max(values[i], 0.0f)) <= 1e-6f * std::abs(values[i]), "of ", values[i], ": ",
            result[i]);
  }
}

TEST(softcap_is_the_cpus) {
  Gpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const Layout& layout : kLayouts) {
      MatrixPair x(gpu, random, layout, dtype, 40.0f), out(gpu, random, layout, dtype);
      for (MatrixPair* to : {&out, &x}) {
        ops::softcap(gpu.cpu(), {x.host(), 30.0f, to->host()});
        ops::softcap(gpu.context(), {x.device(), 30.0f, to->device()});
        to->check(tolerance_of(dtype), "softcap");
      }
    }
  }
}

TEST(gather_rows_moves_bits) {
  Gpu gpu;
  Random random;
  const std::vector<std::int32_t> rows = {2, 0, 0, 6, 5, 2, 1};
  const OnDevice on_device(gpu, rows);
  for (const DType dtype : kDTypes) {
    for (const Layout& layout : {Layout{7, 64}, Layout{7, 1040, 16}, Layout{7, 13}, Layout{7, 32, 1, 1}}) {
      MatrixPair x(gpu, random, layout, dtype), out(gpu, random, {7, layout.cols}, dtype);
      ops::gather_rows(gpu.cpu(), {x.host(), rows.data(), out.host()});
      ops::gather_rows(gpu.context(), {x.device(), on_device.as<std::int32_t>(), out.device()});
      out.check(0.0, "gather_rows");
    }
  }
}

void check_embedding(Gpu& gpu, Random& random, WeightType type, DType table_dtype, const Layout& layout,
                     DType out_dtype) {
  constexpr std::int64_t kVocab = 50;
  const std::vector<std::byte> table = encode(random.floats(kVocab * layout.cols, table_dtype), table_dtype);
  const WeightSource source{table.data(), std::ssize(table), kVocab, layout.cols, type, nullptr};
  const WeightMatrixPtr packed = pack_matrix(source, gpu.threads);
  const WeightMatrixPtr uploaded = gpu::upload_matrix({&source, 1}, table_dtype, gpu.threads);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < layout.rows; ++i) tokens.push_back(random.below(kVocab));
  const OnDevice on_device(gpu, tokens);
  MatrixPair out(gpu, random, layout, out_dtype);
  for (const float scale : {1.0f, 11.5f}) {
    ops::embedding(gpu.cpu(), {tokens.data(), packed.get(), out.host(), scale});
    ops::embedding(gpu.context(), {on_device.as<std::int32_t>(), uploaded.get(), out.device(), scale});
    out.check(0.0, "embedding");
  }
}

TEST(embedding_is_the_cpus) {
  Gpu gpu;
  Random random;
  const WeightType types[] = {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kFloat16};
  for (std::size_t i = 0; i < 3; ++i)
    for (const DType out_dtype : kDTypes)
      for (const Layout& layout : {Layout{9, 64}, Layout{3, 1032, 8}, Layout{3, 31}, Layout{0, 8}})
        check_embedding(gpu, random, types[i], kDTypes[i], layout, out_dtype);
}

}  // namespace
}  // namespace paged
