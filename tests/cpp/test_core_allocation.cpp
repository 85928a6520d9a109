// SPDX-License-Identifier: Apache-2.0
// Decoding allocates no memory: operator new is replaced by one that counts.
#include <cstdlib>
#include <new>
#include <vector>

#include "check.h"
#include "core/scheduler.h"

namespace {
long num_allocations = 0;
}

void* operator new(std::size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace paged {
namespace {

void check_that_decoding_allocates_nothing(std::int32_t max_steps_in_flight) {
  Scheduler scheduler({.num_blocks = 1024,
                       .block_size = 4,
                       .max_num_sequences = 16,
                       .max_num_batched_tokens = 64,
                       .max_model_len = 512,
                       .max_steps_in_flight = max_steps_in_flight});
  for (SequenceId id = 0; id < 16; ++id) scheduler.add({.id = id, .prompt = std::vector<TokenId>(10, 3)});
  std::vector<TokenId> sampled;
  std::vector<TokenEvent> events;
  sampled.reserve(16);
  events.reserve(16);
  std::vector<const StepPlan*> in_flight;  // the oldest first
  in_flight.reserve(static_cast<std::size_t>(max_steps_in_flight));
  long after_prefill = 0;
  for (int step = 0; step < 200; ++step) {
    if (step == 10) after_prefill = num_allocations;
    while (std::ssize(in_flight) < max_steps_in_flight) {
      in_flight.push_back(&scheduler.schedule());
      scheduler.build_batch(*in_flight.back());
    }
    sampled.assign(static_cast<std::size_t>(in_flight.front()->num_logits_rows), step % 50);
    events.clear();
    scheduler.commit(*in_flight.front(), sampled, events);
    in_flight.erase(in_flight.begin());
  }
  CHECK_EQ(events.size(), 16u);
  CHECK_EQ(num_allocations - after_prefill, 0);
  CHECK(after_prefill > 0, "the count does not count");
}

TEST(decoding_allocates_nothing) {
  check_that_decoding_allocates_nothing(1);
  check_that_decoding_allocates_nothing(2);
}

}  // namespace
}  // namespace paged
