// SPDX-License-Identifier: Apache-2.0
// Matrix products as a decode step runs them: qkv, o, gate_up (gated), down of every layer, each with its own weights,
// in one graph; lm_head alone. This engine's choice (gpu/fast_paths.h) beside cuBLASLt's in the same graph, without an
// activation. Rates count the weights' bytes; the limit is the device's copy rate, measured here.
// Usage: bench_gemm [--json] [--blas FOLDER] [--invariant] [--products] [name of one model]; --products: each alone,
// too
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "copy_rate.h"
#include "gpu/blas.h"
#include "gpu/device_matrix.h"
#include "gpu/fast_paths.h"
#include "gpu_test.h"

namespace {

using namespace paged;
using namespace paged::test;

struct Model {
  const char* name;
  std::int64_t hidden, qkv, attention, ffn, vocab;
  int layers;
};
constexpr Model kModels[] = {{"8B", 4096, 6144, 4096, 14336, 128256, 12},
                             {"1B", 2048, 3072, 2048, 8192, 128256, 16},
                             {"0.6B", 1024, 4096, 2048, 3072, 151936, 28}};
constexpr DType kType = DType::kBFloat16;

struct Options {
  bool json = false, invariant = false, products = false;
  std::string blas, model;
};

double seconds_of(Gpu& gpu, const std::function<void()>& body) {
  body();  // algorithms are chosen outside of the graph
  const gpu::Graph graph = gpu::Graph::capture(gpu.gpu.stream, body);
  std::vector<double> seconds;
  for (int i = 0; i < 8; ++i) {
    gpu::Event start(true), end(true);
    start.record(gpu.gpu.stream);
    graph.launch(gpu.gpu.stream);
    end.record(gpu.gpu.stream);
    end.synchronize();
    seconds.push_back(end.seconds_since(start));
  }
  std::sort(seconds.begin() + 1, seconds.end());
  return seconds[1 + (seconds.size() - 1) / 2];
}

// Random blocks, repeated: the clock of a chip depends on the bits it multiplies.
void fill_random(Gpu& gpu, std::byte* to, std::int64_t num_elements, float scale) {
  constexpr std::int64_t kBlock = 1 << 20;
  static const std::vector<float> normal = Random(5).floats(kBlock);
  std::vector<float> scaled(normal);
  for (float& value : scaled) value *= scale;
  const std::vector<std::byte> bytes = encode(scaled, kType);
  for (std::int64_t at = 0; at < num_elements; at += kBlock) {
    const std::int64_t count = 2 * std::min(kBlock, num_elements - at);
    if (at == 0)
      gpu::copy_to_device(to, bytes.data(), count, gpu.gpu.stream);
    else
      gpu::copy_on_device(to + 2 * at, to, count, gpu.gpu.stream);
  }
  gpu::synchronize(gpu.gpu.stream);
}

std::unique_ptr<gpu::DeviceMatrix> random_matrix(Gpu& gpu, std::int64_t rows, std::int64_t cols) {
  auto matrix = std::make_unique<gpu::DeviceMatrix>(rows, cols, kType);
  fill_random(gpu, matrix->data(), rows * cols, 1.0f / std::sqrt(static_cast<float>(cols)));
  return matrix;
}

struct Layer {
  std::unique_ptr<gpu::DeviceMatrix> qkv, o, gate_up, down;
};

class Activations {
 public:
  Activations(Gpu& gpu, const Model& model, std::int64_t rows)
      : buffer_(2 * rows * (2 * model.hidden + model.qkv + 3 * model.ffn)) {
    std::byte* at = buffer_.data();
    for (auto [view, cols] : {std::pair{&x, model.hidden}, std::pair{&qkv, model.qkv}, std::pair{&h, model.hidden},
                              std::pair{&gate_up, 2 * model.ffn}, std::pair{&ffn, model.ffn}}) {
      *view = {at, rows, cols, cols, kType};
      at += 2 * rows * cols;
    }
    attention = qkv;
    attention.cols = model.attention;
    fill_random(gpu, static_cast<std::byte*>(x.data), rows * model.hidden, 1.0f);
  }
  MatrixView x, qkv, attention, h, gate_up, ffn;

