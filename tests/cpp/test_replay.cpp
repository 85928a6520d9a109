// SPDX-License-Identifier: Apache-2.0
// The replay against numbers worked out by hand: one agent alone, and the same trace twice.
#include <cmath>

#include "check.h"
#include "sim/replay.h"

namespace paged {
namespace {

ReplayConfig config(const std::string& policy) {
  ReplayConfig result;
  result.num_blocks = 100;
  result.max_num_batched_tokens = 64;
  result.max_model_len = 400;
  result.policy = make_policy(policy, 2.0);
  result.device = {0.5, {0.1, 0.0}, 1.0, 0.0};
  return result;
}

TEST(one_agent_alone) {
  std::vector<ReplayAgent> agents(1);
  agents[0].turns = {{-1, 20, 3, 7.0, -1.0, 0, -1}, {-1, 4, 1, 0.0, -1.0, 0, -1}};
  const ReplayResult result = replay(agents, config("hazard"));
  // 20 tokens; two decodes; the tool; 7 tokens (23 were there, of which 20 in full blocks) and no decode after them.
  const double expected = (0.5 + 2.0) + 2 * 1.5 + 7.0 + (0.5 + 0.7);
  CHECK(std::abs(result.job_seconds[0] - expected) < 1e-9, result.job_seconds[0], " ", expected);
  CHECK_EQ(result.resume_seconds.size(), 1u);
  CHECK(std::abs(result.resume_seconds[0] - 1.2) < 1e-9);
  CHECK_EQ(result.num_prefill_tokens, 27);
}

TEST(waits_that_end_together) {
  std::vector<ReplayAgent> agents(2);
  for (ReplayAgent& agent : agents) agent.turns = {{-1, 20, 1, 7.0, -1.0, 0, -1}, {-1, 3, 1, 0.0, -1.0, 0, -1}};
  agents[1].turns[0].gap = 0.5;  // too short for that
  ReplayConfig bursts = config("lru");
  bursts.burst_every = 100.0;
  const ReplayResult result = replay(agents, bursts);  // one after the other, each with a first step of 2.5 s
  CHECK(std::abs(result.job_seconds[0] - (100.0 + 0.9)) < 1e-9, result.job_seconds[0]);
  CHECK(std::abs(result.job_seconds[1] - (2.5 + 0.5 + 0.9)) < 1e-9, result.job_seconds[1]);
}

// Two agents, of whom the pool holds one.
std::vector<ReplayAgent> two_agents() {
  std::vector<ReplayAgent> agents(2);
  agents[0].turns = {{-1, 40, 1, 100.0, -1.0, 0, -1}, {-1, 4, 1, 0.0, -1.0, 0, -1}};
  agents[1].turns = {{-1, 56, 1, 0.0, -1.0, 0, -1}};
  return agents;
}
ReplayConfig pool_for_one() {
  ReplayConfig result = config("lru");
  result.num_blocks = 16;
  result.num_slots = 2;
  result.stagger = 40.0;  // the second begins after 20 s
  return result;
}

// What the first loses goes to the host before, and comes back from there.
TEST(a_context_that_comes_back_from_the_host) {
  const std::vector<ReplayAgent> agents = two_agents();
  ReplayConfig with = pool_for_one();
  ReplayConfig without = with;
  with.num_host_blocks = 16;
  with.link = {3.0, 0.125};
  const ReplayResult result = replay(agents, with), again = replay(agents, without);
  // Of the first one's ten blocks the second takes some. They come back in one transfer; four tokens and the first
  // answer are new.
  CHECK_EQ(result.num_prefill_tokens, 40 + 56 + 5);
  CHECK(again.num_prefill_tokens > result.num_prefill_tokens);
  CHECK(result.num_loaded_blocks > 0 && result.num_stored_blocks >= result.num_loaded_blocks);
  const double load = 3.0 + 0.125 * static_cast<double>(result.num_loaded_blocks);
  const double store = 3.0 + 0.125 * 2;  // of blocks of the second one that make room
  CHECK(std::abs(result.resume_seconds[0] - (store + load + 0.5 + 0.5)) < 1e-9, result.resume_seconds[0], " ", load);
  CHECK(result.link_busy_seconds >= load + 3.0 && result.link_busy_seconds < 60.0, result.link_busy_seconds);
  CHECK_EQ(again.num_stored_blocks, 0);
}

// The same with a disk of other speeds for both ways, each copy of which goes over the link as well.
TEST(a_context_that_comes_back_from_the_disk) {
  const std::vector<ReplayAgent> agents = two_agents();
  ReplayConfig with = pool_for_one();
  with.num_disk_blocks = 16;
  with.link = {0.5, 0.0625};
  with.disk = {2.0, 0.03125, 0.125};
  const ReplayResult result = replay(agents, with);
  CHECK_EQ(result.num_prefill_tokens, 40 + 56 + 5);
  CHECK(result.num_blocks_from_disk > 0 && result.num_blocks_to_disk >= result.num_blocks_from_disk);
  CHECK_EQ(result.num_stored_blocks + result.num_loaded_blocks, 0);
  const double load = 2.5 + 0.09375 * static_cast<double>(result.num_blocks_from_disk);
  const double store = 2.5 + 0.1875 * 2;
  CHECK(std::abs(result.resume_seconds[0] - (store + load + 0.5 + 0.5)) < 1e-9, result.resume_seconds[0], " ", load);
  CHECK(result.disk_busy_seconds > 4.0 && result.link_busy_seconds > 1.0);
}

TEST(a_replay_repeats_itself) {
  std::vector<ReplayAgent> agents(6);
  for (std::size_t i = 0; i < agents.size(); ++i)
    for (int turn = 0; turn < 5; ++turn)
      agents[i].turns.push_back(
          {turn == 3 ? 10 : -1, 20 + static_cast<std::int32_t>(3 * i), 4, 1.0 + turn, 2.0, 0, -1});
  agents[5].is_root = false;
  agents[0].turns[1].spawn = 5;
  for (const char* policy : {"lru", "session_order", "admission", "ttl", "hazard", "clairvoyant"}) {
    ReplayConfig once = config(policy);
    ReplayConfig again = config(policy);
    once.num_slots = again.num_slots = 4;
    once.num_blocks = again.num_blocks = 60;
    once.num_host_blocks = again.num_host_blocks = 40;
    once.num_disk_blocks = again.num_disk_blocks = 100;
    once.link = again.link = {0.1, 0.1};
    once.disk = again.disk = {0.2, 0.2, 0.4};
    const ReplayResult first = replay(agents, once);
    CHECK(first.job_seconds == replay(agents, again).job_seconds);
    for (const double seconds : first.job_seconds) CHECK(seconds > 0.0, "an agent has not ended");
    CHECK_EQ(first.resume_seconds.size(), 24u);
  }
}

TEST(traces_that_cannot_be_are_refused) {
  const auto refused = [](const std::vector<ReplayAgent>& agents, const ReplayConfig& with) {
    try {
      replay(agents, with);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  std::vector<ReplayAgent> agents(2);
  for (ReplayAgent& agent : agents) agent.turns = {{-1, 20, 3, 7.0, -1.0, 0, -1}};
  CHECK(!refused(agents, config("lru")));
  for (const auto& spoil : std::initializer_list<void (*)(std::vector<ReplayAgent>&)>{
           [](auto& a) { a[0].turns.clear(); }, [](auto& a) { a[0].turns[0].gap = std::nan(""); },
           [](auto& a) { a[0].turns[0].append = 400; }, [](auto& a) { a[0].turns[0].output = 0; },
           [](auto& a) { a[0].turns[0].append = -1; }, [](auto& a) { a[0].turns[0].spawn = 1; },
           [](auto& a) { a[0].turns[0].spawn = 2; }, [](auto& a) { a[1].is_root = false; },
           [](auto& a) { a[0].num_prefix_tokens = -1; }}) {
    std::vector<ReplayAgent> spoilt = agents;
    spoil(spoilt);
    CHECK(refused(spoilt, config("lru")));
  }
  ReplayConfig backwards = config("lru");
  backwards.link.per_block = -1.0;
  CHECK(refused(agents, backwards));
  backwards = config("lru");
  backwards.disk.per_block_written = -1.0;
  CHECK(refused(agents, backwards));
  ReplayConfig endless = config("lru");
  endless.device.base = std::nan("");
  CHECK(refused(agents, endless));
}

}  // namespace
}  // namespace paged
