// SPDX-License-Identifier: Apache-2.0
// Attention of generated tokens: time of one call inside a graph of calls, each over a KV cache of its own, larger
// together than L2 by far. Random data, shuffled blocks. The limit is the device's copy rate, measured here.
//   bench_decode_attention [--json] [part of a case's name]
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>

#include "copy_rate.h"
#include "cuda/attention_paths.h"
#include "gpu_test.h"

namespace paged::test {
namespace {

struct BenchCase {
  std::string name;
  std::vector<int> lengths;
  int num_heads = 32, num_kv_heads = 8, head_dim = 128, block_size = 64, window = 0;

  std::int64_t bytes() const {  // of K and V that are read
    std::int64_t tokens = 0;
    for (const int length : lengths) tokens += window > 0 ? std::min(length, window) : length;
    return tokens * num_kv_heads * head_dim * 4;
  }
};

double seconds_of(Gpu& gpu, const std::function<void()>& body, int repeats) {
  const gpu::Graph graph = gpu::Graph::capture(gpu.gpu.stream, body);
  std::vector<double> seconds;
  for (int i = 0; i < repeats + 2; ++i) {
    gpu::Event start(true), end(true);
    start.record(gpu.gpu.stream);
    graph.launch(gpu.gpu.stream);
    end.record(gpu.gpu.stream);
    end.synchronize();
    if (i >= 2) seconds.push_back(end.seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Normally distributed elements, repeated from a block that the host makes.
void fill_random(Gpu& gpu, std::byte* to, std::int64_t num_bytes) {
  constexpr std::int64_t kBlock = 8 << 20;
  static const std::vector<std::byte> some = encode(Random(1).floats(kBlock / 2, DType::kBFloat16), DType::kBFloat16);
  for (std::int64_t at = 0; at < num_bytes; at += kBlock) {
    const std::int64_t count = std::min(kBlock, num_bytes - at);
    at == 0 ? gpu::copy_to_device(to, some.data(), count, gpu.gpu.stream)
            : gpu::copy_on_device(to + at, to, count, gpu.gpu.stream);
  }
  gpu::synchronize(gpu.gpu.stream);
}

struct Times {
  double run, plan;  // seconds of one call
};

class Bench {
 public:
  Bench(Gpu& gpu, gpu::DeviceBuffer& caches, const BenchCase& c)
      : gpu_(gpu),
        caches_(caches),
        c_(c),
        shape_{c.num_heads, c.num_kv_heads, c.head_dim, c.block_size, DType::kBFloat16},
        stride_((*std::max_element(c.lengths.begin(), c.lengths.end()) + c.block_size - 1) / c.block_size) {
    const auto n = static_cast<std::int32_t>(c.lengths.size());
    limits_ = {shape_, n, n, stride_ * c.block_size};
    for (const int length : c.lengths) num_blocks_ += (length + c.block_size - 1) / c.block_size;
    layer_bytes_ = std::int64_t{num_blocks_} * c.num_kv_heads * c.block_size * c.head_dim * 4;
    num_layers_ = static_cast<int>(std::clamp<std::int64_t>(caches.num_bytes() / layer_bytes_, 1, 32));
  }

  Times measure() {
    const auto n = static_cast<std::int32_t>(c_.lengths.size());
    std::vector<std::int32_t> ramp(static_cast<std::size_t>(n + 1));
    std::iota(ramp.begin(), ramp.end(), 0);
    const OnDevice starts(gpu_, ramp), lens(gpu_, c_.lengths), block_tables(gpu_, shuffled_tables());
    const OnDevice decodes(gpu_, std::vector<std::int32_t>(static_cast<std::size_t>(n), 1));
    BatchView view;
    view.num_tokens = view.num_sequences = view.num_decodes = n;
    view.query_start = view.block_table_rows = starts.as<std::int32_t>();
    view.seq_lens = lens.as<std::int32_t>();
    view.is_decode = decodes.as<std::int32_t>();
    view.block_tables = block_tables.as<std::int32_t>();
    view.block_table_stride = stride_;
    const gpu::FastAttention& kernel = *gpu::mma_decode_attention();
    const gpu::DeviceBuffer plan(kernel.plan_bytes(gpu_.gpu, limits_));
    const gpu::DeviceBuffer workspace(kernel.workspace_bytes(gpu_.gpu, limits_));
    const std::int64_t cols = std::int64_t{c_.num_heads} * c_.head_dim;
    const gpu::DeviceBuffer q(n * cols * 2), out(n * cols * 2);
    fill_random(gpu_, q.data(), q.num_bytes());
    const auto make_plan = [&] { kernel.plan(gpu_.context(), {&view, &limits_, c_.window, plan.data()}); };
    const auto run = [&](int layer) {
      kernel.run(gpu_.context(), {.q = {q.data(), n, cols, cols, DType::kBFloat16},
                                  .cache = {caches_.data() + layer * layer_bytes_, num_blocks_, c_.block_size,
                                            c_.num_kv_heads, c_.head_dim, DType::kBFloat16},
                                  .batch = &view,
                                  .num_heads = c_.num_heads,
                                  .window = c_.window,
                                  .scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim)),
                                  .softcap = 0.0f,
                                  .sinks = nullptr,
                                  .workspace = workspace.data(),
                                  .out = {out.data(), n, cols, cols, DType::kBFloat16},
                                  .limits = &limits_,
                                  .plan = plan.data()});
    };
    make_plan();
    run(0);
    gpu::synchronize(gpu_.gpu.stream);
    const auto repeat = [](int count, const auto& call) {
      return [count, &call] {
        for (int i = 0; i < count; ++i) call(i);
      };
    };
    const double plans = seconds_of(gpu_, repeat(16, [&](int) { make_plan(); }), 5);
    return {seconds_of(gpu_, repeat(num_layers_, run), 5) / num_layers_, plans / 16};
  }

 private:
  std::vector<std::int32_t> shuffled_tables() const {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(num_blocks_));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(7));
    std::vector<std::int32_t> tables;
    std::size_t next = 0;
    for (const int length : c_.lengths) {
      for (int b = 0; b < stride_; ++b) tables.push_back(b * c_.block_size < length ? ids[next++] : -1);
    }
    return tables;
  }

