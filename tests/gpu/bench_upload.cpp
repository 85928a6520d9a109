// SPDX-License-Identifier: Apache-2.0
// How fast weights reach the device: layers of the 8B shape in bfloat16 from memory, as a checkpoint's mapped pages lie
// there, beside plain copies of the same bytes. Usage: bench_upload [--json]
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/device_matrix.h"
#include "gpu_test.h"

namespace {

using namespace paged;
using namespace paged::test;

constexpr std::int64_t kShapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
constexpr int kLayers = 4;

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print(bool json, const std::string& name, double bytes, double seconds, double limit) {
  if (json)
    std::printf(
        "{\"bench\": \"upload\", \"case\": \"%s\", \"engine\": \"paged\", \"metric\": \"rate\", \"value\": %.2f, "
        "\"unit\": \"GB/s\", \"reference\": %.2f, \"ratio\": %.3f}\n",
        name.c_str(), bytes / seconds * 1e-9, limit * 1e-9, bytes / seconds / limit);
  else
    std::printf("%-32s %7.2f GB/s  %.2f of the pinned copy rate\n", name.c_str(), bytes / seconds * 1e-9,
                bytes / seconds / limit);
}

}  // namespace

int main(int num_arguments, char** arguments) {
  std::string reason;
  if (gpu::num_devices(&reason) == 0) {
    std::printf("no GPU: %s\n", reason.c_str());
    return 77;
  }
  const bool json = num_arguments > 1 && std::string_view(arguments[1]) == "--json";
  Gpu gpu;
  std::int64_t num_bytes = 0;
  for (const auto& [rows, cols] : kShapes) num_bytes += kLayers * rows * cols * 2;
  const std::vector<std::byte> weights(static_cast<std::size_t>(num_bytes), std::byte{0x3f});

  constexpr std::int64_t kPinnedBytes = 256 << 20;
  const gpu::DeviceBuffer target(num_bytes);
  double limit = 0.0;
  {
    const gpu::PinnedBuffer pinned(kPinnedBytes);
    limit = kPinnedBytes / seconds_of([&] {
              gpu::copy_to_device(target.data(), pinned.data(), kPinnedBytes, gpu.gpu.stream);
              gpu::synchronize(gpu.gpu.stream);
            });
  }
  std::printf("pinned copy %.2f GB/s, %.2f GB of weights\n", limit * 1e-9, static_cast<double>(num_bytes) * 1e-9);
  for (const std::int64_t megabytes : {1, 4, 16, 64})
    std::printf("allocating %lld MB of pinned memory: %.2f ms\n", static_cast<long long>(megabytes),
                1e3 * seconds_of([&] { const gpu::PinnedBuffer pinned(megabytes << 20); }));
  print(json, "plain copy of pageable memory", static_cast<double>(num_bytes), seconds_of([&] {
          gpu::copy_to_device(target.data(), weights.data(), num_bytes, gpu.gpu.stream);
          gpu::synchronize(gpu.gpu.stream);
        }),
        limit);
  for (const int num_threads : {1, 2, 4, 8, 16}) {
    ThreadPool threads(num_threads);
    std::vector<WeightMatrixPtr> matrices;
    const double seconds = seconds_of([&] {
      const std::byte* at = weights.data();
      for (int layer = 0; layer < kLayers; ++layer) {
        for (const auto& [rows, cols] : kShapes) {
          const WeightSource source{at, rows * cols * 2, rows, cols, WeightType::kBFloat16, nullptr};
          matrices.push_back(gpu::upload_matrix({&source, 1}, DType::kBFloat16, threads));
          at += rows * cols * 2;
        }
      }
    });
    print(json, "upload_matrix, " + std::to_string(num_threads) + " threads", static_cast<double>(num_bytes), seconds,
          limit);
  }
  return 0;
}
