// SPDX-License-Identifier: Apache-2.0
// What a step costs the engine thread beside the device: its CPU time in steady decode, and in what parts, for 1, 64
// and 256 sequences with contexts of about 1,000 tokens. The device takes no time, or sleeps so that consumers can
// follow; the inputs are staged as for a GPU, without a launch. "cold" is with caches that hold nothing of the engine.
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/engine.h"
#include "exec/gpu_staging.h"

namespace paged {
namespace {

constexpr std::int32_t kPromptTokens = 800;
constexpr int kFirstStep = 32;  // measured; before it whatever grows has grown
constexpr std::int32_t kBlockSize = 16;
constexpr std::size_t kEvictedBytes = 64 << 20;
constexpr double kBudget = 60.0;  // microseconds, for 256 sequences
constexpr std::array<const char*, 9> kParts = {"receive", "schedule", "build",   "sampling",  "launch",
                                               "wait",    "commit",   "deliver", "statistics"};

enum class Consumer { kWhole, kLoop, kThreads };  // of the answers' pieces: nobody, one thread, a thread each

struct Case {
  const char* name;
  std::int32_t num_sequences;
  Consumer consumer = Consumer::kWhole;
  bool cold = false;
  int device_microseconds = 0;
  int num_steps = 200;
};

constexpr Case kCases[] = {
    {"1", 1},
    {"64", 64},
    {"256", 256},
    {"1 cold", 1, Consumer::kWhole, true},
    {"64 cold", 64, Consumer::kWhole, true},
    {"256 cold", 256, Consumer::kWhole, true},
    {"64 one loop", 64, Consumer::kLoop, false, 2000},
    {"256 one loop", 256, Consumer::kLoop, false, 4000},
    {"64 threads", 64, Consumer::kThreads, false, 4000},
    {"256 threads", 256, Consumer::kThreads, false, 12000, 100},
};

// The tokens that are "sampled", and the bytes of all.
struct Text {
  std::shared_ptr<const TokenTable> table;
  std::vector<TokenId> ids;
};

// Without a file: 50,000 words of 1 to 8 letters behind a space, the frequent ones first.
Text made_up_text() {
  std::mt19937 random(1);
  std::string bytes;
  std::vector<std::int64_t> offsets = {0};
  for (int token = 0; token < 50000; ++token) {
    bytes += ' ';
    for (unsigned letters = 1 + random() % 8; letters > 0; --letters) bytes += static_cast<char>('a' + random() % 26);
    offsets.push_back(std::ssize(bytes));
  }
  Text text{std::make_shared<const TokenTable>(std::move(bytes), std::move(offsets), std::vector<bool>(50000)), {}};
  for (int i = 0; i < 100000; ++i) {
    const double share = static_cast<double>(random() % 10000) / 10000;
    text.ids.push_back(static_cast<TokenId>(50000 * share * share * share));
  }
  return text;
}

template <typename T>
std::vector<T> read_values(std::ifstream& file, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  file.read(reinterpret_cast<char*>(values.data()), count * static_cast<std::int64_t>(sizeof(T)));
  if (!file) throw std::runtime_error("the file of tokens is too short");
  return values;
}

// As bench_host.py writes it: int64 vocab_size and number of ids; int64 offsets, uint8 is_special, int32 ids, bytes.
Text read_text(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<std::int64_t> counts = read_values<std::int64_t>(file, 2);
  std::vector<std::int64_t> offsets = read_values<std::int64_t>(file, counts[0] + 1);
  const std::vector<std::uint8_t> special = read_values<std::uint8_t>(file, counts[0]);
  std::vector<TokenId> ids = read_values<TokenId>(file, counts[1]);
  const std::vector<char> bytes = read_values<char>(file, offsets.back());
  return {std::make_shared<const TokenTable>(std::string(bytes.begin(), bytes.end()), std::move(offsets),
                                             std::vector<bool>(special.begin(), special.end())),
          std::move(ids)};
}

double thread_microseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

struct Measured {
  double cpu_microseconds = 0;  // a step
  Trace trace;
};

// Takes every step at once. After the first steps it measures the thread that calls it: its CPU time but for what goes
// by in wait(), and then as many steps with a trace.
class InstantDevice final : public Executor {
 public:
  InstantDevice(const Case& which, const Text& text, const StagingLimits& limits, Measured& measured)
      : case_(which), text_(text), measured_(measured), evicted_(which.cold ? kEvictedBytes : 0) {
    for (Slot& slot : slots_) {
      slot.memory = AlignedBuffer(GpuStaging::max_bytes(limits));
      slot.staging = std::make_unique<GpuStaging>(limits, slot.memory.data());
    }
  }