  Gpu& gpu_;
  gpu::DeviceBuffer& caches_;
  BenchCase c_;
  AttentionShape shape_;
  AttentionLimits limits_;
  std::int32_t stride_, num_blocks_ = 0;
  std::int64_t layer_bytes_;
  int num_layers_;
};

std::vector<int> uniform(int count, int length) { return std::vector<int>(static_cast<std::size_t>(count), length); }

// As many tokens as `count` sequences of `length`, in lengths from length / 8 to 15/8 length; or one long among short.
std::vector<int> ragged(int count, int length) {
  std::vector<int> lengths;
  Random random(4);
  for (int i = 0; i < count / 2; ++i) {
    const int less = random.below(length * 7 / 8);
    lengths.push_back(length - less);
    lengths.push_back(length + less);
  }
  std::shuffle(lengths.begin(), lengths.end(), std::mt19937(3));
  return lengths;
}
std::vector<int> skewed(int count, int length) {
  std::vector<int> lengths = uniform(count, length / 4);
  lengths[0] = length * count - (count - 1) * (length / 4);
  return lengths;
}

std::vector<BenchCase> bench_cases() {
  std::vector<BenchCase> all;
  for (const auto& [count, length] : {std::pair{1, 200},
                                      {1, 384},
                                      {1, 1024},
                                      {1, 4096},
                                      {1, 32768},
                                      {8, 1024},
                                      {8, 4096},
                                      {32, 1024},
                                      {64, 576},
                                      {64, 2048},
                                      {64, 4096},
                                      {128, 2048},
                                      {256, 1024},
                                      {16, 32768}})
    all.push_back({std::to_string(count) + "x" + std::to_string(length), uniform(count, length)});
  for (const int block_size : {16, 32}) {
    const std::string block = " block " + std::to_string(block_size);
    all.push_back({"8x4096" + block, uniform(8, 4096), 32, 8, 128, block_size});
    all.push_back({"64x4096" + block, uniform(64, 4096), 32, 8, 128, block_size});
  }
  all.push_back({"8x4096 ragged", ragged(8, 4096)});
  all.push_back({"64x4096 ragged", ragged(64, 4096)});
  all.push_back({"256x1024 ragged", ragged(256, 1024)});
  all.push_back({"64x2048 one long", skewed(64, 2048)});
  for (const auto& [heads, kv_heads, dim] :
       {std::tuple{40, 8, 128}, {16, 8, 128}, {32, 8, 64}, {32, 8, 96}, {16, 8, 256}, {32, 32, 128}, {64, 8, 128}}) {
    const std::string name =
        std::string(" ") + std::to_string(heads) + "/" + std::to_string(kv_heads) + "x" + std::to_string(dim);
    for (const auto& [count, length] : {std::pair{1, 1024}, {8, 4096}, {64, 2048}, {256, 512}})
      all.push_back(
          {std::to_string(count) + "x" + std::to_string(length) + name, uniform(count, length), heads, kv_heads, dim});
  }
  all.push_back({"64x4096 window 1024", uniform(64, 4096), 32, 8, 128, 64, 1024});
  return all;
}

}  // namespace
}  // namespace paged::test

int main(int num_arguments, char** arguments) {
  using namespace paged;
  using namespace paged::test;
  bool json = false;
  std::string_view filter;
  for (int i = 1; i < num_arguments; ++i) {
    if (std::string_view(arguments[i]) == "--json")
      json = true;
    else
      filter = arguments[i];
  }
  Gpu gpu;
  const AttentionShape shape{32, 8, 128, 64, DType::kBFloat16};
  if (gpu.gpu.compute_capability == 0 || !gpu::mma_decode_attention()->takes(gpu.gpu, shape)) {
    std::printf("skipped: no NVIDIA GPU\n");
    return 0;
  }
  const double limit = copy_rate(gpu);
  if (!json) std::printf("device copy %.0f GB/s (read and write)\n", limit * 1e-9);
  gpu::DeviceBuffer caches(std::int64_t{9} << 30);
  fill_random(gpu, caches.data(), caches.num_bytes());
  for (const BenchCase& c : bench_cases()) {
    if (c.name.find(filter) == std::string::npos) continue;
    const Times times = Bench(gpu, caches, c).measure();
    const double rate = static_cast<double>(c.bytes()) / times.run;
    if (json)
      std::printf(
          "{\"bench\": \"decode_attention\", \"case\": \"%s\", \"engine\": \"paged\", \"metric\": \"read rate\", "
          "\"value\": %.1f, \"unit\": \"GB/s\", \"reference\": %.1f, \"ratio\": %.4f}\n",
          c.name.c_str(), rate * 1e-9, limit * 1e-9, rate / limit);
    else
      std::printf("%-24s %8.1f us %6.0f GB/s %5.1f %%  plan %.1f us\n", c.name.c_str(), times.run * 1e6, rate * 1e-9,
                  100.0 * rate / limit, times.plan * 1e6);
  }
  return 0;
}
