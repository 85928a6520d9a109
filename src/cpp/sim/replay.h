// SPDX-License-Identifier: Apache-2.0
// Agents replayed against the real scheduler, block manager, tiers and policies on a virtual clock: only the device,
// the link to the host's memory and the disk are models, which say how long a step and a transfer take. Hours of agents
// take seconds; the same trace gives the same numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/policy.h"

namespace paged {

// A step takes base + what its prompt tokens cost + (if it generates) decode_base + what reading the contexts costs.
struct ReplayDevice {
  double base = 0.0;
  StepCost prefill = {};
  double decode_base = 0.0;
  double per_decoded_context_token = 0.0;
};

// Between the device and the host, and on the way to a disk and from it. One transfer after the other.
struct ReplayLink {
  double per_transfer = 0.0;
  double per_block = 0.0;
};

struct ReplayDisk {
  double per_transfer = 0.0;
  double per_block_read = 0.0;
  double per_block_written = 0.0;
};

struct ReplayTurn {
  std::int32_t keep = -1;   // tokens kept of what is there (an edit, a compaction); -1: all
  std::int32_t append = 0;  // tokens of the prompt
  std::int32_t output = 1;  // tokens generated
  double gap = 0.0;         // seconds after it, until the next
  double guess = -1.0;      // of that, told to the policy; negative: none
  std::int32_t tool = 0;    // what it waits for
  std::int32_t spawn = -1;  // agent that continues from here beside this one
};

struct ReplayAgent {
  bool is_root = true;      // else it is spawned
  std::int32_t prefix = 0;  // which shared prompt it begins with, and its length
  std::int32_t num_prefix_tokens = 0;
  std::vector<ReplayTurn> turns;
};

struct ReplayConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 4;
  std::int32_t max_num_sequences = 256;
  std::int32_t max_num_batched_tokens = 256;
  std::int32_t max_model_len = 0;
  std::int32_t max_wait_steps = 1024;
  std::int32_t num_slots = 1;  // root agents that live at once; the next begins when one ends
  double stagger = 0.0;        // seconds over which the first ones begin
  bool uses_sessions = true;   // false: each turn is a request of its own
  bool tells_tools = true;     // false: pauses are not announced
  double burst_every = 0.0;    // seconds: gaps of 1 s and more end together, at its multiples; 0: each for itself
  std::int32_t num_host_blocks = 0;
  std::int32_t num_disk_blocks = 0;
  std::shared_ptr<Policy> policy = nullptr;
  ReplayDevice device = {};
  ReplayLink link = {};
  ReplayDisk disk = {};
};

struct ReplayResult {
  std::vector<double> job_seconds;      // [agents] from when it was due to its end
  std::vector<double> least_seconds;    // [agents] alone on the device with an endless cache
  std::vector<double> resume_seconds;   // of all turns but the first of an agent: from due to its first token
  std::int64_t num_prefill_tokens = 0;  // computed
  std::int64_t num_new_tokens = 0;      // that nobody had computed: the least to compute
  std::int64_t num_evicted_tokens = 0;  // computed again: taken from sessions that were expected,
  std::int64_t num_expired_tokens = 0;  // and from those that were not
  std::int64_t num_preemptions = 0;
  std::int64_t num_stored_blocks = 0;  // copied to the host
  std::int64_t num_loaded_blocks = 0;  // and from there to the device
  std::int64_t num_blocks_to_disk = 0;
  std::int64_t num_blocks_from_disk = 0;
  double seconds = 0.0;  // on the virtual clock
  double busy_seconds = 0.0;
  double link_busy_seconds = 0.0;
  double disk_busy_seconds = 0.0;
  double mean_live_tokens = 0.0;  // own ones of agents that have begun and not ended, while half the slots are taken
};

ReplayResult replay(const std::vector<ReplayAgent>& agents, const ReplayConfig& config);

std::shared_ptr<Policy> make_policy(const std::string& name, double ttl_seconds);

}  // namespace paged
