// SPDX-License-Identifier: Apache-2.0
// The nodes of memory of a machine (NUMA): processors reach that of their own node sooner, and all nodes together give
// more than one. A page belongs to the node on which it is written first.
#pragma once

#include <string>
#include <vector>

namespace paged {

class NumaNodes {
 public:
  // Those with a processor on which the calling thread may run; one, of all processors, where the system does not say.
  static NumaNodes of_machine();
  // `folder` is laid out like /sys/devices/system/node: node<N>/cpulist.
  explicit NumaNodes(const std::string& folder);

  int size() const { return static_cast<int>(processors_.size()); }
  const std::vector<int>& processors(int node) const { return processors_[static_cast<std::size_t>(node)]; }

  // From now on the calling thread runs on the node's processors only. Where the system refuses, nothing happens.
  void bind_thread(int node) const;
  // On which node the calling thread runs just now.
  int node_of_caller() const;

 private:
  std::vector<std::vector<int>> processors_;  // of each node, ascending; at least one node
};

}  // namespace paged
