// SPDX-License-Identifier: Apache-2.0
// How long steps take, what of, and how many tokens come of them. Written by the engine thread.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace paged {

// Steps by duration: counts[i] is of those up to 2^i times 62.5 microseconds and above the bound before; the last one
// has the rest.
struct StepHistogram {
  static constexpr std::size_t kNumBounds = 16;  // the last bound is 2.048 s
  static double bound(std::size_t index) { return std::ldexp(62.5e-6, static_cast<int>(index)); }

  std::array<std::int64_t, kNumBounds + 1> counts{};
  double total_seconds = 0.0;

  void add(double seconds) {
    std::size_t index = 0;
    while (index < kNumBounds && seconds > bound(index)) ++index;
    ++counts[index];
    total_seconds += seconds;
  }
};

// What the engine thread does for a step. kWait is the device's time, kStatistics what stats() and a trace show.
enum class StepPart : std::uint8_t {
  kReceive,
  kSchedule,
  kBuild,
  kSampling,
  kLaunch,
  kWait,
  kCommit,
  kDeliver,
  kStatistics
};
using PartSeconds = std::array<float, 9>;

// Adds up where the time of a step's thread goes: it is told what has just been done.
class PartClock {
 public:
  using Clock = std::chrono::steady_clock;

  // Off, a mark costs a branch.
  void begin(bool on) {
    on_ = on;
    if (on_) last_ = Clock::now();
  }
  void mark(StepPart part) {
    if (!on_) return;
    const auto now = Clock::now();
    seconds_[static_cast<std::size_t>(part)] += std::chrono::duration<float>(now - last_).count();
    last_ = now;
  }
  PartSeconds take() { return std::exchange(seconds_, {}); }

 private:
  bool on_ = false;
  Clock::time_point last_{};
  PartSeconds seconds_{};
};

// Events a second over about the last second, by exponential decay.
class RecentRate {
 public:
  using Clock = std::chrono::steady_clock;

  void add(std::int64_t count, Clock::time_point now) {
    decay(now);
    recent_ += static_cast<double>(count);
  }
  double per_second(Clock::time_point now) {
    decay(now);
    const double age = std::chrono::duration<double>(now - start_).count();
    const double seen = 1.0 - std::exp(-std::max(age, 0.05));  // share of the window since the first event
    return recent_ / seen;
  }

 private:
  void decay(Clock::time_point now) {
    if (recent_ <= 0.0)
      start_ = now;
    else
      recent_ *= std::exp(-std::max(std::chrono::duration<double>(now - last_).count(), 0.0));
    last_ = std::max(last_, now);
    if (recent_ < 1e-9) recent_ = 0.0;
  }

  double recent_ = 0.0;
  Clock::time_point start_{};
  Clock::time_point last_{};
};

}  // namespace paged
