// SPDX-License-Identifier: Apache-2.0
// Waits for steps that take about as long as the one before: asleep until shortly before the step is likely to end,
// then in naps. A look at memory that the device writes costs nothing; to be woken by the driver costs the engine's
// thread as much as half its other work for a step, and a thread of the driver as much again.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace paged {

class StepWaiter {
 public:
  // A step has just ended that somebody else waited for.
  void note_end() {
    const auto now = Clock::now();
    const auto took = now - last_end_;
    period_ = std::min(took, last_took_);  // one that was held up says nothing of the next
    last_took_ = took;
    last_end_ = now;
    num_early_ = 0;
  }

  // Until done() is true; or false, if that takes far longer than the step before did.
  template <class Done>
  bool wait(const Done& done) {
    const auto due = last_end_ + period_;
    std::this_thread::sleep_until(due - kEarly);
    if (done()) {
      note_early(due);
      return true;
    }
    const auto began = Clock::now(), limit = std::max(began, due) + period_ + kPatience;
    for (auto now = began; !done(); now = Clock::now()) {
      if (now > limit) return false;
      std::this_thread::sleep_for(std::max<Clock::duration>(kNap, (now - began) / 8));
    }
    note_end();
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kEarly{30}, kNap{30};
  static constexpr std::chrono::milliseconds kPatience{5};

  // It had ended before anybody looked, nobody knows when. The next look is to be earlier, and soon much earlier, lest
  // the device wait for us.
  void note_early(Clock::time_point due) {
    last_end_ = std::min(Clock::now(), due) - kEarly;
    period_ -= period_ / (1 << std::max(1, 6 - 2 * num_early_));
    last_took_ = period_;
    num_early_ = std::min(num_early_ + 1, 3);
  }

  Clock::time_point last_end_{};
  Clock::duration last_took_{}, period_{};
  int num_early_ = 0;  // steps in a row
};

}  // namespace paged
