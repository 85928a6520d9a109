// SPDX-License-Identifier: Apache-2.0
// How a step's inputs reach the device and its sampled tokens the host.
#include <cstring>
#include <vector>

#include "gpu/runtime.h"
#include "gpu_test.h"

namespace paged::test {
namespace {

constexpr std::int32_t kTokens = 700, kMaxChanges = 1500;
constexpr std::int64_t kTokensAt = 64, kCountAt = 4096, kChangesAt = 4112;  // bytes

// What the host writes for a step: a ramp of bytes, tokens of which every fifth was sampled, changes of the tables.
void write_staging(std::byte* staging, int step, std::int32_t num_changes) {
  for (std::int64_t i = 0; i < kCountAt; ++i) staging[i] = static_cast<std::byte>(i * 3 + step);
  for (std::int32_t i = 0; i < kTokens; ++i) {
    const std::int32_t token = i % 5 == 0 ? -1 - i % 4 : i + step;
    std::memcpy(staging + kTokensAt + 4 * i, &token, 4);
  }
  std::memcpy(staging + kCountAt, &num_changes, 4);
  for (std::int32_t i = 0; i < kMaxChanges; ++i) {
    const std::int32_t change[2] = {1999 - i, i + step};
    std::memcpy(staging + kChangesAt + 8 * i, change, 8);
  }
}

TEST(a_step_takes_its_own_inputs_and_leaves_its_own_results) {
  Gpu gpu;
  std::vector<gpu::PinnedBuffer> staging, results;
  for (int i = 0; i < 2; ++i) {
    staging.emplace_back(kChangesAt + 8 * kMaxChanges);
    results.emplace_back(4 * kTokens);
  }
  // Row 3 sampled from logits that are no numbers.
  const std::vector<std::int32_t> last = {100, 101, 102, -1};
  std::vector<std::int32_t> sampled, tables(2000, -7);
  for (std::int32_t i = 0; i < kTokens; ++i) sampled.push_back(i * 11);
  const OnDevice device_last(gpu, last), device_sampled(gpu, sampled), device_tables(gpu, tables);
  const OnDevice num_steps(gpu, std::vector<std::int32_t>{0});
  const gpu::PinnedBuffer finished(sizeof(std::uint32_t));
  for (int step = 0; step < 5; ++step) {
    const std::int32_t num_changes = std::vector{0, 1, kMaxChanges, 300, 0}[static_cast<std::size_t>(step)];
    const auto own = static_cast<std::size_t>(step % 2);
    write_staging(staging[own].data(), step, num_changes);
    const OnDevice inputs = OnDevice::poisoned(gpu, kCountAt), tokens = OnDevice::poisoned(gpu, 4 * kTokens);
    gpu::begin_step(gpu.context(), {.staging = {staging[0].data(), staging[1].data()},
                                    .num_steps = num_steps.as<std::uint32_t>(),
                                    .inputs = inputs.as<std::byte>(),
                                    .num_bytes = kCountAt,
                                    .staged_token_ids = kTokensAt,
                                    .num_table_changes = kCountAt,
                                    .table_changes = kChangesAt,
                                    .num_tokens = kTokens,
                                    .last_tokens = device_last.as<std::int32_t>(),
                                    .token_ids = tokens.as<std::int32_t>(),
                                    .block_tables = device_tables.as<std::int32_t>()});
    const std::int32_t num_sampled = kTokens - 50 * step;
    gpu::end_step(gpu.context(), {device_sampled.as<std::int32_t>(),
                                  num_sampled,
                                  {reinterpret_cast<std::int32_t*>(results[0].data()),
                                   reinterpret_cast<std::int32_t*>(results[1].data())},
                                  num_steps.as<std::uint32_t>(),
                                  reinterpret_cast<std::uint32_t*>(finished.data())});
    const std::vector<std::int32_t> counted = num_steps.ints();
    CHECK_EQ(counted[0], step + 1);
    CHECK_EQ(*reinterpret_cast<const std::int32_t*>(finished.data()), step + 1);
    for (std::int32_t i = 0; i < num_changes; ++i) tables[static_cast<std::size_t>(1999 - i)] = i + step;
    CHECK(device_tables.ints() == tables, num_changes, " changes");
    const std::vector<std::int32_t> taken = tokens.ints(), copied = inputs.ints();
    for (std::int32_t i = 0; i < kTokens; ++i) {
      const std::int32_t wanted = i % 5 != 0 ? i + step : i % 4 == 3 ? 0 : 100 + i % 4;
      CHECK_EQ(taken[static_cast<std::size_t>(i)], wanted, "token ", i);
    }
    CHECK(std::memcmp(copied.data(), staging[own].data(), kCountAt) == 0, "step ", step);
    CHECK(std::memcmp(results[own].data(), sampled.data(), 4 * static_cast<std::size_t>(num_sampled)) == 0);
  }
}

}  // namespace
}  // namespace paged::test
