// SPDX-License-Identifier: Apache-2.0
// Blocks that come back from below while little is free.
#include <numeric>
#include <vector>

#include "check.h"
#include "core_simulation.h"

namespace paged {
namespace {

constexpr std::int32_t kNumBlocks = 12;

SequenceSpec request(SequenceId id, std::int32_t num_blocks, std::int32_t num_generated) {
  SequenceSpec spec{.id = id, .prompt = std::vector<TokenId>(static_cast<std::size_t>(4 * num_blocks - num_generated))};
  std::iota(spec.prompt.begin(), spec.prompt.end(), static_cast<TokenId>(1000 * id));
  spec.stop.max_total_tokens = 4 * num_blocks;
  return spec;
}

// A session of six blocks, stored on the host, of which a request of `num_taken` blocks has taken the last ones from
// the device. Prefetched while another request runs in `num_running` blocks. Blocks loaded.
std::int32_t prefetch_beside(std::int32_t num_taken, std::int32_t num_running) {
  test::Simulation simulation({.num_blocks = kNumBlocks,
                               .block_size = 4,
                               .max_num_sequences = 8,
                               .max_num_batched_tokens = 64,
                               .max_model_len = 400,
                               .num_host_blocks = 40});
  SessionTable& sessions = simulation.scheduler.sessions();
  const SessionId id = simulation.scheduler.open_session({"", 1.0});
  SequenceSpec turn = request(1, 6, 1);
  turn.session = id;
  simulation.add_turn(turn);
  simulation.run();
  for (int i = 0; i < 6; ++i) {  // as much at once as a share of the pool
    CHECK(sessions.demote(id, Tier::kHost).status != ReceiptStatus::kRejected);
    simulation.begin_transfers();
    while (!simulation.transfers.empty()) simulation.end_transfer();
  }
  simulation.add(request(2, num_taken, 1));
  simulation.run();
  simulation.add(request(3, num_running, 3));
  while (simulation.scheduler.find(3)->num_computed_tokens == 0) simulation.step();

  const std::int32_t num_loaded = sessions.prefetch(id).num_blocks;
  simulation.scheduler.check_integrity();
  simulation.begin_transfers();
  simulation.run();
  CHECK_EQ(simulation.scheduler.blocks().traffic(Tier::kHost).num_loaded, num_loaded);
  return num_loaded;
}

// What is still on the device is held while the rest is loaded behind it, so that it is not free.
TEST(a_prefetch_takes_no_more_than_is_free_beside_what_it_continues) {
  std::int32_t num_loaded = 0;
  for (std::int32_t num_taken = 1; num_taken <= kNumBlocks; ++num_taken)
    for (std::int32_t num_running = 1; num_running <= kNumBlocks; ++num_running)
      num_loaded += prefetch_beside(num_taken, num_running);
  CHECK(num_loaded > 0);
}

}  // namespace
}  // namespace paged
