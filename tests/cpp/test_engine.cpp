// SPDX-License-Identifier: Apache-2.0
// The step loop under a fake model, with one step in flight and with two: outputs, errors, lifetime, and many threads
// at once (run under TSan as well).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "engine/engine.h"
#include "fake_model.h"

namespace paged {
namespace {

using test::fake_completion;
using test::FakeModel;
using test::small_config;

constexpr std::chrono::milliseconds kLong(60000);

// Two cases of one body.
#define TEST_IN_FLIGHT(name)                          \
  static void name(std::int32_t max_steps_in_flight); \
  TEST(name##_with_one_step_in_flight) { name(1); }   \
  TEST(name##_with_two_steps_in_flight) { name(2); }  \
  static void name(std::int32_t max_steps_in_flight)

struct Fixture {
  explicit Fixture(std::int32_t max_steps_in_flight, TokenId poison_token = -1, TokenId fatal_token = -1) {
    const SchedulerConfig config = small_config();
    auto model = std::make_unique<FakeModel>(config.num_blocks, config.block_size, max_steps_in_flight);
    model->poison_token = poison_token;
    model->fatal_token = fatal_token;
    std::string bytes;
    std::vector<std::int64_t> offsets = {0};
    for (char c = 0; c < test::kFakeVocab; ++c) {
      bytes += static_cast<char>('!' + c);
      offsets.push_back(static_cast<std::int64_t>(bytes.size()));
    }
    auto table = std::make_shared<const TokenTable>(std::move(bytes), std::move(offsets), std::vector<bool>());
    engine = std::make_unique<Engine>(config, std::move(model), std::move(table));
  }
  std::unique_ptr<Engine> engine;
};

RequestSpec greedy(std::vector<TokenId> prompt, std::int32_t max_tokens) {
  RequestSpec spec;
  spec.prompt = std::move(prompt);
  spec.sampling.temperature = 0.0f;
  spec.sampling.max_tokens = max_tokens;
  return spec;
}

std::string text_of(const std::vector<TokenId>& tokens) {
  std::string text;
  for (TokenId token : tokens) text += static_cast<char>('!' + token);
  return text;
}

TEST_IN_FLIGHT(tokens_and_text_are_those_of_the_model) {
  Fixture fixture(max_steps_in_flight);
  const std::vector<TokenId> prompt = {1, 2, 3, 4, 5, 6, 7};
  const auto request = fixture.engine->submit(greedy(prompt, 20));
  CHECK(request->wait_finished_for(kLong));
  const Delta delta = request->take();
  CHECK(delta.token_ids == fake_completion(prompt, 20));
  CHECK_EQ(delta.text, text_of(delta.token_ids));
  CHECK(delta.finish_reason == FinishReason::kLength);
}

TEST_IN_FLIGHT(a_stop_token_ends_without_its_text_and_a_stop_string_before_itself) {
  Fixture fixture(max_steps_in_flight);
  const std::vector<TokenId> prompt = {9, 8, 7};
  const std::vector<TokenId> expected = fake_completion(prompt, 6);
  RequestSpec by_token = greedy(prompt, 20);
  by_token.sampling.stop_token_ids = {expected[3]};
  RequestSpec by_string = greedy(prompt, 20);
  by_string.sampling.stop = {text_of({expected[4], expected[5]})};
  const auto first = fixture.engine->submit(by_token);
  const auto second = fixture.engine->submit(by_string);
  CHECK(first->wait_finished_for(kLong) && second->wait_finished_for(kLong));
  const Delta a = first->take();
  const Delta b = second->take();
  CHECK_EQ(a.token_ids.size(), 4u);
  CHECK_EQ(a.text, text_of({expected[0], expected[1], expected[2]}));
  CHECK(a.finish_reason == FinishReason::kStop && b.finish_reason == FinishReason::kStop);
  CHECK_EQ(b.token_ids.size(), 6u);
  CHECK_EQ(b.text, text_of({expected[0], expected[1], expected[2], expected[3]}));
}

TEST_IN_FLIGHT(what_can_never_run_is_refused_at_submit_with_the_numbers) {
  Fixture fixture(max_steps_in_flight);
  CHECK_THROWS(fixture.engine->submit(greedy({}, 4)), std::invalid_argument, "empty");
  CHECK_THROWS(fixture.engine->submit(greedy(std::vector<TokenId>(64, 1), 4)), std::invalid_argument, "64");
  CHECK_THROWS(fixture.engine->submit(greedy({test::kFakeVocab}, 4)), std::invalid_argument, "61");
  CHECK_THROWS(fixture.engine->submit(greedy({1}, 0)), std::invalid_argument, "max_tokens");
  const auto request = fixture.engine->submit(greedy({1}, 4));
  CHECK(request->wait_finished_for(kLong));
}

TEST_IN_FLIGHT(a_row_of_nan_fails_its_request_alone) {
  const std::vector<TokenId> healthy = {3, 1, 4};
  Fixture fixture(max_steps_in_flight, 60);
  const auto bad = fixture.engine->submit(greedy({60}, 8));
  const auto good = fixture.engine->submit(greedy(healthy, 4));
  CHECK(bad->wait_finished_for(kLong) && good->wait_finished_for(kLong));
  CHECK(bad->take().finish_reason == FinishReason::kError);
  CHECK(bad->error().find("NaN") != std::string::npos);
  CHECK(good->take().token_ids == fake_completion(healthy, 4));
}

TEST_IN_FLIGHT(a_failing_step_poisons_the_engine_and_names_the_first_cause) {
  Fixture fixture(max_steps_in_flight, -1, 59);
  const auto request = fixture.engine->submit(greedy({59}, 8));
  CHECK(request->wait_finished_for(kLong));
  CHECK(request->take().finish_reason == FinishReason::kError);
  CHECK_THROWS(fixture.engine->submit(greedy({1}, 1)), InternalError, "fatal token");
  fixture.engine->close();
}

TEST_IN_FLIGHT(close_ends_what_runs_and_may_be_called_again) {
  Fixture fixture(max_steps_in_flight);
  std::vector<std::shared_ptr<Request>> requests;
  for (TokenId i = 0; i < 30; ++i) requests.push_back(fixture.engine->submit(greedy({i}, 60)));
  fixture.engine->close();
  fixture.engine->close();
  for (const auto& request : requests) CHECK(request->finished());
  CHECK(fixture.engine->closed());
  CHECK_THROWS(fixture.engine->submit(greedy({1}, 1)), EngineClosedError, "closed");
}

TEST_IN_FLIGHT(a_follower_gives_its_own_answer_whatever_becomes_of_the_first) {
  const std::vector<TokenId> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  Fixture fixture(max_steps_in_flight);
  for (int round = 0; round < 20; ++round) {
    const auto first = fixture.engine->submit(greedy(prompt, 6));
    RequestSpec spec = greedy(prompt, 9);
    spec.follows = first->id();
    const auto second = fixture.engine->submit(spec), third = fixture.engine->submit(spec);
    spec.follows = second->id();
    const auto last = fixture.engine->submit(spec);
    if (round % 2 == 0) fixture.engine->cancel(first->id());
    fixture.engine->cancel(third->id());
    for (const auto& request : {first, second, third, last}) CHECK(request->wait_finished_for(kLong));
    CHECK(second->take().token_ids == fake_completion(prompt, 9));
    CHECK(last->take().token_ids == fake_completion(prompt, 9));
  }
  RequestSpec spec = greedy(prompt, 40);
  spec.follows = fixture.engine->submit(greedy(prompt, 40))->id();
  const auto follower = fixture.engine->submit(spec);
  fixture.engine->close();
  CHECK(follower->finished());
}

// Ends a request early: at the first token equal to a random one of its completion, by its id or by its text.
void stop_early(std::mt19937& random, SamplingParams& sampling, std::vector<TokenId>& completion) {
  const TokenId last = completion[random() % completion.size()];
  if (random() % 2 == 0)
    sampling.stop_token_ids = {last};
  else
    sampling.stop = {text_of({last})};
  completion.erase(std::find(completion.begin(), completion.end(), last) + 1, completion.end());
}

// One of many client threads: submits, takes, sometimes cancels. What finishes equals the model's own completion, what
// was cancelled is a prefix of it.
void run_client(Engine& engine, unsigned seed) {
  std::mt19937 random(seed);
  for (int round = 0; round < 25; ++round) {
    std::vector<TokenId> prompt(1 + random() % 30);
    for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 3);  // few ids: prefixes are shared
    const auto count = static_cast<std::int32_t>(1 + random() % 25);
    RequestSpec spec = greedy(prompt, count);
    spec.priority = static_cast<std::int32_t>(random() % 3);
    std::vector<TokenId> expected = fake_completion(prompt, static_cast<std::size_t>(count));
    if (random() % 3 == 0) stop_early(random, spec.sampling, expected);
    const auto request = engine.submit(spec);
    const bool cancels = random() % 4 == 0;
    std::vector<TokenId> tokens;
    for (Delta delta; delta.finish_reason == FinishReason::kNone;) {
      CHECK(request->wait_for(kLong));
      delta = request->take();
      tokens.insert(tokens.end(), delta.token_ids.begin(), delta.token_ids.end());
      if (cancels) engine.cancel(request->id());
    }
    if (cancels) expected.resize(std::min(expected.size(), tokens.size()));
    CHECK(tokens == expected, "seed ", seed, " round ", round);
  }
}

TEST_IN_FLIGHT(many_threads_submit_take_and_cancel_at_once) {
  Fixture fixture(max_steps_in_flight);
  std::vector<std::thread> clients;
  std::atomic<int> num_failures{0};
  for (unsigned seed = 0; seed < 6; ++seed)
    clients.emplace_back([&, seed] {
      try {
        run_client(*fixture.engine, seed);
      } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        ++num_failures;
      }
    });
  for (std::thread& client : clients) client.join();
  CHECK_EQ(num_failures.load(), 0);
  EngineStats stats = fixture.engine->stats();
  CHECK_EQ(stats.num_waiting + stats.num_running, 0);
  // The last step in flight may yet hold blocks.
  for (int i = 0; i < 10000 && stats.num_free_blocks < small_config().num_blocks; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    stats = fixture.engine->stats();
  }
  CHECK_EQ(stats.num_free_blocks, small_config().num_blocks);
}

TEST_IN_FLIGHT(close_races_with_submit_and_cancel) {
  for (int round = 0; round < 20; ++round) {
    Fixture fixture(max_steps_in_flight);
    std::thread client([&] {
      try {
        while (true) fixture.engine->cancel(fixture.engine->submit(greedy({1, 2}, 30))->id());
      } catch (const EngineClosedError&) {
      }
    });
    std::thread closer([&] { fixture.engine->close(); });
    fixture.engine->close();
    closer.join();
    client.join();
  }
}

// Turns from several threads, commands and statistics, while another thread makes senseless proposals, some of them
// late.
TEST_IN_FLIGHT(proposals_of_a_policy_elsewhere_change_no_answer) {
  const SchedulerConfig config = small_config();
  auto desk = std::make_shared<PolicyDesk>("hazard", 5.0);
  Engine engine(config, std::make_unique<FakeModel>(config.num_blocks, config.block_size, max_steps_in_flight), nullptr,
                desk);
  std::thread policy([&] {
    std::mt19937 random(1);
    for (auto questions = desk->wait(); !questions.empty(); questions = desk->wait())
      for (const PolicyQuestion& question : questions) {
        Proposal proposal{question.view.id, question.view.revision, question.view.since};
        proposal.score = Score{false, static_cast<double>(random() % 8), random() % 2 == 0, 1e-3};
        proposal.admits = random() % 2 == 0;
        desk->propose(proposal, random() % 4 == 0 ? question.asked_at - 10.0 : question.asked_at);
        if (random() % 4 == 0) desk->count_failed();
      }
  });
  const auto talk = [&](TokenId who) {
    SessionId session = 0;
    engine.run_between_steps([&](Scheduler& scheduler) { session = scheduler.open_session({}); });
    std::vector<TokenId> tokens;
    for (TokenId turn = 0; turn < 6; ++turn) {
      RequestSpec spec = greedy({who, turn, 3}, 4);
      spec.session = session;
      tokens.insert(tokens.end(), spec.prompt.begin(), spec.prompt.end());
      const auto request = engine.submit(spec);
      CHECK(request->wait_finished_for(kLong));
      const std::vector<TokenId> answer = request->take().token_ids;
      CHECK(answer == fake_completion(tokens, 4), "session ", session, ", turn ", turn);
      tokens.insert(tokens.end(), answer.begin(), answer.end());
      engine.run_between_steps(
          [&](Scheduler& scheduler) { scheduler.sessions().pause(session, "a", {{{0.5, 0.01}}}); });
      static_cast<void>(engine.stats());
    }
  };
  std::vector<std::thread> clients;
  for (TokenId who = 0; who < 4; ++who) clients.emplace_back(talk, who);
  for (std::thread& client : clients) client.join();
  const std::int64_t num_late = desk->num_late();
  desk->propose({}, -1e9);
  CHECK(desk->num_late() > num_late, "a proposal that comes late is counted");
  engine.close();
  policy.join();
  CHECK_THROWS(Engine(config, std::make_unique<FakeModel>(config.num_blocks, config.block_size, 1), nullptr, desk),
               std::invalid_argument, "belongs to an engine already");
}

}  // namespace
}  // namespace paged
