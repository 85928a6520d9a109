// SPDX-License-Identifier: Apache-2.0
// The step loop. One thread per engine owns the scheduler and the executor: it takes requests from the inbox, and while
// there is work it launches as many steps as the executor takes, then waits for the oldest, commits it and delivers its
// tokens; it sleeps when idle and never takes the GIL. Every public method may be called from any thread.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/condition.h"
#include "core/scheduler.h"
#include "engine/block_mover.h"
#include "engine/guide_desk.h"
#include "engine/logits_policy.h"
#include "engine/policy_desk.h"
#include "engine/request.h"
#include "engine/step_clock.h"
#include "engine/step_trace.h"
#include "engine/token_table.h"
#include "exec/executor.h"
#include "ops/ops.h"

namespace paged {

// As of the last step, but for the rates.
struct EngineStats {
  std::int64_t num_steps = 0;
  std::int64_t num_prefill_tokens = 0;    // of prompts and of preempted sequences, computed
  std::int64_t num_generated_tokens = 0;  // delivered to requests
  std::int64_t num_preemptions = 0;
  std::int64_t num_cached_tokens = 0;  // prompt tokens that the prefix cache served
  std::int32_t num_waiting = 0;
  std::int32_t num_running = 0;
  std::int32_t num_free_blocks = 0;
  std::int32_t num_blocks = 0;
  std::int32_t num_cached_blocks = 0;  // used or free: hold what later prompts may reuse
  std::int64_t num_finished = 0;
  std::int64_t num_failed = 0;          // of those
  std::int64_t num_cancelled = 0;       // of those
  std::int64_t num_late_proposals = 0;  // of a policy that runs elsewhere
  std::int64_t num_failed_proposals = 0;
  double last_step_seconds = 0.0;
  StepHistogram step_seconds;
  std::int32_t num_host_blocks = 0;         // slots of the host's tier
  std::int32_t num_host_cached_blocks = 0;  // that have a copy
  std::int64_t num_bytes_stored = 0;        // copied to the host, ever
  std::int64_t num_bytes_loaded = 0;        // and from there to the device
  std::int32_t num_disk_blocks = 0;         // the same of the disk's tier
  std::int32_t num_disk_cached_blocks = 0;
  std::int64_t num_disk_bytes_stored = 0;
  std::int64_t num_disk_bytes_loaded = 0;
  std::int64_t num_disk_errors = 0;          // transfers that failed
  double generated_tokens_per_second = 0.0;  // over about the last second
  double prefill_tokens_per_second = 0.0;
};

class Engine {
 public:
  // `policy_desk`: of a policy that runs elsewhere and takes the place of the config's; may be null. `disk_folder`: for
  // the blocks of the disk, if there are any.
  Engine(const SchedulerConfig& config, std::unique_ptr<Executor> executor,
         std::shared_ptr<const TokenTable> token_table, std::shared_ptr<PolicyDesk> policy_desk = nullptr,
         const std::string& disk_folder = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Throws std::invalid_argument for what can never run, EngineClosedError, or InternalError with the first cause if
  // the engine has failed.
  std::shared_ptr<Request> submit(RequestSpec spec);
  // Both take effect before the next step is launched, on whatever has come so far; unknown or finished: nothing
  // happens. cancel() ends it as cancelled, stop() as stopped.
  void cancel(SequenceId id) { end_early(id, FinishReason::kCancelled); }
  void stop(SequenceId id) { end_early(id, FinishReason::kStop); }
  void close();  // idempotent; running requests end as cancelled; all memory is given back
  bool closed() const;
  // In a forked child: the threads do not exist, and what they were at work on may be torn. It is best never destroyed.
  bool is_of_another_process() const { return getpid() != pid_; }
  // Runs it on the engine thread, between two steps, and waits for it: how sessions are commanded. What it throws is
  // thrown here; an InternalError also ends the engine.
  using Command = std::function<void(Scheduler&)>;
  void run_between_steps(Command command);
  // The same without waiting, and nothing if the engine is closed: for destructors.
  void run_some_time(Command command);
  KvBlocks* kv_blocks() { return executor_->kv_blocks(); }  // for commands; null: they cannot be moved
  EngineStats stats();
  StepTrace& trace() { return trace_; }
  const std::shared_ptr<GuideDesk>& guide_desk() const { return guide_desk_; }

 private:
  struct PendingCommand {
    Command run;
    std::promise<void> done = {};
  };
  struct Message {
    std::shared_ptr<Request> submitted;  // null: end `ended`, or
    SequenceId ended = 0;
    std::unique_ptr<GuideAnswer> answer = nullptr;
    FinishReason reason = FinishReason::kNone;
    std::shared_ptr<PendingCommand> command = nullptr;
    TransferId transfer = 0;  // has ended, so
    TransferEnd transfer_end = {};
  };
  struct Live {
    std::shared_ptr<Request> request;
    std::int32_t row = -1;  // of row_states_, where the last step that samples for it found it
    std::unique_ptr<LogitsPolicy> policy = nullptr;
    bool has_token = false;
    bool started = false;                    // else it follows one that has no token yet
    std::vector<SequenceId> followers = {};  // that wait for its first token
  };
  // What every step needs of who runs in a row of the block tables, without a search for it.
  struct alignas(64) RowState {
    SequenceId id = 0;           // 0: nobody
    Live* live = nullptr;        // of that id
    Request* request = nullptr;  // its
    bool has_policy = false;
    bool is_plain = false;  // the next tokens concern nothing but the request and its end
    SamplingRow sampling;
  };

  struct Ended {
    Live live;
    FinishReason reason;
    std::string error;
  };

  // A step launched and not yet committed, and what its extras are for.
  struct InFlight {
    const StepPlan* plan = nullptr;
    Request::Clock::time_point launched{};
    std::int32_t num_decode_tokens = 0;
    bool has_extras = false;
    struct Export {
      SequenceId id;
      std::int32_t logits_row;
      std::unique_ptr<HostSample> sample;
    };
    std::vector<Export> exports = {};
    // What the step's scores are of, in their order: a sampled token, or tokens of a prompt.
    struct Scores {
      SequenceId id;
      std::int32_t count;
      bool of_prompt;
    };
    std::vector<Scores> scores = {};
  };

  void check_process() const;
  void check_running() const;  // under mutex_
  void end_early(SequenceId id, FinishReason reason);

  // All below run on the engine thread.
  void loop() noexcept;
  bool receive();  // false: closing
  void take_command(PendingCommand& command);
  bool prepare_turn(SequenceSpec& sequence, const RequestSpec& spec);  // false: it cannot run, and has ended
  void open_policy_desk();
  void tell_time();
  void admit(std::shared_ptr<Request> request);
  void start(Live& live);
  void start_followers(Live& live);
  void make_mover(const std::string& disk_folder);
  void start_transfers();
  void finish_transfer(TransferId id, const TransferEnd& end);
  bool launch_step();  // false: nothing to launch
  void write_sampling_rows(const StepPlan& plan, InFlight& step);
  void write_extras(const ScheduledSequence& scheduled, Live& live, InFlight& step);
  void write_prompt_scores(const ScheduledSequence& scheduled, InFlight& step);
  void mark_scheduled(Request& request) const;
  RowState enter_row(const ScheduledSequence& scheduled);
  void leave_row(SequenceId id, const Live& live);
  void finish_step();  // the oldest one in flight
  void deliver_events(const InFlight& step);
  void deliver(const TokenEvent& event, std::span<const ScoredToken> scores);
  void deliver(const TokenEvent& event, Live& live, std::span<const ScoredToken> scores);
  bool append(const TokenEvent& event, Request& request, std::span<const ScoredToken> scores);
  void wake_consumers();
  void ask_about_exports(InFlight& step);
  void go_on_or_end(const TokenEvent& event, Live& live, bool stopped);
  void ask_guide(const Request& request, std::vector<TokenId> tokens, std::unique_ptr<HostSample> sample);
  void take_answer(GuideAnswer& answer);
  void post(Message message);
  void end(SequenceId id, FinishReason reason, std::string_view error = {});
  // Last in a step, so that who sees a request finished sees the stats that say so. Turns are announced when no step in
  // flight shows them any more, so that the session is free for whoever hears of it; with `all` at once.
  void announce_ended(bool all = false);
  void end_all(FinishReason reason, std::string_view error);
  void publish_stats();
  void publish_end();  // nobody waits or runs any more
  void account(const InFlight& step);
  void record_request(const Live& live, FinishReason reason);

  const SchedulerConfig config_;
  const pid_t pid_;
  std::unique_ptr<Executor> executor_;
  std::shared_ptr<const TokenTable> token_table_;
  const std::int32_t vocab_size_;
  const std::shared_ptr<GuideDesk> guide_desk_;
  const std::shared_ptr<PolicyDesk> policy_desk_;  // may be null

  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<BlockMover> mover_;  // null: no tier below the device
  std::unordered_map<SequenceId, Live> live_;
  std::vector<RowState> row_states_;  // [max_num_sequences]
  std::vector<SamplingRow> sampling_rows_;
  StepExtrasBuffer extras_;
  std::vector<InFlight> in_flight_;   // the oldest first
  std::vector<TokenId> sampled_;      // of a step with exports
  bool stalled_ = false;              // nothing can be scheduled before a message comes or a step is done
  std::int32_t num_not_started_ = 0;  // of live_
  std::vector<TokenEvent> events_;
  NewsBatch news_;               // of the step's tokens, and
  std::vector<Request*> woken_;  // whoever has threads waiting for them
  std::vector<Ended> ended_;
  std::int64_t num_steps_ = 0;
  std::int64_t num_finished_ = 0;
  std::int64_t num_failed_ = 0;
  std::int64_t num_cancelled_ = 0;
  std::int64_t num_prefill_tokens_ = 0;
  std::int64_t num_generated_tokens_ = 0;
  double last_step_seconds_ = 0.0;
  double prefill_token_seconds_ = 0.0;  // lately, of steps that are mostly prefill; 0: none yet
  Request::Clock::time_point last_finish_{};
  Request::Clock::time_point delivered_at_{};  // of all tokens of a step: reading the clock for each costs more
  StepHistogram step_seconds_;
  StepTrace trace_;
  PartClock parts_;  // runs while the trace does

  mutable std::mutex mutex_;  // guards what follows
  Condition wake_;
  std::vector<Message> inbox_;
  bool closing_ = false;
  std::string failure_;  // first cause, once the engine has failed
  EngineStats stats_;
  RecentRate generated_rate_;
  RecentRate prefill_rate_;
  SequenceId next_id_ = 1;

  std::vector<Message> received_;
  std::mutex close_mutex_;  // close() from two threads
  std::thread thread_;      // last: starts when all else stands
};

}  // namespace paged
