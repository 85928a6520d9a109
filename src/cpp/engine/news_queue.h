// SPDX-License-Identifier: Apache-2.0
// The requests that have news for somebody: how one thread waits for any number of requests. It never holds more
// entries than there are waits asked for (Request::notify is for one time).
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "base/condition.h"
#include "core/types.h"

namespace paged {

class NewsQueue {
 public:
  void push(SequenceId id) {
    {
      const std::lock_guard lock(mutex_);
      ids_.push_back(id);
    }
    changed_->notify_one();
  }

  // Blocks until there is news or the queue is closed. Empty: closed, and all news were taken.
  std::vector<SequenceId> wait() {
    std::unique_lock lock(mutex_);
    changed_->wait(lock, [&] { return closed_ || !ids_.empty(); });
    return std::exchange(ids_, {});
  }

  void close() {
    if (getpid() != pid_) return;  // of a forked child, which nobody waits in: the lock may be held for ever
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_->notify_all();
  }

 private:
  const pid_t pid_ = getpid();
  std::mutex mutex_;
  Condition changed_;
  std::vector<SequenceId> ids_;
  bool closed_ = false;
};

}  // namespace paged
