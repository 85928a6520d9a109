// SPDX-License-Identifier: Apache-2.0
// What the engine did when, for those who asked for it: the last steps and the last requests, in two rings of the size
// they asked for. Off, it costs a load and a branch a step.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "core/types.h"
#include "engine/step_clock.h"

namespace paged {

// Seconds count from the start of the trace.
struct StepRecord {
  double launched = 0.0;
  double finished = 0.0;
  std::int32_t num_prefill_tokens = 0;
  std::int32_t num_decode_tokens = 0;
  std::int32_t num_sequences = 0;
  std::int32_t num_waiting = 0;
  std::int32_t num_free_blocks = 0;
  PartSeconds part_seconds{};  // of the engine thread since the record before
};

// A time that did not come is negative.
struct RequestRecord {
  SequenceId id = 0;
  double submitted = 0.0;
  double scheduled = -1.0;
  double first_token = -1.0;
  double finished = 0.0;
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_cached_tokens = 0;
  std::int32_t num_generated_tokens = 0;
  FinishReason reason = FinishReason::kNone;
};

// Keeps the last `capacity` records.
template <typename Record>
class Ring {
 public:
  void start(std::size_t capacity) {
    records_.clear();
    records_.reserve(capacity);
    capacity_ = capacity;
    count_ = 0;
  }
  void add(const Record& record) {
    if (records_.size() < capacity_)
      records_.push_back(record);
    else
      records_[count_ % capacity_] = record;
    ++count_;
  }
  std::vector<Record> in_order() const {
    std::vector<Record> result(records_.begin() + oldest(), records_.end());
    result.insert(result.end(), records_.begin(), records_.begin() + oldest());
    return result;
  }
  std::int64_t num_dropped() const { return static_cast<std::int64_t>(count_ - records_.size()); }

 private:
  std::ptrdiff_t oldest() const {
    return count_ > records_.size() ? static_cast<std::ptrdiff_t>(count_ % capacity_) : 0;
  }

  std::vector<Record> records_;
  std::size_t capacity_ = 0;
  std::size_t count_ = 0;
};

struct Trace {
  std::vector<StepRecord> steps;
  std::vector<RequestRecord> requests;
  std::int64_t num_dropped_steps = 0;
  std::int64_t num_dropped_requests = 0;
};

class StepTrace {
 public:
  using Clock = std::chrono::steady_clock;

  // Forgets what there was.
  void start(std::int64_t capacity) {
    PAGED_CHECK(capacity >= 1 && capacity <= (1 << 24), "a trace holds 1 to ", 1 << 24, " steps, got ", capacity);
    const std::lock_guard lock(mutex_);
    steps_.start(static_cast<std::size_t>(capacity));
    requests_.start(static_cast<std::size_t>(capacity));
    start_ = Clock::now();
    active_ = true;
  }

  // What was recorded since start(); records no more.
  Trace stop() {
    const std::lock_guard lock(mutex_);
    active_ = false;
    return {steps_.in_order(), requests_.in_order(), steps_.num_dropped(), requests_.num_dropped()};
  }

  bool active() const { return active_.load(std::memory_order_relaxed); }

  // The times of a record are given as points and kept as seconds since the start.
  void add_step(StepRecord record, Clock::time_point launched, Clock::time_point finished) {
    const std::lock_guard lock(mutex_);
    record.launched = seconds(launched);
    record.finished = seconds(finished);
    steps_.add(record);
  }
  // All times but `submitted` are given as seconds since then.
  void add_request(RequestRecord record, Clock::time_point submitted) {
    const std::lock_guard lock(mutex_);
    record.submitted = seconds(submitted);
    for (double* time : {&record.scheduled, &record.first_token, &record.finished})
      if (*time >= 0.0) *time += record.submitted;
    requests_.add(record);
  }

 private:
  double seconds(Clock::time_point time) const { return std::chrono::duration<double>(time - start_).count(); }

  std::mutex mutex_;
  std::atomic<bool> active_{false};
  Clock::time_point start_{};
  Ring<StepRecord> steps_;
  Ring<RequestRecord> requests_;
};

}  // namespace paged