 private:
  gpu::DeviceBuffer buffer_;
};

void linear(Gpu& gpu, const MatrixView& x, const WeightMatrix* weight, const MatrixView& out) {
  CHECK(gpu::fast_linear(gpu.context(), {x, &weight, 1, nullptr, out}), "no fast path");
}

void own_chain(Gpu& gpu, const std::vector<Layer>& layers, const Activations& a) {
  for (const Layer& layer : layers) {
    linear(gpu, a.x, layer.qkv.get(), a.qkv);
    linear(gpu, a.attention, layer.o.get(), a.h);
    CHECK(gpu::fast_gated_linear(gpu.context(), {a.h, layer.gate_up.get(), Activation::kSilu, a.gate_up, a.ffn}), "");
    linear(gpu, a.ffn, layer.down.get(), a.x);
  }
}

void library_chain(Gpu& gpu, gpu::Blas& blas, const std::vector<Layer>& layers, const Activations& a) {
  MatrixView half = a.gate_up;
  half.cols = a.ffn.cols;
  for (const Layer& layer : layers) {
    blas.gemm(gpu.gpu, a.x, layer.qkv->data(), a.qkv, false);
    blas.gemm(gpu.gpu, a.attention, layer.o->data(), a.h, false);
    blas.gemm(gpu.gpu, a.h, layer.gate_up->data(), a.gate_up, false);
    blas.gemm(gpu.gpu, half, layer.down->data(), a.x, false);
  }
}

struct Product {
  const char* name;
  std::int64_t cols, depth;  // of out, of x
  bool gated;
  std::int64_t rows() const { return gated ? 2 * cols : cols; }
};
std::vector<Product> products_of(const Model& model) {
  return {{"qkv", model.qkv, model.hidden, false},
          {"o", model.hidden, model.attention, false},
          {"gate_up", model.ffn, model.hidden, true},
          {"down", model.hidden, model.ffn, false}};
}

// x and out of one product.
class ProductOperands {
 public:
  ProductOperands(Gpu& gpu, const Product& product, std::int64_t rows)
      : buffer_(2 * rows * (product.depth + product.rows() + product.cols)) {
    const std::int64_t stacked = product.rows();
    x_ = {buffer_.data(), rows, product.depth, product.depth, kType};
    out_ = {buffer_.data() + 2 * rows * product.depth, rows, product.cols, product.cols, kType};
    stacked_ = {buffer_.data() + 2 * rows * (product.depth + product.cols), rows, stacked, stacked, kType};
    is_gated_ = product.gated;
    fill_random(gpu, static_cast<std::byte*>(x_.data), rows * product.depth, 1.0f);
  }
  void run(Gpu& gpu, const gpu::DeviceMatrix& matrix) const {
    if (!is_gated_) return linear(gpu, x_, &matrix, out_);
    CHECK(gpu::fast_gated_linear(gpu.context(), {x_, &matrix, Activation::kSilu, stacked_, out_}), "no fast path");
  }
  // The product alone, without an activation.
  void run(Gpu& gpu, gpu::Blas& blas, const gpu::DeviceMatrix& matrix) const {
    blas.gemm(gpu.gpu, x_, matrix.data(), is_gated_ ? stacked_ : out_, false);
  }