  // Until then no step ends: all requests are to be there when the first one decodes.
  void go_on(Engine& engine) {
    trace_ = &engine.trace();
    trace_.notify_one();
  }

  std::int32_t vocab_size() const override { return text_.table->vocab_size(); }
  std::int32_t max_steps_in_flight() const override { return 2; }
  ExtraOutputs extra_outputs() const override { return {}; }

  void launch(const StepInput& step) override {
    Slot& slot = slots_[num_launched_++ % 2];
    slot.staging->write(step, case_.num_sequences, slot.memory.data());
    slot.num_sampled = step.batch.num_logits_rows;
    slot.is_steady = step.batch.num_decodes == case_.num_sequences;
  }

  std::span<const std::int32_t> wait() override {
    const Slot& slot = slots_[num_awaited_++ % 2];
    trace_.wait(nullptr);
    const double before = thread_microseconds();
    if (slot.is_steady) take_time(num_steady_++, before);
    if (case_.device_microseconds > 0)
      std::this_thread::sleep_for(std::chrono::microseconds(case_.device_microseconds));
    sampled_.clear();
    for (std::int32_t row = 0; row < slot.num_sampled; ++row)
      sampled_.push_back(text_.ids[(static_cast<std::size_t>(row) * 7919 + num_awaited_) % text_.ids.size()]);
    for (std::size_t i = 0; i < evicted_.size(); i += 64) evicted_[i] = static_cast<char>(evicted_[i] + 1);
    waited_ += thread_microseconds() - before;
    return sampled_;
  }

 private:
  struct Slot {
    AlignedBuffer memory;
    std::unique_ptr<GpuStaging> staging;
    std::int32_t num_sampled = 0;
    bool is_steady = false;
  };

  void take_time(int step, double now) {
    if (step == kFirstStep) {
      begin_ = now;
      waited_ = 0;
    } else if (step == kFirstStep + case_.num_steps) {
      measured_.cpu_microseconds = (now - begin_ - waited_) / case_.num_steps;
      trace_.load()->start(case_.num_steps);
    } else if (step == kFirstStep + 2 * case_.num_steps) {
      measured_.trace = trace_.load()->stop();
    }
  }

