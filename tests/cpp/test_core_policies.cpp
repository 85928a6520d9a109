// SPDX-License-Identifier: Apache-2.0
// What the histogram of waits says against numbers worked out by hand, and what the hazard policy learns.
#include <cmath>
#include <random>

#include "check.h"
#include "core/hazard_policy.h"
#include "core/policies.h"

namespace paged {
namespace {

const Pressure kPressure{1000, 4, {1e-3, 0.0}};  // rent 1e-4, a block costs 4e-3: held while the rate is above 1/40

bool near(double value, double expected, double share = 0.1) { return std::abs(value / expected - 1.0) < share; }

SessionView paused(std::string tool, double since, double guess = -1.0) {
  SessionView view;
  view.state = SessionState::kPaused;
  view.tool = std::move(tool);
  view.since = since;
  view.num_tokens = view.num_resident_tokens = 400;
  if (guess > 0.0) view.expectation.quantiles = {{0.5, guess}};
  return view;
}

TEST(buckets_are_a_quarter_octave) {
  for (double seconds = 0.002; seconds < 1e6; seconds *= 1.37) {
    const std::size_t bucket = WaitHistogram::bucket_of(seconds);
    CHECK(WaitHistogram::lower_bound(bucket) <= seconds * (1 + 1e-12));
    CHECK(seconds < WaitHistogram::lower_bound(bucket + 1) * (1 + 1e-12));
  }
  CHECK_EQ(WaitHistogram::bucket_of(0.0), 0u);
  CHECK_EQ(WaitHistogram::bucket_of(1e30), WaitHistogram::kNumBuckets - 1);
}

TEST(a_certain_wait_has_the_rate_of_what_is_left) {
  WaitHistogram waits;
  waits.add(10.0);
  for (const double elapsed : {0.0, 2.0, 5.0}) CHECK(near(waits.return_rate(elapsed), 1.0 / (10.0 - elapsed)));
  CHECK_EQ(waits.return_rate(20.0), 0.0);
  CHECK(near(waits.return_rate(5.0, 3.0), 1.0 / 25.0));
  CHECK(near(waits.median_left(4.0, 1.0), 6.0));
}

TEST(of_two_waits_the_sooner_is_worth_waiting_for) {
  WaitHistogram waits;
  waits.add(1.0);
  waits.add(100.0);
  // Give up after the first: half of them are back within a second, and nobody waits longer.
  CHECK(near(waits.return_rate(0.0), 0.5, 0.15), waits.return_rate(0.0));
  CHECK(near(waits.return_rate(2.0), 1.0 / 98.0, 0.15), waits.return_rate(2.0));
}

TEST(without_data_the_rate_is_that_of_ski_rental) {
  WaitHistogram waits;
  waits.mix_power_law(1.0);
  // Between the ends of the histogram survival falls with the logarithm of time: slowly, and the rate as 1/t.
  for (const double elapsed : {0.1, 1.0, 10.0, 100.0}) {
    const double rate = waits.return_rate(elapsed) * elapsed;
    CHECK(rate > 0.03 && rate < 0.3, rate);
  }
}

TEST(waits_that_never_end_lower_the_rate) {
  WaitHistogram waits;
  for (int i = 0; i < 50; ++i) waits.add(1.0);
  const double before = waits.return_rate(0.0);
  for (int i = 0; i < 50; ++i) waits.add_never();
  CHECK(near(waits.return_rate(0.0), before / 2, 0.1), before, " ", waits.return_rate(0.0));
}

TEST(a_quick_tool_is_held_and_then_let_go) {
  HazardPolicy policy;
  std::mt19937 random(1);
  std::lognormal_distribution<double> quick(-1.0, 0.5), slow(6.0, 0.5);
  for (int i = 0; i < 200; ++i) {
    policy.on_event(SessionEvent::kReturned, paused("quick", quick(random)));
    policy.on_event(SessionEvent::kReturned, paused("slow", slow(random)));
  }
  CHECK(policy.score(paused("quick", 0.1), kPressure).hold);
  CHECK(!policy.score(paused("quick", 30.0), kPressure).hold);
  CHECK(!policy.score(paused("slow", 3.0), kPressure).hold);
  CHECK(policy.score(paused("quick", 0.1), kPressure).value > policy.score(paused("slow", 0.1), kPressure).value);
  CHECK(policy.place(paused("quick", 0.1), kPressure) == Tier::kDevice);
  CHECK(policy.place(paused("slow", 3.0), kPressure) == Tier::kNowhere);
}

TEST(guesses_are_believed_as_far_as_they_come_true) {
  HazardPolicy trusting, corrected, distrusting;
  CHECK(near(trusting.score(paused("a", 0.0, 10.0), kPressure).expected_in, 10.0, 0.2));
  std::mt19937 random(2);
  std::lognormal_distribution<double> wait(0.0, 2.0);
  for (int i = 0; i < 400; ++i) {
    const double seconds = wait(random);
    corrected.on_event(SessionEvent::kReturned, paused("a", seconds, seconds * 10));
    distrusting.on_event(SessionEvent::kReturned, paused("a", seconds, wait(random) * wait(random)));
  }
  CHECK(near(corrected.score(paused("a", 0.0, 10.0), kPressure).expected_in, 1.0, 0.3));
  const double soon = distrusting.score(paused("a", 0.0, 0.01), kPressure).value;
  const double late = distrusting.score(paused("a", 0.0, 1000.0), kPressure).value;
  CHECK(near(soon, late, 1e-6), "a guess that tells nothing still counts: ", soon, " and ", late);
}

TEST(quantiles_are_read_at_their_median) {
  CHECK_EQ(guess_of({}), -1.0);
  CHECK_EQ(guess_of({{{0.5, 7.0}}}), 7.0);
  CHECK_EQ(guess_of({{{0.9, 7.0}}}), 7.0);
  CHECK(near(guess_of({{{0.1, 1.0}, {0.9, 100.0}}}), 10.0, 1e-9));
}

TEST(quantiles_are_a_distribution) {
  WaitHistogram waits;
  waits.mix_quantiles({{0.25, 1.0}, {0.5, 4.0}, {0.75, 256.0}}, 2.0);
  CHECK(near(waits.weight(), 2.0, 1e-9));
  CHECK(near(waits.median_left(0.0, 1.0), 4.0, 0.2));
  double before = 0.0;  // the share that is back by each of them
  double share = 0.0;
  for (const double seconds : {1.0, 4.0, 256.0, 4096.0}) {
    for (std::size_t i = 0; i < WaitHistogram::kNumBuckets; ++i) {
      const double lower = WaitHistogram::lower_bound(i);
      if (lower >= before && lower < seconds) share += waits.share_of(lower * 1.01);
    }
    before = seconds;
    CHECK(near(share, seconds == 1.0 ? 0.25 : seconds == 4.0 ? 0.5 : seconds == 256.0 ? 0.75 : 1.0, 0.01), share);
  }
  WaitHistogram certain;
  certain.mix_quantiles({{0.1, 5.0}, {0.9, 5.0}}, 1.0);
  CHECK(near(certain.share_of(5.0), 0.8, 0.2), "most of it is at one time");
  WaitHistogram at_once;
  at_once.mix_quantiles({{0.5, 0.0}, {0.9, 0.0}}, 1.0);
  CHECK(near(at_once.weight(), 1.0, 1e-9));
}

// Half of such waits end within a second and the others take minutes: whoever is away for some seconds is away for
// long, which their median cannot tell.
TEST(announced_quantiles_are_survival_and_not_only_a_median) {
  const HazardPolicy policy;
  SessionView view = paused("a", 0.5);
  view.expectation.quantiles = {{0.05, 0.9}, {0.5, 1.0}, {0.51, 200.0}, {0.95, 300.0}};
  const Score early = policy.score(view, kPressure);
  view.since = 5.0;
  const Score late = policy.score(view, kPressure);
  CHECK(early.hold && early.expected_in < 250.0, early.value);
  CHECK(late.expected_in > 100.0, late.expected_in);
  CHECK(late.value < early.value / 20, late.value, " ", early.value);
  view.since = 220.0;
  CHECK(policy.score(view, kPressure).value > 2 * late.value, "and near the end it is expected again");
}

TEST(quantiles_that_are_wrong_by_a_factor_are_corrected) {
  HazardPolicy policy;
  std::mt19937 random(3);
  std::lognormal_distribution<double> wait(0.0, 0.7);
  SessionView view;
  for (int i = 0; i < 300; ++i) {
    view = paused("a", wait(random));
    view.expectation.quantiles = {{0.1, 4.0}, {0.5, 10.0}, {0.9, 25.0}};  // ten times as long
    policy.on_event(SessionEvent::kReturned, view);
  }
  view.since = 0.0;
  CHECK(near(policy.score(view, kPressure).expected_in, 1.0, 0.4), policy.score(view, kPressure).expected_in);
}

TEST(one_whose_blocks_are_lost_waits_for_room) {
  HazardPolicy policy;
  SessionView view = paused("a", 1.0);
  CHECK(policy.admit(view, kPressure));
  view.num_resident_tokens = 100;
  CHECK(!policy.admit(view, kPressure));
  view.num_tokens = view.num_resident_tokens = 0;
  CHECK(!policy.admit(view, kPressure));
  CHECK(LruPolicy().admit(view, kPressure));
}

TEST(ttl_holds_for_its_time) {
  const TtlPolicy policy(2.0);
  CHECK(policy.score(paused("a", 1.5), kPressure).hold);
  CHECK(near(policy.score(paused("a", 1.5), kPressure).valid_for, 0.5));
  CHECK(policy.score(paused("a", 2.0), kPressure).by_age);
}

}  // namespace
}  // namespace paged
