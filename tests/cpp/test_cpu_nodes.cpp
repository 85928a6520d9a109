// SPDX-License-Identifier: Apache-2.0
// Nodes of memory, as a folder like the system's describes them, and a thread pool on several. Their processors are all
// this machine's, so threads may run where they like and only the dealing is tested.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/numa_nodes.h"
#include "cpu/thread_pool.h"
#include "ops/ops.h"

namespace paged {
namespace {

// /sys/devices/system/node of another machine.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "paged_nodes_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  Folder& add(const std::string& node, const std::string& list) {
    std::filesystem::create_directory(path_ / node);
    std::ofstream(path_ / node / "cpulist") << list;
    return *this;
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

NumaNodes nodes_of_everything(int count) {
  Folder folder;
  for (int node = 0; node < count; ++node) folder.add("node" + std::to_string(node), "0-1023\n");
  return NumaNodes(folder.path());
}

std::vector<int> processors_of_this_thread() {
  cpu_set_t set;
  CHECK_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) processors.push_back(i);
  return processors;
}

TEST(lists_of_processors_are_read) {
  const std::vector<int> mine = processors_of_this_thread();
  Folder folder;
  const std::string first = std::to_string(mine.front());
  folder.add("node10", first + "\n").add("node2", "0-1023\n").add("node3", "\n").add("has_cpu", "0\n");
  folder.add("node4", "8000-8191,x").add("node5", "9-").add("node6", "99999999999").add("node7", "4,-3");
  const NumaNodes nodes(folder.path());
  CHECK(nodes.processors(0) == mine);
  CHECK(nodes.processors(nodes.size() - 1) == std::vector<int>{mine.front()});
  CHECK(nodes.size() >= 2 && nodes.size() <= 4);  // node5 and node7 count where this thread may run on 9 or 4
}

TEST(a_machine_that_does_not_say_has_one_node) {
  const NumaNodes nodes("/no/such/folder");
  CHECK_EQ(nodes.size(), 1);
  CHECK_EQ(nodes.node_of_caller(), 0);
  CHECK(NumaNodes::of_machine().size() >= 1);
}

TEST(a_thread_keeps_to_its_node) {
  const std::vector<int> mine = processors_of_this_thread();
  Folder folder;
  folder.add("node0", std::to_string(mine.front())).add("node1", std::to_string(mine.back()));
  const NumaNodes nodes(folder.path());
  std::vector<int> seen;
  std::thread([&] {
    nodes.bind_thread(1);
    seen = processors_of_this_thread();
  }).join();
  CHECK(seen == std::vector<int>{mine.back()});
}

TEST(every_item_runs_once) {
  for (int num_nodes : {2, 3}) {
    for (int num_threads : {1, 2, 4, 7}) {
      ThreadPool pool(num_threads, nodes_of_everything(num_nodes));
      CHECK_EQ(pool.num_nodes(), std::min(num_nodes, num_threads));
      for (std::size_t items = 0; items < 60; ++items) {
        std::vector<int> counts(items, 0);
        pool.parallel_for(static_cast<std::int64_t>(items),
                          [&](std::int64_t item, int) { ++counts[static_cast<std::size_t>(item)]; });
        for (int count : counts) CHECK_EQ(count, 1);
      }
      if (num_threads > 1) {
        const auto throwing = [&] {
          pool.parallel_for(50, [](std::int64_t item, int) {
            if (item == 31) throw std::runtime_error("thirty-one");
          });
        };
        CHECK_THROWS(throwing(), std::runtime_error, "thirty-one");
      }
    }
  }
}

TEST(threads_begin_with_the_items_of_their_node) {
  ThreadPool pool(4, nodes_of_everything(2));
  for (int job = 0; job < 20; ++job) {
    std::vector<int> thread_of(4);
    std::atomic<int> begun = 0;
    pool.parallel_for(4, [&](std::int64_t item, int thread) {
      thread_of[static_cast<std::size_t>(item)] = thread;
      ++begun;
      while (begun < 4) std::this_thread::yield();  // so that nobody takes two
    });
    CHECK(std::max(thread_of[0], thread_of[1]) == 1 && std::min(thread_of[2], thread_of[3]) == 2);
  }
}

TEST(a_product_is_the_same_on_any_number_of_nodes) {
  constexpr std::int64_t kCols = 64, kRows[] = {300, 40, 170}, kSum = 510, kTokens = 70;
  std::vector<float> weights(300 * kCols), x(kTokens * kCols);
  std::iota(weights.begin(), weights.end(), -9000.0f);
  std::iota(x.begin(), x.end(), 1.0f);
  std::vector<std::vector<float>> outs;
  for (int num_nodes : {1, 2, 3}) {
    ThreadPool pool(6, nodes_of_everything(num_nodes));
    std::vector<WeightSource> sources;
    for (std::int64_t rows : kRows)
      sources.push_back({weights.data(), rows * kCols * 4, rows, kCols, WeightType::kFloat32, nullptr});
    const std::vector<WeightMatrixPtr> matrices = pack_matrices(sources, pool);
    const WeightMatrix* parts[] = {matrices[0].get(), matrices[1].get(), matrices[2].get()};
    std::vector<float>& out = outs.emplace_back(kTokens * kSum);
    for (std::int64_t tokens : {std::int64_t{1}, kTokens}) {
      ops::linear({Device::kCpu, &pool, nullptr}, {{x.data(), tokens, kCols, kCols, DType::kFloat32},
                                                   parts,
                                                   3,
                                                   nullptr,
                                                   {out.data(), tokens, kSum, kSum, DType::kFloat32}});
    }
    CHECK(out == outs[0]);
  }
}

}  // namespace
}  // namespace paged
