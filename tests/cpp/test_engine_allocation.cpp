// SPDX-License-Identifier: Apache-2.0
// Between a step of the device and the next one the engine thread allocates no memory, while all sequences decode and
// nothing but tokens and their text is asked for: operator new is replaced by one that counts, thread by thread.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "engine/engine.h"

namespace {
thread_local long num_allocations = 0;
}

void* operator new(std::size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  ++num_allocations;
  const auto align = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(align, (size + align - 1) / align * align)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace paged {
namespace {

constexpr std::int32_t kSequences = 16;

struct Counts {
  std::atomic<long> before = 0;  // on the engine thread, of the first steps
  std::atomic<long> steady = 0;
  std::atomic<int> num_steps = 0;
};

// Samples the letter 'a' for whoever samples, and counts what is allocated from wait() to the next launch().
class CountingDevice final : public Executor {
 public:
  explicit CountingDevice(Counts& counts) : counts_(counts), tokens_(kSequences, 'a') {}

  std::int32_t vocab_size() const override { return 128; }
  std::int32_t max_steps_in_flight() const override { return 2; }
  ExtraOutputs extra_outputs() const override { return {}; }

  void launch(const StepInput& step) override {
    const bool is_steady = step.batch.num_decodes == kSequences;
    if (!is_steady || ++counts_.num_steps <= 2)
      counts_.before = num_allocations;
    else
      counts_.steady += num_allocations - at_wait_;
    num_rows_[num_launched_++ % 2] = static_cast<std::size_t>(step.batch.num_logits_rows);
  }
  std::span<const std::int32_t> wait() override {
    const std::size_t num_rows = num_rows_[num_awaited_++ % 2];
    at_wait_ = num_allocations;
    return std::span<const std::int32_t>(tokens_).first(num_rows);
  }

 private:
  Counts& counts_;
  std::vector<std::int32_t> tokens_;
  std::size_t num_rows_[2] = {};
  std::size_t num_launched_ = 0, num_awaited_ = 0;
  long at_wait_ = 0;
};

TEST(decoding_allocates_nothing_on_the_engine_thread) {
  Counts counts;
  std::string bytes(128, 'x');
  std::vector<std::int64_t> offsets;
  for (std::int64_t i = 0; i <= 128; ++i) offsets.push_back(i);
  Engine engine({.num_blocks = 2048,
                 .block_size = 4,
                 .max_num_sequences = kSequences,
                 .max_num_batched_tokens = 64,
                 .max_model_len = 512},
                std::make_unique<CountingDevice>(counts),
                std::make_shared<const TokenTable>(std::move(bytes), std::move(offsets), std::vector<bool>()));
  std::vector<std::shared_ptr<Request>> requests;
  engine.run_between_steps([&](Scheduler&) {  // so that all of them are there when the first step is made
    for (std::int32_t i = 0; i < kSequences; ++i) {
      RequestSpec spec;
      spec.prompt = {i, i, i, i, i};
      spec.sampling.max_tokens = 400;
      requests.push_back(engine.submit(std::move(spec)));
    }
  });
  for (const auto& request : requests) {
    CHECK(request->wait_finished_for(std::chrono::minutes(1)));
    CHECK_EQ(request->take().text, std::string(400, 'x'));
  }
  CHECK(counts.num_steps > 300, "hardly any step was counted");
  CHECK(counts.before > 0, "the count does not count");
  CHECK_EQ(counts.steady.load(), 0L);
}

}  // namespace
}  // namespace paged
