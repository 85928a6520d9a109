// SPDX-License-Identifier: Apache-2.0
#include "sim/replay.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <queue>
#include <set>
#include <unordered_map>

#include "base/check.h"
#include "core/hazard_policy.h"
#include "core/policies.h"
#include "core/scheduler.h"
#include "sim/baseline_policies.h"
#include "sim/modelled_mover.h"

namespace paged {
namespace {

TokenId token_of(std::uint64_t writer, std::uint64_t position) {
  std::uint64_t x = writer * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 1;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  return static_cast<TokenId>((x >> 33) & 0x3FFFFFFF);
}

class Replay {
 public:
  Replay(const std::vector<ReplayAgent>& agents, const ReplayConfig& config)
      : agents_(agents),
        config_(config),
        scheduler_(scheduler_config(config)),
        mover_(config.link, config.disk),
        states_(agents.size()) {
    scheduler_.set_step_cost(config.device.prefill);
    result_.job_seconds.resize(agents.size());
    result_.least_seconds.resize(agents.size());
    for (std::size_t i = 0; i < agents.size(); ++i)
      if (agents[i].is_root) roots_.push_back(i);
  }

  ReplayResult run() {
    for (std::int32_t slot = 0; slot < config_.num_slots && next_root_ < roots_.size(); ++slot)
      push(config_.stagger * slot / config_.num_slots, roots_[next_root_++]);
    while (!due_.empty() || scheduler_.has_work()) {
      if (!scheduler_.has_work()) idle();
      while (!due_.empty() && due_.top().first <= now_) {
        const std::size_t agent = due_.top().second;
        const double due = due_.top().first;
        due_.pop();
        begin_turn(agent, due);
      }
      if (scheduler_.has_work()) step();
    }
    result_.seconds = now_;
    result_.mean_live_tokens = live_token_seconds_ / std::max(full_seconds_, 1e-9);
    result_.num_preemptions = scheduler_.num_preemptions();
    result_.num_stored_blocks = scheduler_.blocks().traffic(Tier::kHost).num_stored;
    result_.num_loaded_blocks = scheduler_.blocks().traffic(Tier::kHost).num_loaded;
    result_.num_blocks_to_disk = scheduler_.blocks().traffic(Tier::kDisk).num_stored;
    result_.num_blocks_from_disk = scheduler_.blocks().traffic(Tier::kDisk).num_loaded;
    result_.link_busy_seconds = mover_.link_seconds();
    result_.disk_busy_seconds = mover_.disk_seconds();
    return std::move(result_);
  }

 private:
  struct State {
    std::vector<TokenId> tokens;
    SessionId session = 0;
    std::size_t turn = 0;
    double began = 0.0;
    double due = 0.0;
    double least = 0.0;
    bool is_live = false;
    bool waits_for_first_token = false;
    std::int32_t num_known = 0;    // tokens that were computed before, by anybody
    std::int32_t num_shared = 0;   // leading tokens of others
    std::int32_t num_counted = 0;  // of its own tokens, in live_tokens_
  };

  static SchedulerConfig scheduler_config(const ReplayConfig& config) {
    SchedulerConfig result;
    result.num_blocks = config.num_blocks;
    result.block_size = config.block_size;
    result.max_num_sequences = config.max_num_sequences;
    result.max_num_batched_tokens = config.max_num_batched_tokens;
    result.max_model_len = config.max_model_len;
    result.max_wait_steps = config.max_wait_steps;
    result.num_host_blocks = config.num_host_blocks;
    result.num_disk_blocks = config.num_disk_blocks;
    result.policy = config.policy;
    return result;
  }

  void push(double when, std::size_t agent) { due_.push({when, agent}); }

  void advance(double until) {
    if (2 * num_live_roots_ >= config_.num_slots) {
      live_token_seconds_ += static_cast<double>(live_tokens_) * (until - now_);
      full_seconds_ += until - now_;
    }
    now_ = until;
    scheduler_.set_now(now_);
    while (mover_.next_end() <= now_) {
      const auto [id, end] = mover_.take_ended();
      scheduler_.finish_transfer(id, end);
    }
    start_transfers();
  }

  void start_transfers() {
    for (BlockTransfer& transfer : scheduler_.take_transfers()) mover_.start(std::move(transfer), now_);
  }

