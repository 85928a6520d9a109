// SPDX-License-Identifier: Apache-2.0
// An engine with tiers below the device, under a fake model: what commands say, what stops a prefetch, and threads that
// do everything at once (run under TSan as well).
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/block_file.h"
#include "engine/engine.h"
#include "fake_model.h"

namespace paged {
namespace {

using test::fake_completion;
using test::FakeModel;

constexpr std::chrono::milliseconds kLong(60000);

struct Fixture {
  explicit Fixture(std::int32_t num_host_blocks, std::int32_t num_disk_blocks, std::int32_t max_steps_in_flight = 1) {
    SchedulerConfig config = test::small_config();
    config.num_host_blocks = num_host_blocks;
    config.num_disk_blocks = num_disk_blocks;
    auto fake = std::make_unique<FakeModel>(config.num_blocks, config.block_size, max_steps_in_flight);
    model = fake.get();
    engine = std::make_unique<Engine>(config, std::move(fake), nullptr, nullptr,
                                      std::filesystem::temp_directory_path().string());
  }

  template <typename Function>
  auto ask(const Function& function) {
    decltype(function(std::declval<SessionTable&>())) result{};
    engine->run_between_steps([&](Scheduler& scheduler) { result = function(scheduler.sessions()); });
    return result;
  }
  SessionId open() {
    SessionId id = 0;
    engine->run_between_steps([&](Scheduler& scheduler) { id = scheduler.open_session({"", 1.0}); });
    return id;
  }
  std::vector<TokenId> generate(std::vector<TokenId> prompt, std::int32_t max_tokens, SessionId session = 0) {
    RequestSpec spec;
    spec.prompt = std::move(prompt);
    spec.sampling.temperature = 0.0f;
    spec.sampling.max_tokens = max_tokens;
    spec.session = session;
    const auto request = engine->submit(spec);
    CHECK(request->wait_finished_for(kLong));
    return request->take().token_ids;
  }
  Residency residency(SessionId id) {
    return ask([id](SessionTable& table) { return table.report(id).residency; });
  }
  bool moves() {
    bool any = false;
    engine->run_between_steps([&](Scheduler& scheduler) { any = scheduler.blocks().has_transfers(); });
    return any;
  }

