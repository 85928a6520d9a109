// SPDX-License-Identifier: Apache-2.0
// Sampling: microseconds a launch, in a graph of launches over different logits that together are larger than the L2.
// The limit is the time to read the logits once at the device's copy rate, measured here.
// Usage: bench_sample [--json] [vocabulary]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "copy_rate.h"
#include "gpu_test.h"

namespace {

using namespace paged;
using namespace paged::test;

struct BenchCase {
  const char* name;
  SamplingRow how;
  float scale;  // of normally distributed logits: 1 is flat, 4 is as peaked as a language model's
};
constexpr BenchCase kCases[] = {
    {"greedy", {}, 4.0f},
    {"temperature", {.temperature = 0.7f}, 4.0f},
    {"top_k 50", {.temperature = 0.7f, .top_k = 50}, 4.0f},
    {"top_k 50, top_p 0.9", {.temperature = 0.7f, .top_p = 0.9f, .top_k = 50}, 4.0f},
    {"top_k 50, top_p 0.9, flat", {.temperature = 0.7f, .top_p = 0.9f, .top_k = 50}, 1.0f},
    {"top_k 1000", {.temperature = 0.7f, .top_k = 1000}, 4.0f},
    {"top_p 0.9", {.temperature = 0.7f, .top_p = 0.9f}, 4.0f},
    {"top_p 0.9, less peaked", {.temperature = 0.7f, .top_p = 0.9f}, 2.0f},
    {"top_p 0.9, flat", {.temperature = 0.7f, .top_p = 0.9f}, 1.0f},
};
constexpr int kRows[] = {1, 16, 64, 256};
constexpr std::int64_t kColdBytes = 160 << 20;

// Seconds of one of the `count` launches that the body enqueues.
double seconds_of(Gpu& gpu, int count, const std::function<void()>& body) {
  const gpu::Graph graph = gpu::Graph::capture(gpu.gpu.stream, body);
  std::vector<double> seconds;
  for (int i = 0; i < 9; ++i) {
    gpu::Event start(true), end(true);
    start.record(gpu.gpu.stream);
    graph.launch(gpu.gpu.stream);
    end.record(gpu.gpu.stream);
    end.synchronize();
    seconds.push_back(end.seconds_since(start) / count);
  }
  std::sort(seconds.begin() + 1, seconds.end());
  return seconds[1 + (seconds.size() - 1) / 2];
}

// Row after row of different normal logits, made of a few random stretches.
void fill_logits(Gpu& gpu, std::byte* to, std::int64_t count, float scale) {
  constexpr std::int64_t kStretch = 999983;
  static const std::vector<float> normal = Random(5).floats(kStretch);
  std::vector<float> scaled(normal);
  for (float& value : scaled) value *= scale;
  for (std::int64_t at = 0; at < count; at += kStretch)
    gpu::copy_to_device(to + 4 * at, scaled.data(), 4 * std::min(kStretch, count - at), gpu.gpu.stream);
  gpu::synchronize(gpu.gpu.stream);
}

double seconds_of_case(Gpu& gpu, const BenchCase& what, std::int64_t rows, std::int64_t vocab, bool cold) {
  const int copies = cold ? static_cast<int>(kColdBytes / (4 * rows * vocab)) + 2 : 1;
  const gpu::DeviceBuffer logits(4 * rows * vocab * copies);
  fill_logits(gpu, logits.data(), rows * vocab * copies, what.scale);
  std::vector<SamplingRow> how(static_cast<std::size_t>(rows), what.how);
  for (std::size_t i = 0; i < how.size(); ++i) how[i].seed = i;
  const OnDevice how_there(gpu, std::as_bytes(std::span(how)));
  const OnDevice workspace = OnDevice::poisoned(gpu, gpu::sample_workspace_bytes(gpu.gpu, rows, vocab));
  const OnDevice tokens = OnDevice::poisoned(gpu, 4 * rows);
  constexpr int kLeast = 20;
  const int count = std::max(copies, kLeast);
  return seconds_of(gpu, count, [&] {
    for (int i = 0; i < count; ++i)
      ops::sample(gpu.context(),
                  {{logits.data() + 4 * rows * vocab * (i % copies), rows, vocab, vocab, DType::kFloat32},
                   how_there.as<SamplingRow>(),
                   workspace.data(),
                   tokens.as<std::int32_t>(),
                   nullptr,
                   nullptr});
  });
}

}  // namespace

int main(int num_arguments, char** arguments) {
  bool json = false;
  std::int64_t vocab = 128256;
  for (int i = 1; i < num_arguments; ++i) {
    if (std::string_view(arguments[i]) == "--json")
      json = true;
    else
      vocab = std::stoll(arguments[i]);
  }
  Gpu gpu;
  const double rate = copy_rate(gpu);
  if (!json)
    std::printf("vocabulary %ld, copy rate %.0f GB/s\n%-28s %5s %9s %9s %9s\n", static_cast<long>(vocab), rate * 1e-9,
                "case", "rows", "us", "warm us", "limit us");
  for (const BenchCase& what : kCases)
    for (int rows : kRows) {
      const double limit = 4.0 * rows * static_cast<double>(vocab) / rate;
      const double seconds = seconds_of_case(gpu, what, rows, vocab, true);
      if (json) {
        std::printf(
            "{\"bench\": \"sample\", \"case\": \"%s, %d x %ld\", \"engine\": \"paged\", \"metric\": \"time\", "
            "\"value\": %.2f, \"unit\": \"us\", \"reference\": %.2f, \"ratio\": %.3f}\n",
            what.name, rows, static_cast<long>(vocab), seconds * 1e6, limit * 1e6, seconds / limit);
        continue;
      }
      std::printf("%-28s %5d %9.2f %9.2f %9.2f\n", what.name, rows, seconds * 1e6,
                  seconds_of_case(gpu, what, rows, vocab, false) * 1e6, limit * 1e6);
      std::fflush(stdout);
    }
  return 0;
}
