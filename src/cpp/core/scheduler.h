// SPDX-License-Identifier: Apache-2.0
// Decides what each step runs, and owns every sequence from add() to its end. A step is schedule(), build_batch(), the
// model, commit(); build_batch() follows schedule() at once. add(), remove() and fork() are allowed between any two of
// these calls but those. One thread calls.
//
// Up to max_steps_in_flight steps may be scheduled and not yet committed, so that a device never waits for the host; it
// runs them in order, and they are committed in order. A sequence whose token a step in flight samples goes on at the
// next position with a pending token (sequence.h), unless that token surely is its last. If the commit shows that it
// has stopped, what later steps in flight compute and sample for it is dropped, and its blocks, row and id are free
// only once these are committed. The same holds for a block that a commit replaces by an equal one (retired_blocks).
//
// There are no phases: a sequence needs num_tokens - num_computed_tokens tokens, many (prefill) or one (decode), and a
// step mixes both (the scheme of vLLM's V1 scheduler; https://github.com/vllm-project/vllm).
//
// - Running sequences come first, most urgent first (waiting_queue.h). Each gets the budget but for one token for every
//   sequence behind it, so all of them advance in every step and a long prompt never stalls a decode.
// - Then the waiting are admitted, strictly in order of urgency, while rows, budget and blocks last. Admission takes
//   the blocks of all known tokens at once, so a prefill never runs out half way, and leaves one free block for each
//   running sequence, so that it is not undone in the next steps.
// - When a running sequence finds no block, the least urgent running one (maybe itself) is preempted: it frees its
//   blocks and waits; the prefix cache spares it what nobody overwrote. The most urgent sequence thus always advances.
//   Nobody is preempted under a step in flight: who finds no block stands still in this plan, and the next ones are
//   empty until all steps are committed, which may have freed enough.
// - No chunk crosses from the prompt into generated tokens, which a preempted sequence computes again: a token always
//   goes through the same kernel (StepBatch::is_decode), so preemption does not change a bit.
//
// A sequence that asks (sequence.h) is held before each token it samples, until release(): its prompt is computed but
// for the last token, then it stands still, with its row and blocks, and nobody waits for it. A token that the host
// itself chooses, from logits, comes in with supply(), in a step or between two.
//
// Logits rows are as many as sequences may run. Where prompt tokens are scored, each takes one: a long prompt is then
// computed in chunks of what the others leave.
//
// Sessions (session_table.h): a turn of a session is a sequence; its prompt begins with the session's tokens, and when
// it ends its tokens are the session's. Where the policy says so, turns queue by a deadline that comes the sooner the
// less their session was served and the longer it has waited, and one whose blocks are mostly lost waits apart, for
// room: it gets only blocks that are held for nobody, once all others are admitted, unless nothing runs. So more
// sessions than fit do not take each other's blocks in turn. Past its deadline it goes without room, if few others did
// lately.
//
// Starvation bound: a sequence is promoted after max_wait_steps steps in the queue. From then on only those running at
// that moment and those that arrived earlier can be before it, each for at most max_model_len steps at a time.
//
// A step in which every sequence decodes is O(sequences) and allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/batch_builder.h"
#include "core/block_manager.h"
#include "core/sequence.h"
#include "core/session_table.h"
#include "core/step_batch.h"
#include "core/step_plan.h"
#include "core/waiting_queue.h"

namespace paged {

struct SchedulerConfig {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 16;
  std::int32_t max_num_sequences = 256;  // running; never more than max_num_batched_tokens, for each needs a token
  std::int32_t max_num_batched_tokens = 2048;
  std::int32_t max_model_len = 0;
  std::int32_t max_wait_steps = 1024;  // in the queue, then promoted; 0 is first come, first served
  bool enable_prefix_caching = true;
  // false where generated tokens go through other kernels than prompts and a hit must not change a bit.
  bool cache_generated_tokens = true;
  std::int32_t max_steps_in_flight = 1;
  std::int32_t num_host_blocks = 0;  // of the tiers below the device; 0: none
  std::int32_t num_disk_blocks = 0;
  std::shared_ptr<Policy> policy = nullptr;  // of the cache; null: HazardPolicy
};

struct TokenEvent {
  SequenceId id = 0;
  TokenId token = 0;
  FinishReason finish_reason = FinishReason::kNone;
  std::int32_t row = 0;  // of the block tables, as in the plan
};

class Scheduler {
 public:
  // Throws std::invalid_argument for a config that cannot run.
  explicit Scheduler(const SchedulerConfig& config, BlockHash hash = hash_block);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Seconds on any clock that never goes back: what sessions' waits are measured with. To be told before add() and
  // schedule(); who has no sessions need not.
  void set_now(double seconds) { sessions_.set_now(seconds); }
  void set_step_cost(const StepCost& cost) { blocks_.pressure().cost = cost; }

  // What add() checks of a prompt, for those who must know before they hand it over. Any thread.
  static void check_prompt(const SchedulerConfig& config, std::size_t num_tokens);

  // Queues it. Throws std::invalid_argument, with the numbers, when the prompt is empty or can never run: it leaves no
  // room for one token in max_model_len, in the pool, or in its own max_total_tokens; or when its session is closed or
  // has a turn already.
  void add(SequenceSpec spec);

  // The child continues from the parent's committed tokens as a sequence of its own. Where a row is free it shares the
  // parent's blocks, copied when one of them writes; else it waits like any other. False if the parent is unknown, has
  // ended, or awaits a token of the host.
  bool fork(SequenceId parent, SequenceId child);

  // Lets a sequence that asks sample one token. False if it is unknown, has ended, is not held, or
  // its last token is still in flight or awaited.
  bool release(SequenceId id);

