// SPDX-License-Identifier: Apache-2.0
#include "core/hazard_policy.h"

#include <algorithm>
#include <cmath>

namespace paged {
namespace {

constexpr double kPowerLawWeight = 2.0;  // observations that the rule for no data counts as
constexpr double kAllToolsWeight = 8.0;  // and what all tools tell of one
constexpr double kTrustWeight = 4.0;     // and the trust in guesses, at first
constexpr double kDoubt = 1.0 / 8;       // that quantiles are right, against the rule for no data
constexpr double kFade = 0.02;           // of the record of who foretells better
constexpr double kLeastShare = 1e-3;     // what the unforeseen counts as, there
constexpr double kQueueRate = 20.0;      // a turn that waits to be admitted is as good as back
constexpr double kRoomRate = 0.02;       // one that waits for room comes later
constexpr double kLeastSeconds = 0.05;   // between two scores of a session
constexpr double kRent = 0.1;            // of the whole pool for a second, in seconds of the device
constexpr double kHostRent = 1e-4;       // of the whole host's tier, and of the disk's
constexpr double kDiskRent = 1e-6;
constexpr double kColdShare = 1.0 / 8;  // of its tokens lost: a session is to be built up again
constexpr double kUnownedReturn = 0.5;  // blocks of nobody: of those that come back, by the rule for no data
constexpr double kUnownedSeconds = 1.0;

double rent(const Pressure& pressure) { return kRent / pressure.num_blocks; }

bool is_worth(double value, Tier tier, const Pressure& pressure) {
  const std::int32_t num_blocks = tier == Tier::kHost ? pressure.num_host_blocks : pressure.num_disk_blocks;
  return num_blocks > 0 && value > (tier == Tier::kHost ? kHostRent : kDiskRent) / num_blocks;
}

bool is_away(const SessionView& session) {
  return session.state == SessionState::kIdle || session.state == SessionState::kPaused;
}

Score present(const SessionView& session, const Pressure& pressure) {
  if (session.state == SessionState::kWaitsForRoom)  // to hold what is left of it would make others wait in turn
    return {false, session.weight * kRoomRate * block_cost(session.num_resident_tokens, pressure)};
  return {false, session.weight * kQueueRate * block_cost(session.num_resident_tokens, pressure), true,
          std::numeric_limits<double>::infinity(), 0.0};
}

}  // namespace

double guess_of(const Expectation& expectation) {
  const auto& quantiles = expectation.quantiles;
  if (quantiles.empty()) return -1.0;
  std::size_t i = 0;
  while (i + 1 < quantiles.size() && quantiles[i].first < 0.5) ++i;
  if (i == 0 || quantiles[i].first <= 0.5) return quantiles[i].second;
  const auto [low, low_seconds] = quantiles[i - 1];
  const auto [high, high_seconds] = quantiles[i];
  const double share = (0.5 - low) / (high - low);
  return std::exp(std::log(std::max(low_seconds, 1e-3)) * (1 - share) + std::log(std::max(high_seconds, 1e-3)) * share);
}

HazardPolicy::Tool HazardPolicy::believed_at_first() {
  Tool tool;
  tool.believed.mix_power_law(kPowerLawWeight);
  return tool;
}

HazardPolicy::Tool HazardPolicy::guesses_at_first() {
  Tool tool;
  tool.believed.mix_point(1.0, kTrustWeight);
  tool.believed.mix_power_law(kTrustWeight / 8);
  return tool;
}

const WaitHistogram& HazardPolicy::waits_for(const std::string& tool) const {
  const auto found = tools_.find(tool);
  return found == tools_.end() ? all_.believed : found->second.believed;
}

HazardPolicy::Outlook HazardPolicy::outlook(const SessionView& session) const {
  if (guess_of(session.expectation) > 0.0 && guess_advantage_ >= 0.0) return announced(session.expectation);
  return {&waits_for(session.tool), 1.0};
}

HazardPolicy::Outlook HazardPolicy::announced(const Expectation& expectation) const {
  if (expectation.quantiles.size() < 2) return {&guesses_.believed, guess_of(expectation)};
  Outlook outlook{nullptr, guesses_.believed.median_left(0.0, 1.0), WaitHistogram()};
  outlook.announced->mix_quantiles(expectation.quantiles, 1.0);
  outlook.announced->mix_power_law(kDoubt);
  return outlook;
}

Score HazardPolicy::score(const SessionView& session, const Pressure& pressure) const {
  if (!is_away(session)) return present(session, pressure);
  const Outlook expected = outlook(session);
  const WaitHistogram& waits = expected.waits();
  const double scale = expected.scale;
  const double rate = waits.return_rate(session.since, scale);
  Score score;
  score.by_age = false;
  score.value = session.weight * rate * block_cost(session.num_resident_tokens, pressure);
  score.hold = score.value > rent(pressure);
  score.expected_in = waits.median_left(session.since, scale);
  score.valid_for = std::max(kLeastSeconds, std::min(session.since, score.expected_in) / 4);
  return score;
}

double HazardPolicy::score_by_age(double seconds, const Pressure& pressure) const {
  return kUnownedReturn * block_cost(0, pressure) / (kUnownedSeconds + seconds);
}

Tier HazardPolicy::place(const SessionView& session, const Pressure& pressure) const {
  const Score now = score(session, pressure);
  if (now.hold) return Tier::kDevice;
  for (const Tier tier : {Tier::kHost, Tier::kDisk})
    if (is_worth(now.value, tier, pressure) && copy_pays(tier, session.num_tokens, pressure)) return tier;
  return Tier::kNowhere;
}

bool HazardPolicy::keeps_by_age(Tier tier, double seconds, const Pressure& pressure) const {
  return is_worth(score_by_age(seconds, pressure), tier, pressure);
}

bool HazardPolicy::admit(const SessionView& session, const Pressure&) const {
  const std::int32_t num_lost = session.num_tokens - session.num_resident_tokens;
  return session.num_tokens > 0 && num_lost <= kColdShare * session.num_tokens;
}

void HazardPolicy::on_event(SessionEvent event, const SessionView& session) {
  if (event == SessionEvent::kReturned) learn(session, true);
  if (event == SessionEvent::kClosed && session.state == SessionState::kPaused) learn(session, false);
}

void HazardPolicy::learn(const SessionView& session, bool came_back) {
  const double guess = guess_of(session.expectation);
  if (came_back && guess > 0.0) {
    const double by_guess = std::log(std::max(announced(session.expectation).share_of(session.since), kLeastShare));
    const double by_tool = std::log(std::max(waits_for(session.tool).share_of(session.since), kLeastShare));
    guess_advantage_ += kFade * (by_guess - by_tool - guess_advantage_);
    guesses_.seen.add(session.since / guess);
    guesses_.believed = guesses_at_first().believed;
    guesses_.believed.mix(guesses_.seen, guesses_.seen.weight());
  }
  const auto observe = [&](Tool& tool) { came_back ? tool.seen.add(session.since) : tool.seen.add_never(); };
  observe(all_);
  all_.believed = believed_at_first().believed;
  all_.believed.mix(all_.seen, all_.seen.weight());
  if (!tools_.contains(session.tool) && tools_.size() >= kMaxTools) return;
  Tool& tool = tools_[session.tool];
  observe(tool);
  tool.believed = WaitHistogram();
  tool.believed.mix(all_.believed, kAllToolsWeight);
  tool.believed.mix(tool.seen, tool.seen.weight());
}

Score ClairvoyantPolicy::score(const SessionView& session, const Pressure& pressure) const {
  if (!is_away(session)) return present(session, pressure);
  const double left = std::max(guess_of(session.expectation) - session.since, 1e-3);
  Score score;
  score.by_age = false;
  score.value = block_cost(session.num_resident_tokens, pressure) / left;
  score.hold = score.value > rent(pressure);
  score.expected_in = left;
  score.valid_for = std::max(kLeastSeconds / 5, left / 8);
  return score;
}

}  // namespace paged
