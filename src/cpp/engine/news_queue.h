// SPDX-License-Identifier: Apache-2.0
// The requests that have news for somebody: how one thread waits for any number of requests. It never holds more
// entries than there are waits asked for (Request::notify is for one time).
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/condition.h"
#include "core/types.h"

namespace paged {

class NewsQueue {
 public:
  void push(SequenceId id) { push(std::span(&id, 1)); }
  void push(std::span<const SequenceId> ids) {
    {
      const std::lock_guard lock(mutex_);
      ids_.insert(ids_.end(), ids.begin(), ids.end());
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

// News of many requests on their way: each queue gets its own at once, and whoever waits for it is woken once.
class NewsBatch {
 public:
  void add(std::shared_ptr<NewsQueue> queue, SequenceId id) {
    const auto is_same = [&](const News& news) { return news.queue == queue; };
    auto found = std::find_if(news_.begin(), news_.end(), is_same);  // there is one queue, or a few
    if (found == news_.end()) found = news_.insert(found, {std::move(queue), {}});
    found->ids.push_back(id);
  }

  void send() {
    for (const News& news : news_) news.queue->push(news.ids);
    news_.clear();
  }

 private:
  struct News {
    std::shared_ptr<NewsQueue> queue;
    std::vector<SequenceId> ids;
  };
  std::vector<News> news_;
};

}  // namespace paged