  // The next token of a sequence for which commit() got kTokenLater. No event if it is unknown, has ended, or awaits
  // none. The sequence may then sample again.
  void supply(SequenceId id, TokenId token, std::vector<TokenEvent>& events);

  // Cancels without an event. False if it is unknown or has ended.
  bool remove(SequenceId id);

  // Fewer than max_steps_in_flight steps may be in flight. An empty plan is no step and is not committed: there are no
  // sequences, or all that could advance are held, or the oldest step in flight must be committed first.
  const StepPlan& schedule();
  const StepBatch& build_batch(const StepPlan& plan);
  // Of the oldest plan in flight. sampled: [plan.num_logits_rows]. Appends an event for each token but those of ended
  // sequences and kTokenLater, in the plan's order; a sequence whose finish_reason is set has ended.
  void commit(const StepPlan& plan, std::span<const TokenId> sampled, std::vector<TokenEvent>& events);

  // Blocks that begin to move between the device and the host. While one moves a plan may be empty: the next one is
  // made when it has ended.
  std::vector<BlockTransfer> take_transfers() { return blocks_.take_transfers(); }
  std::vector<TransferId> take_cancelled() { return blocks_.take_cancelled(); }
  void finish_transfer(TransferId id, const TransferEnd& end = {}) {
    sessions_.transfer_finished(blocks_.finish_transfer(id, end));
  }

  // Null if unknown; valid until the sequence has ended and no step in flight includes it.
  const Sequence* find(SequenceId id) const;
  bool has_work() const { return !sequences_.empty(); }  // sequences, or steps in flight
  std::int32_t num_steps_in_flight() const { return num_steps_in_flight_; }
  SessionTable& sessions() { return sessions_; }
  const SessionTable& sessions() const { return sessions_; }
  SessionId open_session(SessionSpec spec) { return sessions_.open(std::move(spec)); }
  SessionId fork_session(SessionId parent, std::optional<double> weight = std::nullopt) {
    return sessions_.fork(parent, weight);
  }
  std::int32_t num_waiting() const { return waiting_.size() + waiting_for_room_.size(); }
  std::int32_t num_running() const { return static_cast<std::int32_t>(running_.size()); }
  std::int32_t num_free_blocks() const { return blocks_.num_free_blocks(); }
  std::int64_t num_cached_tokens() const { return num_cached_tokens_; }  // served by the prefix cache, ever
  std::int64_t num_preemptions() const { return num_preemptions_; }
  const BlockManager& blocks() const { return blocks_; }

  // Throws InternalError with what is wrong. O(everything): for tests.
  void check_integrity() const;

 private:
  void check_sequences() const;
  void check_references() const;
  std::unique_ptr<Sequence> make_sequence(SequenceSpec spec);
  Sequence& take_in(std::unique_ptr<Sequence> sequence);
  void begin_turn(Sequence& sequence);
  bool schedule_running();
  bool advance(std::size_t index);
  void admit_waiting();
  void force_overdue();
  bool admit_front(WaitingQueue& queue, bool may_take_held);
  WaitingQueue& queue_of(const Sequence& sequence) { return sequence.waits_for_room ? waiting_for_room_ : waiting_; }
  std::int32_t num_tokens_to_schedule(const Sequence& sequence, std::int32_t budget, std::int32_t num_behind) const;
  void append_to_plan(Sequence& sequence, std::int32_t num_scheduled_tokens);
  void start_running(Sequence& sequence);
  void stop_running(Sequence& sequence);
  void preempt_least_urgent();
  static void plan_scores(const Sequence& sequence, ScheduledSequence& scheduled);
  void take_sample(Sequence& sequence, TokenId token, std::vector<TokenEvent>& events);
  void commit_counts(Sequence& sequence, const ScheduledSequence& scheduled);
  TokenEvent accept(Sequence& sequence, TokenId token);
  void drop_finished(const StepPlan& plan);
  void drop(Sequence& sequence);
  std::int32_t budget_left() const { return config_.max_num_batched_tokens - plan_->num_tokens; }
  std::size_t plan_index(std::int64_t step) const { return static_cast<std::size_t>(step) % plans_.size(); }
  StepPlan& newest_plan() { return plans_[plan_index(step_)]; }
  // index 0 is the oldest, num_steps_in_flight_ - 1 the newest.
  const StepPlan& plan_in_flight(std::int32_t index) const {
    return plans_[plan_index(step_ - num_steps_in_flight_ + 1 + index)];
  }
  Sequence& at_row(std::int32_t row) { return *rows_[static_cast<std::size_t>(row)]; }

  SchedulerConfig config_;
  std::int32_t max_num_tokens_;  // of one sequence: max_model_len or the pool's capacity
  BlockManager blocks_;
  SessionTable sessions_;
  BatchBuilder batch_builder_;
  WaitingQueue waiting_;
  WaitingQueue waiting_for_room_;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // most urgent first
  std::vector<Sequence*> rows_;     // [max_num_sequences] who runs in a row, or has ended but is in flight, or null
  std::vector<std::int32_t> free_rows_;
  std::vector<StepPlan> plans_;  // [max_steps_in_flight] a step's is at step % max_steps_in_flight
  StepPlan* plan_ = nullptr;     // the one that schedule() writes
  std::int32_t num_steps_in_flight_ = 0;
  bool must_preempt_ = false;    // as soon as no step is in flight
  std::int64_t step_ = 0;        // the last one scheduled
  double next_forced_at_ = 0.0;  // when one that waits for room may next be admitted without it
  std::int64_t num_arrivals_ = 0;
  std::int64_t num_cached_tokens_ = 0;
  std::int64_t num_preemptions_ = 0;
};

}  // namespace paged