  FakeModel* model;
  std::unique_ptr<Engine> engine;
};

void until(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kLong;
  while (!condition()) {
    CHECK(std::chrono::steady_clock::now() < end, "nothing came of it");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::vector<TokenId> prompt_of(int seed, int count) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<TokenId>((seed * 7 + i * i) % test::kFakeVocab));
  return tokens;
}

// A session of ten blocks that are all below the device and nowhere else.
SessionId demoted_session(Fixture& fixture, Tier tier, std::vector<TokenId>& tokens) {
  const SessionId id = fixture.open();
  tokens = prompt_of(1, 40);
  const std::vector<TokenId> answer = fixture.generate(tokens, 3, id);
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  until([&] {
    return fixture.ask([&](SessionTable& table) { return table.demote(id, tier); }).status == ReceiptStatus::kAccepted;
  });
  until([&] { return !fixture.moves(); });
  for (int seed = 2; fixture.residency(id).num_on_device > 0; ++seed) fixture.generate(prompt_of(seed, 60), 3);
  until([&] { return !fixture.moves(); });
  const Residency residency = fixture.residency(id);
  CHECK_EQ(tier == Tier::kHost ? residency.num_on_host : residency.num_on_disk, 10);
  return id;
}

// What stops a prefetch: copies that have not begun are left, those that were made stay.
void stops_a_prefetch(Tier tier, const std::function<Receipt(SessionTable&, SessionId)>& command) {
  Fixture fixture(tier == Tier::kHost ? 60 : 0, tier == Tier::kDisk ? 60 : 0);
  std::vector<TokenId> tokens;
  const SessionId id = demoted_session(fixture, tier, tokens);
  const int num_before = fixture.model->blocks.num_writes;
  fixture.model->blocks.is_held = true;
  const Receipt fetched = fixture.ask([&](SessionTable& table) { return table.prefetch(id); });
  CHECK(fetched.num_blocks > 3, fetched.num_blocks);
  fixture.model->blocks.num_writes.wait(num_before);  // the first has begun
  CHECK(fixture.ask([&](SessionTable& table) { return command(table, id); }).status != ReceiptStatus::kRejected);
  fixture.ask([](SessionTable&) { return 0; });  // a step loop's turn, in which the mover is told
  fixture.model->blocks.is_held = false;
  fixture.model->blocks.is_held.notify_all();
  until([&] { return !fixture.moves(); });
  CHECK_EQ(fixture.model->blocks.num_writes - num_before, 1);
  if (fixture.ask([&](SessionTable& table) { return table.find(id) != nullptr; }))
    CHECK_EQ(fixture.residency(id).num_on_device, 1, "what was copied is there");
  CHECK(fixture.generate(tokens, 5) == fake_completion(tokens, 5));
}

TEST(rewind_stops_a_prefetch) {
  stops_a_prefetch(Tier::kHost, [](SessionTable& table, SessionId id) { return table.rewind(id, 41); });
}
TEST(close_stops_a_prefetch) {
  stops_a_prefetch(Tier::kDisk, [](SessionTable& table, SessionId id) { return table.close(id); });
}
TEST(demote_stops_a_prefetch) {
  stops_a_prefetch(Tier::kDisk, [](SessionTable& table, SessionId id) { return table.demote(id, Tier::kDisk); });
}
TEST(a_pause_stops_a_prefetch) {
  stops_a_prefetch(Tier::kHost, [](SessionTable& table, SessionId id) { return table.pause(id, "t", {}); });
}

TEST(what_goes_from_the_host_is_on_the_disk) {
  Fixture fixture(8, 200);
  std::vector<std::vector<TokenId>> prompts;
  for (int seed = 0; seed < 8; ++seed) prompts.push_back(prompt_of(seed, 50));
  for (int round = 0; round < 3; ++round)
    for (const std::vector<TokenId>& prompt : prompts) CHECK(fixture.generate(prompt, 4) == fake_completion(prompt, 4));
  const EngineStats stats = fixture.engine->stats();
  CHECK(stats.num_disk_bytes_loaded > 0, stats.num_disk_bytes_loaded);
  CHECK(stats.num_cached_tokens > 2 * 8 * 40 / 2, stats.num_cached_tokens);
  CHECK_EQ(stats.num_disk_errors, 0);
}

TEST(a_block_file_returns_what_was_written_or_fails) {
  const std::string folder = std::filesystem::temp_directory_path().string();
  BlockFile file(folder, 3, 100);
  std::vector<std::byte> block(100, std::byte{7}), other(100, std::byte{9}), read(100);
  file.write(0, block.data());
  file.write(2, other.data());
  file.read(0, read.data());
  CHECK(read == block);
  file.read(2, read.data());
  CHECK(read == other);
  CHECK_THROWS(file.read(1, read.data()), BlockFileError, "checksum");
  CHECK_THROWS(BlockFile(folder + "/none", 3, 100), std::invalid_argument, "No such file");
  CHECK_THROWS(BlockFile(folder, 1 << 30, 1 << 30), std::invalid_argument, "disk_cache");
}

// One thread's sessions; it ends when the engine is closed.
void use_sessions(Fixture& fixture, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random); };
  for (int i = 0; i < 12; ++i) {
    const SessionId id = fixture.open();
    std::vector<TokenId> tokens;
    for (int turn = 0; turn < 3; ++turn) {
      const std::vector<TokenId> added = prompt_of(static_cast<int>(seed) * 100 + below(5), 4 + below(14));
      tokens.insert(tokens.end(), added.begin(), added.end());
      const std::vector<TokenId> answer = fixture.generate(added, 3, id);
      if (answer.size() < 3) return;  // it was closed meanwhile
      CHECK(answer == fake_completion(tokens, 3));
      tokens.insert(tokens.end(), answer.begin(), answer.end());
      for (int command = below(4); command > 0; --command)
        fixture.ask([&](SessionTable& table) {
          const int choice = below(4);
          if (choice == 0) return table.pause(id, "tool", {{{0.5, 0.01 * below(100)}}});
          if (choice == 1) return table.prefetch(id);
          return table.demote(id, choice == 2 ? Tier::kHost : Tier::kDisk);
        });
    }
    if (below(2))
      fixture.ask([&](SessionTable& table) { return table.close(id); });
    else
      fixture.engine->run_some_time([id](Scheduler& scheduler) { scheduler.sessions().close(id); });
  }
}

void sessions_from_many_threads(std::int32_t max_steps_in_flight, bool closes) {
  Fixture fixture(10, 40, max_steps_in_flight);
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      try {
        use_sessions(fixture, seed);
      } catch (const EngineClosedError&) {
        CHECK(closes, "it was closed by nobody");
      }
    });
  threads.emplace_back([&] {
    for (int i = 0; i < 100; ++i) fixture.engine->stats(), std::this_thread::yield();
  });
  if (closes) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    fixture.engine->close();
  }
  for (std::thread& thread : threads) thread.join();
  if (!closes) CHECK(fixture.engine->stats().num_disk_bytes_stored > 0);
}

TEST(sessions_from_many_threads_with_one_step_in_flight) { sessions_from_many_threads(1, false); }
TEST(sessions_from_many_threads_with_two_steps_in_flight) { sessions_from_many_threads(2, false); }
TEST(closed_under_sessions_of_many_threads) {
  for (std::int32_t i = 0; i < 4; ++i) sessions_from_many_threads(1 + i % 2, true);
}

// The child has none of the threads, and locks that they held are held for ever.
TEST(a_forked_child_leaves_the_engine_alone) {
  Fixture fixture(10, 40);
  std::vector<TokenId> tokens;
  const SessionId id = demoted_session(fixture, Tier::kDisk, tokens);
  for (int i = 0; i < 6; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);
      fixture.engine->run_some_time([](Scheduler&) {});
      fixture.engine->close();
      const bool is_closed = fixture.engine->closed() && fixture.engine->is_of_another_process();
      _exit(is_closed ? 0 : 1);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    const std::vector<TokenId> answer = fixture.generate({5, 6}, 1, id);
    tokens.insert(tokens.end(), {5, 6});
    CHECK(answer == fake_completion(tokens, 1));
    tokens.push_back(answer[0]);
  }
}

}  // namespace
}  // namespace paged
