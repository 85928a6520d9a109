// SPDX-License-Identifier: Apache-2.0
// The ops around the matrix products and attention, each many times in one graph. Few rows: the same operands again and
// again, in the cache as in a decode step, so that what is seen is a launch's latency. Many rows: operands in turn,
// more than any cache holds. Rates count bytes read and written; the limit is the device's copy rate, measured here.
// Usage: bench_row_ops [--json] [part of a name]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "copy_rate.h"
#include "gpu/device_matrix.h"
#include "gpu_test.h"

namespace {

using namespace paged;
using namespace paged::test;

struct Model {
  const char* name;
  std::int64_t hidden, heads, kv_heads, head_dim, ffn, vocab;
};
constexpr Model kModels[] = {{"8B", 4096, 32, 8, 128, 14336, 128256}, {"0.6B", 1024, 16, 8, 128, 3072, 151936}};
constexpr std::int32_t kBlockSize = 64;
constexpr std::int64_t kMaxRows = 8192;
constexpr DType kType = DType::kBFloat16;

// What an op moves, and how to run it on the operands at an address; sets of operands lie one after another.
struct RowOp {
  std::string name;
  std::int64_t set_bytes;    // of one set of operands
  std::int64_t moved_bytes;  // by one run
  std::function<void(std::byte*)> run;
};

double seconds_of(Gpu& gpu, const std::function<void()>& body) {
  const gpu::Graph graph = gpu::Graph::capture(gpu.gpu.stream, body);
  std::vector<double> seconds;
  for (int i = 0; i < 10; ++i) {
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

class Bench {
 public:
  Bench(Gpu& gpu, bool json) : gpu_(gpu), json_(json), limit_(copy_rate(gpu)), pool_(kPoolBytes) {
    std::printf("copy rate %.0f GB/s\n", limit_ * 1e-9);
  }

  void run(const RowOp& bench, std::int64_t rows) {
    const std::int64_t stride = std::max<std::int64_t>(256, (bench.set_bytes + 255) / 256 * 256);
    const std::int64_t sets = rows < kMaxRows ? 1 : std::clamp<std::int64_t>(kPoolBytes / stride, 1, 16);
    const std::int64_t count = rows < kMaxRows ? 200 : 16;
    fill(sets * stride);
    const double seconds = seconds_of(gpu_,
                                      [&] {
                                        for (std::int64_t i = 0; i < count; ++i)
                                          bench.run(pool_.data() + i % sets * stride);
                                      }) /
                           static_cast<double>(count);
    const double rate = static_cast<double>(bench.moved_bytes) / seconds;
    if (json_)
      std::printf(
          "{\"bench\": \"row_ops\", \"case\": \"%s, %lld rows\", \"engine\": \"paged\", \"metric\": \"time\", "
          "\"value\": %.2f, \"unit\": \"us\", \"reference\": %.2f, \"ratio\": %.3f}\n",
          bench.name.c_str(), static_cast<long long>(rows), seconds * 1e6,
          static_cast<double>(bench.moved_bytes) / limit_ * 1e6, rate / limit_);
    else
      std::printf("%-22s %5lld rows %8.2f us %6.0f GB/s  %.2f of the copy rate\n", bench.name.c_str(),
                  static_cast<long long>(rows), seconds * 1e6, rate * 1e-9, rate / limit_);
    std::fflush(stdout);
  }

 private:
  static constexpr std::int64_t kPoolBytes = std::int64_t{3} << 30;

  // The start of the pool, with random bfloat16 numbers.
  void fill(std::int64_t num_bytes) {
    static const std::vector<std::byte> block = encode(Random(3).floats(1 << 20, kType), kType);
    gpu::copy_to_device(pool_.data(), block.data(), std::ssize(block), gpu_.gpu.stream);
    for (std::int64_t at = std::ssize(block); at < num_bytes; at += std::ssize(block))
      gpu::copy_on_device(pool_.data() + at, pool_.data(), std::min<std::int64_t>(std::ssize(block), num_bytes - at),
                          gpu_.gpu.stream);
    gpu::synchronize(gpu_.gpu.stream);
  }

  Gpu& gpu_;
  bool json_;
  double limit_;
  gpu::DeviceBuffer pool_;
};

MatrixView view(std::byte* at, std::int64_t rows, std::int64_t cols, DType dtype = kType) {
  return {at, rows, cols, cols, dtype};
}

// What the ops of a model share and do not stream: weights of norms, positions, the rope table, the KV cache.
struct Shared {
  Shared(Gpu& gpu, const Model& model)
      : norm(gpu, Random(1).floats(model.hidden)),
        table(gpu, Random(2).floats(kMaxRows * model.head_dim)),
        indices(gpu, indices_below(kMaxRows)),
        kv(kMaxRows * 2 * model.kv_heads * model.head_dim * 2),
        tokens(OnDevice::poisoned(gpu, 4 * kMaxRows)),
        zero(gpu, std::vector<std::int32_t>{0}),
        staging(48 * kMaxRows + 16),
        inputs(staging.num_bytes()),
        embeddings(model.vocab, model.hidden, kType) {
    gpu::fill_zero(embeddings.data(), embeddings.num_bytes(), gpu.gpu.stream);
    std::memset(staging.data(), 0, static_cast<std::size_t>(staging.num_bytes()));
  }
  static std::vector<std::int32_t> indices_below(std::int64_t limit) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(limit));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    std::mt19937 engine(4);
    std::shuffle(all.begin(), all.end(), engine);
    return all;
  }
  OnDevice norm, table, indices;
  gpu::DeviceBuffer kv;
  OnDevice tokens, zero;
  gpu::PinnedBuffer staging;
  gpu::DeviceBuffer inputs;
  gpu::DeviceMatrix embeddings;
};

std::vector<RowOp> norm_cases(Gpu& gpu, const Model& model, const Shared& shared, std::int64_t rows) {
  const std::int64_t row = rows * model.hidden * 2, q = rows * model.heads * model.head_dim * 2;
  const float* weight = shared.norm.as<float>();
  return {{"rms_norm", 2 * row, 2 * row,
           [=, &gpu, &model](std::byte* at) {
             ops::rms_norm(gpu.context(), {view(at, rows, model.hidden), weight, model.hidden, 1e-5f,
                                           view(at + row, rows, model.hidden)});
           }},
          {"add_rms_norm", 3 * row, 4 * row,
           [=, &gpu, &model](std::byte* at) {
             const MatrixView residual = view(at, rows, model.hidden);
             ops::add_rms_norm(gpu.context(), {residual, view(at + row, rows, model.hidden), weight, 1e-5f, residual,
                                               view(at + 2 * row, rows, model.hidden)});
           }},
          {"rms_norm of q's heads", q, 2 * q, [=, &gpu, &model](std::byte* at) {
             const MatrixView heads = view(at, rows, model.heads * model.head_dim);
             ops::rms_norm(gpu.context(), {heads, weight, model.head_dim, 1e-5f, heads});
           }}};
}

std::vector<RowOp> cache_cases(Gpu& gpu, const Model& model, const Shared& shared, std::int64_t rows) {
  const auto head_dim = static_cast<std::int32_t>(model.head_dim);
  const std::int64_t q_cols = model.heads * model.head_dim, kv_cols = model.kv_heads * model.head_dim;
  const std::int64_t stride = q_cols + 2 * kv_cols;
  const KvCacheView cache{shared.kv.data(), static_cast<std::int32_t>(kMaxRows / kBlockSize),
                          kBlockSize,       static_cast<std::int32_t>(model.kv_heads),
                          head_dim,         kType};
  const auto part = [=](std::byte* at, std::int64_t from, std::int64_t cols) {
    return MatrixView{at + 2 * from, rows, cols, stride, kType};
  };
  const auto* indices = shared.indices.as<std::int32_t>();
  const auto rope = [=, &shared](const MatrixView& x) {
    return RopeParams{x,     indices, shared.table.as<float>(), static_cast<std::int32_t>(kMaxRows), head_dim, head_dim,
                      false, x};
  };
  const auto store = [=, &gpu](std::byte* at, const float* norm) {
    ops::rope_store_kv(gpu.context(), {rope(part(at, 0, q_cols)), rope(part(at, q_cols, kv_cols)),
                                       part(at, q_cols + kv_cols, kv_cols), indices, cache, norm, norm, 1e-6f});
  };
  const float* norm = shared.norm.as<float>();
  const std::int64_t row = stride * 2;
  return {{"rope_store_kv", rows * row, 2 * rows * row, [=](std::byte* at) { store(at, nullptr); }},
          {"rope_store_kv, norms", rows * row, 2 * rows * row, [=](std::byte* at) { store(at, norm); }}};
}

std::vector<RowOp> map_cases(Gpu& gpu, const Model& model, const Shared& shared, std::int64_t rows) {
  const std::int64_t row = rows * model.hidden * 2, ffn = rows * model.ffn * 2, logits = rows * model.vocab * 4;
  const auto* indices = shared.indices.as<std::int32_t>();
  std::vector<RowOp> cases = {
      {"embedding", row, 2 * row,
       [=, &gpu, &model, &shared](std::byte* at) {
         ops::embedding(gpu.context(), {indices, &shared.embeddings, view(at, rows, model.hidden), 1.0f});
       }},
      {"add", 3 * row, 3 * row,
       [=, &gpu, &model](std::byte* at) {
         ops::add(gpu.context(), {view(at, rows, model.hidden), view(at + row, rows, model.hidden),
                                  view(at + 2 * row, rows, model.hidden)});
       }},
      {"silu(gate) * up", 3 * ffn, 3 * ffn, [=, &gpu, &model](std::byte* at) {
         MatrixView gate = view(at, rows, model.ffn), up = gate;
         gate.row_stride = up.row_stride = 2 * model.ffn;
         up.data = at + 2 * model.ffn;
         ops::gated_activation(gpu.context(), {gate, up, Activation::kSilu, view(at + 2 * ffn, rows, model.ffn)});
       }}};
  if (rows <= 256)
    cases.push_back({"softcap of logits", 2 * logits, 2 * logits, [=, &gpu, &model](std::byte* at) {
                       ops::softcap(gpu.context(), {view(at, rows, model.vocab, DType::kFloat32), 30.0f,
                                                    view(at + logits, rows, model.vocab, DType::kFloat32)});
                     }});
  const auto num_rows = static_cast<std::int32_t>(rows);
  cases.push_back({"begin_step", 0, 48 * rows, [=, &gpu, &shared](std::byte*) {
                     const std::byte* staging = shared.staging.data();
                     gpu::begin_step(gpu.context(), {{staging, staging},
                                                     shared.zero.as<std::uint32_t>(),
                                                     shared.inputs.data(),
                                                     48 * rows,
                                                     0,
                                                     48 * rows,
                                                     48 * rows,
                                                     num_rows,
                                                     shared.tokens.as<std::int32_t>(),
                                                     shared.tokens.as<std::int32_t>(),
                                                     shared.tokens.as<std::int32_t>()});
                   }});
  return cases;
}

}  // namespace

int main(int num_arguments, char** arguments) {
  std::string reason;
  if (gpu::num_devices(&reason) == 0) {
    std::printf("no GPU: %s\n", reason.c_str());
    return 77;
  }
  bool json = false;
  std::string filter;
  for (int i = 1; i < num_arguments; ++i) {
    if (std::string_view(arguments[i]) == "--json")
      json = true;
    else
      filter = arguments[i];
  }
  Gpu gpu;
  Bench bench(gpu, json);
  for (const Model& model : kModels) {
    std::printf("%s\n", model.name);
    const Shared shared(gpu, model);
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{64}, std::int64_t{256}, kMaxRows}) {
      for (const auto& cases : {norm_cases(gpu, model, shared, rows), cache_cases(gpu, model, shared, rows),
                                map_cases(gpu, model, shared, rows)})
        for (const RowOp& op : cases)
          if (op.name.find(filter) != std::string::npos) bench.run(op, rows);
    }
  }
  return 0;
}
