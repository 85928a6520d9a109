// SPDX-License-Identifier: Apache-2.0
// A condition variable that a forked child may destroy. There its waiters, threads of the parent, exist for ever, and
// the destructor of a plain one waits for them.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <condition_variable>
#include <new>

namespace paged {

class Condition {
 public:
  Condition() { new (&condition_) std::condition_variable; }
  ~Condition() {
    if (getpid() == pid_) condition_.~condition_variable();
  }
  Condition(const Condition&) = delete;
  Condition& operator=(const Condition&) = delete;

  std::condition_variable* operator->() { return &condition_; }

 private:
  const pid_t pid_ = getpid();
  union {
    std::condition_variable condition_;
  };
};

}  // namespace paged
