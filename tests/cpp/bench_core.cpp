// SPDX-License-Identifier: Apache-2.0
// Host time of one step around the model: schedule + build_batch (the budget of docs/design.md), and commit, for 1 and
// 256 decoding sequences, with one step in flight and with two; medians over the steps. A table, or with --json one
// object a line.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "core/scheduler.h"

namespace paged {
namespace {

using Clock = std::chrono::steady_clock;

struct StepTimes {
  std::vector<double> schedule_and_build;  // microseconds, one for each step
  std::vector<double> commit;
};

double microseconds(Clock::duration duration) { return std::chrono::duration<double, std::micro>(duration).count(); }

double quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(fraction * static_cast<double>(values.size() - 1))];
}

// Prompts of 128 tokens that share nothing, so that every block filled on the way is hashed and cached.
StepTimes measure_decoding(std::int32_t num_sequences, std::int32_t max_steps_in_flight, int num_steps) {
  constexpr int kWarmUpSteps = 300;  // prefills included
  const std::int32_t max_len = 128 + kWarmUpSteps + num_steps + 1;
  Scheduler scheduler({.num_blocks = num_sequences * (max_len / 16 + 2),
                       .block_size = 16,
                       .max_num_sequences = num_sequences,
                       .max_num_batched_tokens = 2048,
                       .max_model_len = max_len,
                       .max_steps_in_flight = max_steps_in_flight});
  for (std::int32_t id = 0; id < num_sequences; ++id)
    scheduler.add({.id = static_cast<SequenceId>(id), .prompt = std::vector<TokenId>(128, id)});
  StepTimes times;
  std::vector<TokenId> sampled;
  std::vector<TokenEvent> events;
  std::deque<const StepPlan*> in_flight;
  for (int step = 0; step < kWarmUpSteps + num_steps; ++step) {
    const auto start = Clock::now();
    const StepPlan& plan = scheduler.schedule();
    const StepBatch& batch = scheduler.build_batch(plan);
    const auto built = Clock::now();
    in_flight.push_back(&plan);
    if (scheduler.num_steps_in_flight() < max_steps_in_flight) continue;
    sampled.assign(static_cast<std::size_t>(in_flight.front()->num_logits_rows), step % 1000);
    events.clear();
    const auto sampled_at = Clock::now();
    scheduler.commit(*in_flight.front(), sampled, events);
    const auto committed = Clock::now();
    in_flight.pop_front();
    if (step < kWarmUpSteps) continue;
    if (batch.num_tokens != num_sequences) throw std::logic_error("not every sequence decodes in every step");
    times.schedule_and_build.push_back(microseconds(built - start));
    times.commit.push_back(microseconds(committed - sampled_at));
  }
  return times;
}

struct Result {
  std::int32_t num_sequences;
  std::int32_t max_steps_in_flight;
  const char* metric;
  const std::vector<double>& times;
  double budget;  // 0: none is set
};

void print(const Result& result, bool as_json) {
  const double median = quantile(result.times, 0.5);
  if (!as_json) {
    std::printf("%10d %10d  %-18s %10.2f %10.2f %10.2f", result.num_sequences, result.max_steps_in_flight,
                result.metric, median, quantile(result.times, 0.99), median / result.num_sequences * 1000);
    if (result.budget > 0) std::printf(" %10.0f %8.3f", result.budget, median / result.budget);
    std::printf("\n");
    return;
  }
  std::printf("{\"bench\": \"core\", \"case\": \"decode_%d%s\", \"engine\": \"paged\", \"metric\": \"%s\", ",
              result.num_sequences, result.max_steps_in_flight > 1 ? "_one_step_ahead" : "", result.metric);
  std::printf("\"value\": %.3f, \"unit\": \"us\", ", median);
  if (result.budget > 0)
    std::printf("\"reference\": %.1f, \"ratio\": %.4f}\n", result.budget, median / result.budget);
  else
    std::printf("\"reference\": null, \"ratio\": null}\n");
}

int run(bool as_json) {
  if (!as_json)
    std::printf("%10s %10s  %-18s %10s %10s %10s %10s %8s\n", "sequences", "in flight", "per step", "median us",
                "p99 us", "ns/seq", "budget us", "ratio");
  for (const std::int32_t num_sequences : {1, 256}) {
    for (const std::int32_t max_steps_in_flight : {1, 2}) {
      const StepTimes times = measure_decoding(num_sequences, max_steps_in_flight, 2000);
      const double budget = num_sequences == 1 ? 5.0 : 50.0;
      print({num_sequences, max_steps_in_flight, "schedule+build", times.schedule_and_build, budget}, as_json);
      print({num_sequences, max_steps_in_flight, "commit", times.commit, 0}, as_json);
    }
  }
  return 0;
}

}  // namespace
}  // namespace paged

int main(int num_arguments, char** arguments) {
  const std::string_view option = num_arguments > 1 ? arguments[1] : "";
  if (num_arguments > 2 || (!option.empty() && option != "--json")) {
    std::fprintf(stderr, "usage: bench_core [--json]\n");
    return 2;
  }
  return paged::run(option == "--json");
}
