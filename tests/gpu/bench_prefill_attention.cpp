// SPDX-License-Identifier: Apache-2.0
// Causal prefill attention of Hopper's kernel: TFLOP/s with cold L2, random data and a shuffled block table.
//   bench_prefill_attention [--json] [--quick] [part of a case's name]
#include <cstdio>
#include <numeric>
#include <string>
#include <string_view>

#include "cuda/attention_paths.h"
#include "gpu_test.h"

namespace paged::test {
namespace {

struct BenchCase {
  int num_sequences, query_len, seq_len, head_dim, block_size, window;
  int num_heads = 32, num_kv_heads = 8;
};

// Normally distributed elements, repeated: large enough that no pattern shows, small enough to make on the host.
OnDevice random_elements(Gpu& gpu, std::int64_t count) {
  static const std::vector<std::byte> some =
      encode(Random(1).floats((8 << 20) + 24, DType::kBFloat16), DType::kBFloat16);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * 2);
  for (std::size_t at = 0; at < bytes.size(); at += some.size())
    std::memcpy(bytes.data() + at, some.data(), std::min(some.size(), bytes.size() - at));
  return {gpu, bytes};
}

double causal_flops(const BenchCase& c) {
  double keys = 0.0;
  for (int i = c.seq_len - c.query_len; i < c.seq_len; ++i) keys += c.window > 0 ? std::min(i + 1, c.window) : i + 1;
  return 4.0 * keys * c.head_dim * c.num_heads * c.num_sequences;
}

class Bench {
 public:
  Bench(Gpu& gpu, const BenchCase& c)
      : gpu_(gpu),
        c_(c),
        blocks_each_((c.seq_len + c.block_size - 1) / c.block_size),
        num_blocks_(blocks_each_ * c.num_sequences),
        tables_(gpu, shuffled_tables()),
        starts_(gpu, ramp(c.num_sequences + 1, c.query_len)),
        lens_(gpu, std::vector<std::int32_t>(static_cast<std::size_t>(c.num_sequences), c.seq_len)),
        rows_(gpu, ramp(c.num_sequences, 1)),
        decode_(gpu, std::vector<std::int32_t>(static_cast<std::size_t>(c.num_sequences), 0)),
        q_(random_elements(gpu, width() * c.num_sequences * c.query_len)),
        out_(OnDevice::poisoned(gpu, width() * c.num_sequences * c.query_len * 2)),
        cache_(random_elements(gpu, std::int64_t{2} * num_blocks_ * c.num_kv_heads * c.block_size * c.head_dim)),
        shape_{c.num_heads, c.num_kv_heads, c.head_dim, c.block_size, DType::kBFloat16},
        limits_{shape_, c.num_sequences * c.query_len, c.num_sequences, c.seq_len},
        plan_(OnDevice::poisoned(gpu, kernel().plan_bytes(gpu.gpu, limits_))),
        workspace_(OnDevice::poisoned(gpu, kernel().workspace_bytes(gpu.gpu, limits_))) {
    view_.num_tokens = c.num_sequences * c.query_len;
    view_.num_sequences = c.num_sequences;
    view_.query_start = starts_.as<std::int32_t>();
    view_.seq_lens = lens_.as<std::int32_t>();
    view_.block_table_rows = rows_.as<std::int32_t>();
    view_.is_decode = decode_.as<std::int32_t>();
    view_.block_tables = tables_.as<std::int32_t>();
    view_.block_table_stride = blocks_each_;
  }

