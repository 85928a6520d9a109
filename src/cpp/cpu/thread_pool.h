// SPDX-License-Identifier: Apache-2.0
// The one thread pool of an engine. It owns num_threads - 1 workers (the caller of parallel_for is the other one) and a
// scratch area for each. Workers take items from an atomic cursor; between jobs they spin for some tens of
// microseconds, then sleep. A worker that wakes late finds the job closed and is not waited for. Signals are blocked in
// the workers: they belong to the host program. One job at a time; callers on several threads queue. Not to be called
// from a body. Cost: about a microsecond a job while the workers spin, a futex wake when they sleep, nothing for a
// single item.
//
// On a machine with several nodes of memory each worker keeps to one of them, as many to each, and the items of a job
// lie in as many even parts: a thread takes those of its own node first, then the others'. So what the items of one job
// write first is near when the like-numbered ones of another read it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/divide_up.h"
#include "cpu/numa_nodes.h"

namespace paged {

class ThreadPool {
 public:
  static constexpr std::size_t kScratchBytes = 512 * 1024;

  // Throws std::invalid_argument unless 1 <= num_threads <= 1024.
  explicit ThreadPool(int num_threads, NumaNodes nodes = NumaNodes::of_machine());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  // Of memory, that have threads.
  int num_nodes() const { return static_cast<int>(parts_.size()); }
  // How many threads take neighbouring items by turns: those of one node.
  int threads_by_turns() const { return divide_up(num_threads(), num_nodes()); }

  // kScratchBytes for the thread (0 is the caller), 64-byte aligned; a body's own until it returns.
  std::byte* scratch(int thread) const { return scratch_.get() + static_cast<std::size_t>(thread) * kScratchBytes; }

  // Calls body(item, thread) once for every item in [0, num_items), in any order. Returns when all have returned. If a
  // body throws, items not yet begun are skipped and the first exception is rethrown here.
  template <typename Body>
  void parallel_for(std::int64_t num_items, Body&& body) {
    run(
        num_items,
        [](void* context, std::int64_t item, int thread) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(item, thread);
        },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using ItemFunction = void (*)(void* context, std::int64_t item, int thread);

  struct AlignedDelete {
    void operator()(std::byte* data) const;
  };

  // Items of a job for the threads of one node: [next, end).
  struct alignas(64) Part {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  int node_of(int thread) const;
  void run(std::int64_t num_items, ItemFunction function, void* context);
  void run_items(int thread);
  void worker_loop(int thread);
  std::uint32_t wait_for_job(std::uint32_t seen) const;
  void wait_for_workers();
  void start_workers(int num_workers);
  void stop_workers();

  // entries_ counts the workers inside the current job; while kClosed is set nobody may enter, and with no worker
  // inside, the job's fields belong to the caller.
  static constexpr std::uint32_t kClosed = 1u << 31;

  const int num_threads_;
  const NumaNodes nodes_;
  std::vector<Part> parts_;
  std::mutex caller_mutex_;
  ItemFunction function_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  alignas(64) std::atomic<std::uint32_t> entries_{kClosed};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};
  std::unique_ptr<std::byte[], AlignedDelete> scratch_;
  std::vector<std::thread> workers_;
};

}  // namespace paged