  // Until a transfer has ended or the next turn comes.
  void idle() {
    double until = mover_.next_end();
    if (!due_.empty()) until = std::min(until, due_.top().first);
    if (now_ < until) advance(until);
  }

  void begin(std::size_t agent, State& state, double due) {
    state.is_live = true;
    state.began = due;
    const ReplayAgent& spec = agents_[agent];
    if (!spec.is_root) return;
    ++num_live_roots_;
    for (std::int32_t i = 0; i < spec.num_prefix_tokens; ++i)
      state.tokens.push_back(token_of(static_cast<std::uint64_t>(spec.prefix), static_cast<std::uint64_t>(i)));
    state.num_shared = spec.num_prefix_tokens;
    if (!prefixes_.insert(spec.prefix).second) state.num_known = spec.num_prefix_tokens;
    if (config_.uses_sessions) state.session = scheduler_.open_session({});
  }

  void begin_turn(std::size_t agent, double due) {
    State& state = states_[agent];
    if (!state.is_live) begin(agent, state, due);
    const ReplayTurn& turn = agents_[agent].turns[state.turn];
    state.due = due;
    if (turn.keep >= 0 && turn.keep < std::ssize(state.tokens)) {
      state.tokens.resize(static_cast<std::size_t>(turn.keep));
      state.num_known = std::min(state.num_known, turn.keep);
      if (state.session != 0) scheduler_.sessions().rewind(state.session, turn.keep);
    }
    const std::size_t num_session_tokens =
        state.session == 0 ? 0 : scheduler_.sessions().find(state.session)->tokens.size();
    for (std::int32_t i = 0; i < turn.append; ++i)
      state.tokens.push_back(token_of(1000 + agent * 4096 + state.turn, static_cast<std::uint64_t>(i)));
    SequenceSpec spec;
    spec.id = next_sequence_++;
    spec.session = state.session;
    spec.prompt.assign(state.tokens.begin() + static_cast<std::ptrdiff_t>(num_session_tokens), state.tokens.end());
    const auto num_prompt = static_cast<std::int32_t>(state.tokens.size());
    spec.stop.max_total_tokens = num_prompt + turn.output;
    count_least(state, turn, num_prompt);
    state.waits_for_first_token = true;
    owner_of_[spec.id] = agent;
    scheduler_.add(std::move(spec));
    count_live(state);
  }

  void count_least(State& state, const ReplayTurn& turn, std::int32_t num_prompt) {
    const std::int32_t num_new = num_prompt - state.num_known;
    result_.num_new_tokens += num_new;
    const ReplayDevice& device = config_.device;
    state.least += device.base + span_cost(state.num_known, num_new, device.prefill) +
                   (turn.output - 1) * (device.base + device.decode_base +
                                        device.per_decoded_context_token * (num_prompt + turn.output / 2.0));
    state.num_known = num_prompt + turn.output - 1;
  }

  void count_live(State& state) {
    const auto count =
        state.is_live ? std::max(0, static_cast<std::int32_t>(state.tokens.size()) - state.num_shared) : 0;
    live_tokens_ += count - state.num_counted;
    state.num_counted = count;
  }

  void step() {
    const StepPlan& plan = scheduler_.schedule();
    start_transfers();
    if (plan.sequences.empty()) {
      PAGED_INVARIANT(scheduler_.blocks().has_transfers(), "the replay stands still");
      return idle();
    }
    const ReplayDevice& device = config_.device;
    double seconds = device.base;
    bool decodes = false;
    for (const ScheduledSequence& scheduled : plan.sequences) {
      const Sequence& sequence = *scheduler_.find(scheduled.id);
      if (scheduled.num_computed_tokens >= sequence.num_prompt_tokens) {
        decodes = true;
        seconds += device.per_decoded_context_token * scheduled.num_computed_tokens;
      } else {
        seconds += span_cost(scheduled.num_computed_tokens, scheduled.num_scheduled_tokens, device.prefill);
        result_.num_prefill_tokens += scheduled.num_scheduled_tokens;
      }
    }
    if (decodes) seconds += device.decode_base;
    scheduler_.build_batch(plan);
    result_.busy_seconds += seconds;
    advance(now_ + seconds);
    sampled_.clear();
    for (const ScheduledSequence& scheduled : plan.sequences)
      if (scheduled.samples)
        sampled_.push_back(token_of(~scheduled.id, static_cast<std::uint64_t>(scheduled.sampled_position())));
    events_.clear();
    scheduler_.commit(plan, sampled_, events_);
    start_transfers();
    for (const TokenEvent& event : events_) take(event);
  }

