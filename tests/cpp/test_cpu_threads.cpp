// SPDX-License-Identifier: Apache-2.0
// The thread pool under whatever sanitizer the build has, and an op across threads.
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/philox.h"
#include "check.h"
#include "cpu/thread_pool.h"
#include "ops/ops.h"

namespace paged {
namespace {

TEST(every_item_runs_once_whatever_the_size) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    std::mt19937 random(7);
    for (int job = 0; job < 300; ++job) {
      std::vector<int> counts(random() % 200, 0);
      pool.parallel_for(static_cast<std::int64_t>(counts.size()), [&](std::int64_t item, int thread) {
        if (thread < 0 || thread >= num_threads) throw std::logic_error("no such thread");
        ++counts[static_cast<std::size_t>(item)];
      });
      for (int count : counts) CHECK_EQ(count, 1);
      if (job % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the workers fall asleep
    }
  }
}

TEST(results_of_one_job_are_visible_to_the_next) {
  ThreadPool pool(4);
  std::vector<std::int64_t> values(64, 0);
  for (int job = 0; job < 500; ++job) {
    pool.parallel_for(64, [&](std::int64_t item, int) {
      values[static_cast<std::size_t>(item)] += job + values[static_cast<std::size_t>(item)] % 3;
    });
  }
  for (std::int64_t value : values) CHECK_EQ(value, values[0]);
}

TEST(scratch_belongs_to_one_thread) {
  ThreadPool pool(4);
  pool.parallel_for(2000, [&](std::int64_t item, int thread) {
    auto* scratch = reinterpret_cast<std::int64_t*>(pool.scratch(thread));
    const std::size_t last = ThreadPool::kScratchBytes / sizeof(std::int64_t) - 1;
    scratch[0] = scratch[last] = item;
    if (scratch[0] != item || scratch[last] != item) throw std::logic_error("shared scratch");
  });
}

TEST(an_exception_reaches_the_caller_and_the_pool_goes_on) {
  ThreadPool pool(3);
  for (int job = 0; job < 50; ++job) {
    const auto throwing = [&] {
      pool.parallel_for(100, [](std::int64_t item, int) {
        if (item % 10 == 7) throw std::runtime_error("item seven");
      });
    };
    CHECK_THROWS(throwing(), std::runtime_error, "item seven");
    std::atomic<int> sum = 0;
    pool.parallel_for(100, [&](std::int64_t, int) { ++sum; });
    CHECK_EQ(sum.load(), 100);
  }
}

TEST(callers_on_several_threads_queue) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  std::atomic<int> wrong = 0;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 100; ++job) {
        std::atomic<int> count = 0;
        pool.parallel_for(17, [&](std::int64_t, int) { ++count; });
        if (count != 17) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(signals_are_the_hosts) {
  ThreadPool pool(2);
  std::atomic<int> unblocked = 0;
  pool.parallel_for(200, [&](std::int64_t, int thread) {
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    if (thread != 0 && sigismember(&blocked, SIGINT) != 1) ++unblocked;
  });
  CHECK_EQ(unblocked.load(), 0);
  sigset_t ours;
  pthread_sigmask(SIG_SETMASK, nullptr, &ours);
  CHECK_EQ(sigismember(&ours, SIGINT), 0);
}

TEST(pools_come_and_go) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    if (i % 2 == 0) pool.parallel_for(8, [](std::int64_t, int) {});
  }
}

TEST(a_product_is_the_same_on_any_number_of_threads) {
  constexpr std::int64_t kRows = 300;
  constexpr std::int64_t kCols = 70;
  std::vector<float> weights(kRows * kCols);
  std::vector<float> x(60 * kCols);
  std::iota(weights.begin(), weights.end(), -9000.0f);
  std::iota(x.begin(), x.end(), 1.0f);
  std::vector<std::vector<float>> outs;
  for (int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    const WeightSource source{weights.data(), kRows * kCols * 4, kRows, kCols, WeightType::kFloat32, nullptr};
    const WeightMatrixPtr matrix = pack_matrix(source, pool);
    const WeightMatrix* part = matrix.get();
    std::vector<float>& out = outs.emplace_back(60 * kRows);
    const LinearParams params{{x.data(), 60, kCols, kCols, DType::kFloat32},
                              &part,
                              1,
                              nullptr,
                              {out.data(), 60, kRows, kRows, DType::kFloat32}};
    ops::linear({Device::kCpu, &pool, nullptr}, params);
    CHECK(out == outs[0]);
  }
}

// The known answers of the reference implementation (Random123's kat_vectors).
TEST(philox_equals_its_reference) {
  using Words = std::array<std::uint32_t, 4>;
  CHECK((philox4x32({0, 0, 0, 0}, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const std::uint32_t ones = 0xffffffff;
  CHECK((philox4x32({ones, ones, ones, ones}, ~std::uint64_t{0}) ==
         Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

}  // namespace
}  // namespace paged