  const Case& case_;
  const Text& text_;
  Measured& measured_;
  std::vector<char> evicted_;
  std::array<Slot, 2> slots_;
  std::size_t num_launched_ = 0, num_awaited_ = 0;
  std::vector<std::int32_t> sampled_;
  std::atomic<StepTrace*> trace_ = nullptr;
  int num_steady_ = 0;
  double begin_ = 0, waited_ = 0;
};

void consume_in_one_loop(const std::vector<std::shared_ptr<Request>>& requests) {
  const auto queue = std::make_shared<NewsQueue>();
  for (const auto& request : requests) request->notify(queue, false);
  for (std::size_t num_finished = 0; num_finished < requests.size();) {
    for (const SequenceId id : queue->wait()) {
      Request& request = *requests[static_cast<std::size_t>(id - requests.front()->id())];
      if (request.take().finish_reason == FinishReason::kNone)
        request.notify(queue, false);
      else
        ++num_finished;
    }
  }
}

void consume(const std::vector<std::shared_ptr<Request>>& requests, Consumer consumer) {
  if (consumer == Consumer::kLoop) return consume_in_one_loop(requests);
  std::vector<std::thread> threads;
  if (consumer == Consumer::kThreads)
    for (const auto& request : requests)
      threads.emplace_back([&request] {
        while (request->take().finish_reason == FinishReason::kNone) request->wait_for(std::chrono::seconds(1));
      });
  for (std::thread& thread : threads) thread.join();
  for (const auto& request : requests) request->wait_finished_for(std::chrono::hours(1));
}

Measured measure(const Case& which, const Text& text) {
  const std::int32_t num_prefill_steps = which.num_sequences * kPromptTokens / 1024;
  const std::int32_t max_tokens = num_prefill_steps + kFirstStep + 2 * which.num_steps + 50;
  const std::int32_t max_len = kPromptTokens + max_tokens;
  const std::int32_t num_blocks = (max_len + kBlockSize - 1) / kBlockSize;
  Measured measured;
  auto device =
      std::make_unique<InstantDevice>(which, text, StagingLimits{2048, which.num_sequences, num_blocks}, measured);
  InstantDevice& device_in_engine = *device;
  Engine engine({.num_blocks = which.num_sequences * (num_blocks + 1),
                 .block_size = kBlockSize,
                 .max_num_sequences = which.num_sequences,
                 .max_num_batched_tokens = 2048,
                 .max_model_len = max_len},
                std::move(device), text.table);
  std::vector<std::shared_ptr<Request>> requests;
  TokenId stop_token = 0;  // that never comes
  while (std::find(text.ids.begin(), text.ids.end(), stop_token) != text.ids.end()) ++stop_token;
  for (std::int32_t i = 0; i < which.num_sequences; ++i) {
    RequestSpec spec;
    spec.prompt.assign(kPromptTokens, i);
    spec.sampling.max_tokens = max_tokens;
    spec.sampling.seed = static_cast<std::uint64_t>(i);
    spec.sampling.stop_token_ids = {stop_token};
    requests.push_back(engine.submit(std::move(spec)));
  }
  device_in_engine.go_on(engine);
  consume(requests, which.consumer);
  engine.close();
  if (std::ssize(measured.trace.steps) != which.num_steps) throw std::logic_error("not every sequence decoded");
  return measured;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Microseconds of each part, the median over the steps: now and then a step meets a neighbour.
std::array<double, kParts.size()> parts_of(const Trace& trace) {
  std::array<double, kParts.size()> parts{};
  for (std::size_t part = 0; part < parts.size(); ++part) {
    std::vector<double> values;
    for (const StepRecord& step : trace.steps) values.push_back(1e6 * static_cast<double>(step.part_seconds[part]));
    parts[part] = median(values);
  }
  return parts;
}

void print_json(const Case& which, const char* metric, double value, bool has_budget) {
  std::printf("{\"bench\": \"host\", \"case\": \"%s\", \"engine\": \"paged\", \"metric\": \"%s\", ", which.name,
              metric);
  std::printf("\"value\": %.3f, \"unit\": \"us\", ", value);
  if (has_budget)
    std::printf("\"reference\": \"budget: %.0f us\", \"ratio\": %.4f}\n", kBudget, kBudget / value);
  else
    std::printf("\"reference\": null, \"ratio\": null}\n");
}

void print(const Case& which, const Measured& measured, bool as_json) {
  constexpr auto kWait = static_cast<std::size_t>(StepPart::kWait);
  const std::array<double, kParts.size()> parts = parts_of(measured.trace);
  if (as_json) {
    print_json(which, "cpu", measured.cpu_microseconds, which.num_sequences == 256);
    for (std::size_t part = 0; part < parts.size(); ++part)
      if (part != kWait) print_json(which, kParts[part], parts[part], false);
  } else {
    std::printf("%-14s %8.1f", which.name, measured.cpu_microseconds);
    for (std::size_t part = 0; part < parts.size(); ++part)
      if (part != kWait) std::printf(" %10.2f", parts[part]);
    std::printf("\n");
  }
  std::fflush(stdout);
}

int run(bool as_json, const char* tokens, std::string_view only) {
  const Text text = tokens == nullptr ? made_up_text() : read_text(tokens);
  if (!as_json) {
    std::printf("%-14s %8s", "us per step", "CPU");
    for (const char* part : kParts)
      if (part != std::string_view("wait")) std::printf(" %10s", part);
    std::printf("\n");
  }
  for (const Case& each : kCases)
    if (only.empty() || only == each.name) print(each, measure(each, text), as_json);
  return 0;
}

}  // namespace
}  // namespace paged

int main(int num_arguments, char** arguments) {
  bool as_json = false;
  const char* tokens = nullptr;
  std::string_view only;
  for (int i = 1; i < num_arguments; ++i) {
    const std::string_view option = arguments[i];
    if (option == "--json") {
      as_json = true;
    } else if (option == "--tokens" && i + 1 < num_arguments) {
      tokens = arguments[++i];
    } else if (option == "--only" && i + 1 < num_arguments) {
      only = arguments[++i];
    } else {
      std::fprintf(stderr, "usage: bench_host [--json] [--tokens FILE] [--only CASE]\n");
      return 2;
    }
  }
  return paged::run(as_json, tokens, only);
}