  void take(const TokenEvent& event) {
    const std::size_t agent = owner_of_.at(event.id);
    State& state = states_[agent];
    if (state.waits_for_first_token && state.turn > 0) result_.resume_seconds.push_back(now_ - state.due);
    state.waits_for_first_token = false;
    state.tokens.push_back(event.token);
    if (event.finish_reason == FinishReason::kNone) return;
    owner_of_.erase(event.id);
    count_live(state);
    end_turn(agent, state);
  }

  void end_turn(std::size_t agent, State& state) {
    const ReplayTurn& turn = agents_[agent].turns[state.turn++];
    if (turn.spawn >= 0) spawn(state, static_cast<std::size_t>(turn.spawn));
    if (state.turn == agents_[agent].turns.size()) return end(agent, state);
    state.least += turn.gap;
    const double gap = gap_after(turn);
    push(now_ + gap, agent);
    if (state.session == 0 || !config_.tells_tools) return;
    Expectation expectation;
    if (turn.guess >= 0.0) expectation.quantiles = {{0.5, std::max(turn.guess * gap / std::max(turn.gap, 1e-9), 1e-3)}};
    scheduler_.sessions().pause(state.session, std::to_string(turn.tool), expectation);
  }

  double gap_after(const ReplayTurn& turn) const {
    if (config_.burst_every <= 0.0 || turn.gap < 1.0) return turn.gap;
    return std::ceil((now_ + turn.gap) / config_.burst_every) * config_.burst_every - now_;
  }

  void spawn(const State& parent, std::size_t agent) {
    State& state = states_[agent];
    state.tokens = parent.tokens;
    state.num_known = parent.num_known;
    state.num_shared = static_cast<std::int32_t>(parent.tokens.size());
    if (parent.session != 0) state.session = scheduler_.fork_session(parent.session);
    push(now_, agent);
  }

  void end(std::size_t agent, State& state) {
    state.is_live = false;
    count_live(state);
    result_.job_seconds[agent] = now_ - state.began;
    result_.least_seconds[agent] = state.least;
    if (state.session != 0) end_session(state.session);
    state.tokens = {};
    if (!agents_[agent].is_root) return;
    --num_live_roots_;
    if (next_root_ < roots_.size()) push(now_, roots_[next_root_++]);
  }

  void end_session(SessionId session) {
    for (const Miss& miss : scheduler_.sessions().find(session)->misses)
      (miss.cause == MissCause::kEvicted ? result_.num_evicted_tokens : result_.num_expired_tokens) += miss.num_tokens;
    scheduler_.sessions().close(session);
  }

