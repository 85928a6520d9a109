// SPDX-License-Identifier: Apache-2.0
#include "cpu/numa_nodes.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>
#include <utility>

namespace paged {
namespace {

constexpr int kMostProcessors = 8192;

// A cpu_set_t has room for 1024 processors; the calls take longer ones.
struct ProcessorSet {
  static constexpr std::size_t kBytes = kMostProcessors / 8;
  cpu_set_t words[kBytes / sizeof(cpu_set_t)] = {};

  bool has(int processor) const { return CPU_ISSET_S(static_cast<std::size_t>(processor), kBytes, words) != 0; }
  void add(int processor) { CPU_SET_S(static_cast<std::size_t>(processor), kBytes, words); }
};

// "0-3,8" -> 0 1 2 3 8; what is no such list ends it.
std::vector<int> parse_list(std::string_view text) {
  std::vector<int> numbers;
  const auto take = [&](int& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || number < 0 || number >= kMostProcessors) return false;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return true;
  };
  const auto skip = [&](char c) {
    const bool is_there = !text.empty() && text.front() == c;
    if (is_there) text.remove_prefix(1);
    return is_there;
  };
  do {
    int first, last;
    if (!take(first)) break;
    last = first;
    if (skip('-') && !take(last)) break;
    for (int number = first; number <= last; ++number) numbers.push_back(number);
  } while (skip(','));
  return numbers;
}

// By the numbers of nodes.
std::map<int, std::vector<int>> read_processors(const std::string& folder) {
  namespace fs = std::filesystem;
  std::map<int, std::vector<int>> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename();
    int number;
    if (!name.starts_with("node") ||
        std::from_chars(name.data() + 4, name.data() + name.size(), number).ec != std::errc{})
      continue;
    std::string list;
    std::getline(std::ifstream(entry->path() / "cpulist"), list);
    found[number] = parse_list(list);
  }
  return found;
}

}  // namespace

NumaNodes NumaNodes::of_machine() { return NumaNodes("/sys/devices/system/node"); }

NumaNodes::NumaNodes(const std::string& folder) {
  ProcessorSet allowed;
  if (sched_getaffinity(0, ProcessorSet::kBytes, allowed.words) == 0) {
    for (auto& [number, processors] : read_processors(folder)) {
      std::erase_if(processors, [&](int processor) { return !allowed.has(processor); });
      if (!processors.empty()) processors_.push_back(std::move(processors));
    }
  }
  if (processors_.empty()) processors_.emplace_back();
}

void NumaNodes::bind_thread(int node) const {
  ProcessorSet set;
  for (const int processor : processors(node)) set.add(processor);
  sched_setaffinity(0, ProcessorSet::kBytes, set.words);
}

int NumaNodes::node_of_caller() const {
  const int processor = sched_getcpu();
  for (int node = 0; node < size(); ++node)
    if (std::binary_search(processors(node).begin(), processors(node).end(), processor)) return node;
  return 0;
}

}  // namespace paged