  // Median seconds, L2 flushed before each.
  double seconds(int repeats) {
    gpu::DeviceBuffer flush(256 << 20);
    std::vector<double> times;
    for (int i = 0; i < repeats + 2; ++i) {
      kernel().plan(gpu_.context(), {&view_, &limits_, c_.window, plan_.data()});
      gpu::fill_zero(flush.data(), flush.num_bytes(), gpu_.gpu.stream);
      gpu::Event begin(true), end(true);
      begin.record(gpu_.gpu.stream);
      run();
      end.record(gpu_.gpu.stream);
      end.synchronize();
      if (i >= 2) times.push_back(end.seconds_since(begin));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  static const gpu::FastAttention& kernel() { return *gpu::prefill_attention_sm90(); }
  std::int64_t width() const { return std::int64_t{c_.num_heads} * c_.head_dim; }
  static std::vector<std::int32_t> ramp(int count, int step) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(i) * step;
    return values;
  }
  std::vector<std::int32_t> shuffled_tables() const {
    std::vector<std::int32_t> ids = ramp(num_blocks_, 1);
    std::mt19937 engine(7);
    std::shuffle(ids.begin(), ids.end(), engine);
    return ids;
  }

  void run() {
    const std::int64_t rows = view_.num_tokens;
    kernel().run(gpu_.context(),
                 {.q = {q_.data(), rows, width(), width(), DType::kBFloat16},
                  .cache = {cache_.data(), num_blocks_, c_.block_size, c_.num_kv_heads, c_.head_dim, DType::kBFloat16},
                  .batch = &view_,
                  .num_heads = c_.num_heads,
                  .window = c_.window,
                  .scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim)),
                  .softcap = 0.0f,
                  .sinks = nullptr,
                  .workspace = workspace_.data(),
                  .out = {out_.data(), rows, width(), width(), DType::kBFloat16},
                  .limits = &limits_,
                  .plan = plan_.data()});
  }

  Gpu& gpu_;
  BenchCase c_;
  int blocks_each_, num_blocks_;
  OnDevice tables_, starts_, lens_, rows_, decode_, q_, out_, cache_;
  AttentionShape shape_;
  AttentionLimits limits_;
  OnDevice plan_, workspace_;
  BatchView view_;
};

}  // namespace
}  // namespace paged::test

int main(int num_arguments, char** arguments) {
  using namespace paged::test;
  bool json = false, quick = false;
  std::string_view filter;
  for (int i = 1; i < num_arguments; ++i) {
    json |= std::string_view(arguments[i]) == "--json";
    quick |= std::string_view(arguments[i]) == "--quick";
    if (arguments[i][0] != '-') filter = arguments[i];
  }
  Gpu gpu;
  if (gpu.gpu.compute_capability != 90) {
    std::printf("skipped: not Hopper\n");
    return 0;
  }
  // Dense 16-bit products at the boost clock: 989 TFLOP/s on 132 multiprocessors.
  const double peak = 989.4 / 132 * gpu.gpu.num_multiprocessors;
  std::vector<BenchCase> cases = {{1, 2048, 2048, 128, 64, 0}, {1, 8192, 8192, 128, 64, 0},
                                  {1, 8192, 8192, 128, 16, 0}, {4, 4096, 4096, 128, 64, 0},
                                  {4, 4096, 4096, 128, 16, 0}, {1, 32768, 32768, 128, 64, 0}};
  if (!quick)
    cases.insert(cases.end(), {{1, 8192, 8192, 128, 32, 0},
                               {16, 512, 512, 128, 64, 0},
                               {64, 128, 128, 128, 64, 0},
                               {1, 2048, 32768, 128, 64, 0},
                               {1, 128, 32768, 128, 64, 0},
                               {1, 128, 8192, 128, 64, 0},
                               {4, 32, 32768, 128, 64, 0},
                               {1, 16384, 16384, 128, 64, 4096},
                               {1, 8192, 8192, 64, 64, 0},
                               {4, 4096, 4096, 64, 64, 0},
                               {1, 8192, 8192, 96, 64, 0},
                               {1, 8192, 8192, 256, 64, 0, 16, 8},
                               {1, 8192, 8192, 128, 64, 0, 16, 16},
                               {1, 8192, 8192, 128, 64, 0, 16, 2}});
  for (const BenchCase& c : cases) {
    char name[160];
    std::snprintf(name, sizeof(name), "%dx%d of %d, %d/%d heads of %d, block %d, window %d", c.num_sequences,
                  c.query_len, c.seq_len, c.num_heads, c.num_kv_heads, c.head_dim, c.block_size, c.window);
    if (std::string_view(name).find(filter) == std::string_view::npos) continue;
    const double seconds = Bench(gpu, c).seconds(quick ? 9 : 15);
    const double rate = causal_flops(c) / seconds * 1e-12;
    if (json)
      std::printf(
          "{\"bench\": \"prefill_attention\", \"case\": \"%s\", \"engine\": \"paged\", \"metric\": \"rate\", "
          "\"value\": %.1f, \"unit\": \"TFLOP/s\", \"reference\": %.1f, \"ratio\": %.3f}\n",
          name, rate, peak, rate / peak);
    else
      std::printf("%-56s %9.1f us %7.1f TFLOP/s %5.1f %% of peak\n", name, seconds * 1e6, rate, 100 * rate / peak);
  }
}