  const std::vector<ReplayAgent>& agents_;
  const ReplayConfig& config_;
  Scheduler scheduler_;
  ModelledMover mover_;
  std::vector<State> states_;
  std::vector<std::size_t> roots_;
  std::size_t next_root_ = 0;
  using Due = std::pair<double, std::size_t>;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::unordered_map<SequenceId, std::size_t> owner_of_;
  std::set<std::int32_t> prefixes_;  // computed once
  SequenceId next_sequence_ = 1;
  double now_ = 0.0;
  std::int64_t live_tokens_ = 0;
  std::int32_t num_live_roots_ = 0;
  double live_token_seconds_ = 0.0;  // and the time, while at least half as many live as may
  double full_seconds_ = 0.0;
  std::vector<TokenId> sampled_;
  std::vector<TokenEvent> events_;
  ReplayResult result_;
};

constexpr double kMaxSeconds = 1e9;

void check_seconds(double seconds, const char* what) {
  PAGED_CHECK(seconds >= 0.0 && seconds <= kMaxSeconds, what, " must be within 0 and ", kMaxSeconds, ", got ", seconds);
}

void check_config(const ReplayConfig& config) {
  PAGED_CHECK(config.policy != nullptr, "a replay needs a policy");
  PAGED_CHECK(config.num_slots >= 1, "num_slots must be at least 1, got ", config.num_slots);
  check_seconds(config.stagger, "stagger");
  check_seconds(config.burst_every, "burst_every");
  check_seconds(config.device.base, "base");
  check_seconds(config.device.prefill.per_token, "per_token");
  check_seconds(config.device.prefill.per_token_pair, "per_token_pair");
  check_seconds(config.device.decode_base, "decode_base");
  check_seconds(config.device.per_decoded_context_token, "per_decoded_context_token");
  PAGED_CHECK(config.num_host_blocks >= 0, "num_host_blocks must be at least 0, got ", config.num_host_blocks);
  check_seconds(config.link.per_transfer, "per_transfer");
  check_seconds(config.link.per_block, "per_block");
  PAGED_CHECK(config.num_disk_blocks >= 0, "num_disk_blocks must be at least 0, got ", config.num_disk_blocks);
  check_seconds(config.disk.per_transfer, "per_transfer");
  check_seconds(config.disk.per_block_read, "per_block_read");
  check_seconds(config.disk.per_block_written, "per_block_written");
}

// Tokens after the turn, which begins with `length` of them.
std::int64_t checked_length(const ReplayTurn& turn, std::int64_t length, const ReplayConfig& config) {
  check_seconds(turn.gap, "a gap");
  PAGED_CHECK(turn.guess <= kMaxSeconds, "a guess must be at most ", kMaxSeconds, " seconds, got ", turn.guess);
  PAGED_CHECK(turn.append >= 0 && turn.output >= 1, "a turn appends ", turn.append, " tokens and generates ",
              turn.output, "; at least 0 and 1 are possible");
  if (turn.keep >= 0) length = std::min<std::int64_t>(length, turn.keep);
  length += turn.append;
  PAGED_CHECK(length >= 1 && length + turn.output <= config.max_model_len, "a turn has ", length, " tokens and ",
              turn.output, " to come; at least 1, and together at most max_model_len = ", config.max_model_len);
  return length + turn.output;
}

// Every agent begins once, as a root or spawned, and stays within what the core can run.
void check_agents(const std::vector<ReplayAgent>& agents, const ReplayConfig& config) {
  std::vector<std::pair<std::size_t, std::int64_t>> to_begin;  // with so many tokens
  for (std::size_t i = 0; i < agents.size(); ++i) {
    PAGED_CHECK(!agents[i].turns.empty(), "agent ", i, " has no turn");
    PAGED_CHECK(agents[i].num_prefix_tokens >= 0, "agent ", i, " has ", agents[i].num_prefix_tokens, " prefix tokens");
    if (agents[i].is_root) to_begin.emplace_back(i, agents[i].num_prefix_tokens);
  }
  std::vector<bool> begun(agents.size());
  while (!to_begin.empty()) {
    auto [index, length] = to_begin.back();
    to_begin.pop_back();
    PAGED_CHECK(!begun[index], "agent ", index, " begins twice");
    begun[index] = true;
    for (const ReplayTurn& turn : agents[index].turns) {
      length = checked_length(turn, length, config);
      if (turn.spawn < 0) continue;
      PAGED_CHECK(turn.spawn < std::ssize(agents), "a turn spawns agent ", turn.spawn, " of ", agents.size());
      to_begin.emplace_back(turn.spawn, length);
    }
  }
  for (std::size_t i = 0; i < agents.size(); ++i)
    PAGED_CHECK(begun[i], "agent ", i, " is no root, and nobody spawns it");
}

}  // namespace

ReplayResult replay(const std::vector<ReplayAgent>& agents, const ReplayConfig& config) {
  check_config(config);
  check_agents(agents, config);
  return Replay(agents, config).run();
}

std::shared_ptr<Policy> make_policy(const std::string& name, double ttl_seconds) {
  if (name == "lru") return std::make_shared<LruPolicy>();
  if (name == "ttl") return std::make_shared<TtlPolicy>(ttl_seconds);
  if (name == "priority") return std::make_shared<PriorityPolicy>();
  if (name == "clairvoyant") return std::make_shared<ClairvoyantPolicy>();
  if (name == "session_order") return std::make_shared<SessionOrderPolicy>();
  if (name == "admission") return std::make_shared<AdmissionPolicy>();
  PAGED_CHECK(name == "hazard", "a policy is lru, session_order, admission, ttl, priority, hazard or clairvoyant, got ",
              name);
  return std::make_shared<HazardPolicy>();
}

}  // namespace paged
