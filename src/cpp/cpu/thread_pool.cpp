// SPDX-License-Identifier: Apache-2.0
#include "cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include "base/blocked_signals.h"
#include "base/check.h"
#include "base/divide_up.h"

namespace paged {
namespace {

constexpr std::chrono::microseconds kSpin{80};  // longer than what one thread alone does between two steps
constexpr std::align_val_t kAlignment{64};

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns whether `done` came true within kSpin.
template <typename Condition>
bool spin_until(Condition done) {
  if (done()) return true;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

void ThreadPool::AlignedDelete::operator()(std::byte* data) const { ::operator delete[](data, kAlignment); }

ThreadPool::ThreadPool(int num_threads, NumaNodes nodes)
    : num_threads_(num_threads),
      nodes_(std::move(nodes)),
      parts_(static_cast<std::size_t>(std::clamp(num_threads, 1, nodes_.size()))) {
  PAGED_CHECK(num_threads >= 1 && num_threads <= 1024, "num_threads must be between 1 and 1024, got ", num_threads);
  const std::size_t bytes = static_cast<std::size_t>(num_threads) * kScratchBytes;
  scratch_.reset(static_cast<std::byte*>(::operator new[](bytes, kAlignment)));
  try {
    start_workers(num_threads - 1);
  } catch (...) {
    stop_workers();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::start_workers(int num_workers) {
  const BlockedSignals blocked;  // a new thread inherits the mask
  workers_.reserve(static_cast<std::size_t>(num_workers));
  for (int i = 0; i < num_workers; ++i) workers_.emplace_back([this, i] { worker_loop(i + 1); });
}

void ThreadPool::stop_workers() {
  stopping_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(std::int64_t num_items, ItemFunction function, void* context) {
  const std::lock_guard lock(caller_mutex_);
  if (workers_.empty() || num_items <= 1) {
    for (std::int64_t item = 0; item < num_items; ++item) function(context, item, 0);
    return;
  }
  function_ = function;
  context_ = context;
  error_ = nullptr;
  const auto num_parts = static_cast<std::int64_t>(parts_.size());
  for (std::int64_t i = 0; i < num_parts; ++i) {
    Part& part = parts_[static_cast<std::size_t>(i)];
    part.next.store(begin_of_part(num_items, i, num_parts), std::memory_order_relaxed);
    part.end = begin_of_part(num_items, i + 1, num_parts);
  }
  entries_.store(0, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_items(0);
  wait_for_workers();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// The caller's is where it happens to run: it may be any thread of the program.
int ThreadPool::node_of(int thread) const {
  if (num_nodes() == 1) return 0;
  return thread > 0 ? thread * num_nodes() / num_threads() : nodes_.node_of_caller() % num_nodes();
}

void ThreadPool::run_items(int thread) {
  const auto own = static_cast<std::size_t>(node_of(thread));
  try {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[(own + i) % parts_.size()];
      for (std::int64_t item; (item = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;)
        function_(context_, item, thread);
    }
  } catch (...) {
    for (Part& part : parts_) part.next.store(part.end, std::memory_order_relaxed);
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::wait_for_workers() {
  entries_.fetch_or(kClosed, std::memory_order_acq_rel);
  const auto empty = [this] { return entries_.load(std::memory_order_acquire) == kClosed; };
  while (!spin_until(empty)) {
    const std::uint32_t entries = entries_.load(std::memory_order_acquire);
    if (entries != kClosed) entries_.wait(entries, std::memory_order_acquire);
  }
}

std::uint32_t ThreadPool::wait_for_job(std::uint32_t seen) const {
  const auto changed = [&] { return generation_.load(std::memory_order_acquire) != seen; };
  if (!spin_until(changed)) generation_.wait(seen, std::memory_order_acquire);
  return generation_.load(std::memory_order_acquire);
}

void ThreadPool::worker_loop(int thread) {
  if (num_nodes() > 1) nodes_.bind_thread(node_of(thread));
  std::uint32_t seen = 0;
  while (true) {
    seen = wait_for_job(seen);
    if (stopping_.load(std::memory_order_acquire)) return;
    std::uint32_t entries = entries_.load(std::memory_order_acquire);
    while ((entries & kClosed) == 0 &&
           !entries_.compare_exchange_weak(entries, entries + 1, std::memory_order_acq_rel)) {
    }
    if ((entries & kClosed) != 0) continue;
    run_items(thread);
    if (entries_.fetch_sub(1, std::memory_order_acq_rel) == (kClosed | 1u)) entries_.notify_all();
  }
}

}  // namespace paged