 private:
  gpu::DeviceBuffer buffer_;
  MatrixView x_, out_, stacked_;
  bool is_gated_;
};

struct Report {
  bool json;
  double limit;  // bytes a second
  void line(const std::string& name, const char* engine, double seconds, double bytes) const {
    const double rate = bytes / seconds;
    if (json)
      std::printf(
          "{\"bench\": \"gemm\", \"case\": \"%s\", \"engine\": \"%s\", \"metric\": \"weight bytes\", "
          "\"value\": %.1f, \"unit\": \"GB/s\", \"reference\": %.1f, \"ratio\": %.3f}\n",
          name.c_str(), engine, rate * 1e-9, limit * 1e-9, rate / limit);
    else
      std::printf("%-24s %-10s %9.1f us %7.0f GB/s  %.2f of the copy rate\n", name.c_str(), engine, seconds * 1e6,
                  rate * 1e-9, rate / limit);
    std::fflush(stdout);
  }
};

void bench_layers(Gpu& gpu, gpu::Blas* blas, const Model& model, const Report& report) {
  std::vector<Layer> layers;
  double bytes = 0.0;
  for (int i = 0; i < model.layers; ++i) {
    layers.push_back({random_matrix(gpu, model.qkv, model.hidden), random_matrix(gpu, model.hidden, model.attention),
                      random_matrix(gpu, 2 * model.ffn, model.hidden), random_matrix(gpu, model.hidden, model.ffn)});
    for (const auto* matrix : {&layers.back().qkv, &layers.back().o, &layers.back().gate_up, &layers.back().down})
      bytes += static_cast<double>((*matrix)->num_bytes());
  }
  for (std::int64_t rows : {1, 8, 16, 32, 64, 128, 136, 160, 192, 224, 256}) {
    const Activations activations(gpu, model, rows);
    const std::string name = std::string(model.name) + " layers, M " + std::to_string(rows);
    report.line(name, "paged", seconds_of(gpu, [&] { own_chain(gpu, layers, activations); }), bytes);
    if (blas != nullptr)
      report.line(name, "cublasLt", seconds_of(gpu, [&] { library_chain(gpu, *blas, layers, activations); }), bytes);
  }
}

// Each product of all layers alone, in the order of a layer.
void bench_products(Gpu& gpu, gpu::Blas* blas, const Model& model, const Report& report) {
  for (const Product& product : products_of(model)) {
    std::vector<std::unique_ptr<gpu::DeviceMatrix>> matrices;
    for (int i = 0; i < model.layers; ++i) matrices.push_back(random_matrix(gpu, product.rows(), product.depth));
    const double bytes = static_cast<double>(matrices[0]->num_bytes()) * model.layers;
    for (std::int64_t rows : {1, 8, 64, 128, 136, 160, 192, 224, 256, 2048}) {
      const ProductOperands operands(gpu, product, rows);
      const std::string name = std::string(model.name) + " " + product.name + ", M " + std::to_string(rows);
      const auto own = [&] {
        for (const auto& matrix : matrices) operands.run(gpu, *matrix);
      };
      const auto library = [&] {
        for (const auto& matrix : matrices) operands.run(gpu, *blas, *matrix);
      };
      report.line(name, "paged", seconds_of(gpu, own), bytes);
      if (blas != nullptr) report.line(name, "cublasLt", seconds_of(gpu, library), bytes);
    }
  }
}

void bench_lm_head(Gpu& gpu, gpu::Blas* blas, const Model& model, const Report& report) {
  const auto matrix = random_matrix(gpu, model.vocab, model.hidden);
  for (std::int64_t rows : {1, 4, 16, 64, 256}) {
    const Activations activations(gpu, model, rows);
    const gpu::DeviceBuffer logits(4 * rows * model.vocab);
    const MatrixView out{logits.data(), rows, model.vocab, model.vocab, DType::kFloat32};
    const std::string name = std::string(model.name) + " lm_head, M " + std::to_string(rows);
    const double bytes = static_cast<double>(matrix->num_bytes());
    report.line(name, "paged", seconds_of(gpu, [&] { linear(gpu, activations.x, matrix.get(), out); }), bytes);
    if (blas != nullptr)
      report.line(name, "cublasLt",
                  seconds_of(gpu, [&] { blas->gemm(gpu.gpu, activations.x, matrix->data(), out, false); }), bytes);
  }
}

Options parse(int num_arguments, char** arguments) {
  Options options;
  for (int i = 1; i < num_arguments; ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--json")
      options.json = true;
    else if (argument == "--invariant")
      options.invariant = true;
    else if (argument == "--products")
      options.products = true;
    else if (argument == "--blas" && i + 1 < num_arguments)
      options.blas = arguments[++i];
    else
      options.model = argument;
  }
  return options;
}

}  // namespace

int main(int num_arguments, char** arguments) {
  const Options options = parse(num_arguments, arguments);
  std::string reason;
  if (gpu::num_devices(&reason) == 0) {
    std::printf("no GPU: %s\n", reason.c_str());
    return 77;
  }
  Gpu gpu;
  const std::unique_ptr<gpu::Blas> blas = gpu::Blas::load(std::vector<std::string>{options.blas}, &reason);
  if (blas == nullptr) std::printf("no cuBLASLt: %s\n", reason.c_str());
  gpu.gpu.blas = blas.get();
  gpu.gpu.batch_invariant = options.invariant;
  const Report report{options.json, copy_rate(gpu)};
  std::printf("copy rate %.0f GB/s\n", report.limit * 1e-9);
  for (const Model& model : kModels) {
    if (!options.model.empty() && options.model != model.name) continue;
    bench_layers(gpu, blas.get(), model, report);
    if (options.products) bench_products(gpu, blas.get(), model, report);
    bench_lm_head(gpu, blas.get(), model, report);
  }
  return 0;
}
