// SPDX-License-Identifier: Apache-2.0
// A sequence: its tokens, what of them is computed, the blocks that hold their keys and values, and when it ends.
// Plain data. The scheduler owns it; the block manager writes the block fields, the batch builder num_row_blocks.
//
// Between calls: num_sealed_blocks <= num_computed_tokens / block_size <= block_table.size(), and a sequence that
// waits holds no block, has nothing computed and is in no step in flight.
//
// A step is in flight from its plan to the plan's commit. What the committed steps did stands in num_computed_tokens
// and tokens; what those in flight will do, in num_scheduled_tokens and num_pending_tokens. A sequence that runs has
// num_planned_tokens() < num_tokens() + num_pending_tokens: the last token is still to be scheduled. A pending token
// exists only where all tokens before it are scheduled, so then the difference is 1 and that last token is pending.
//
// A sequence that asks is held whenever the host has not yet said how its next token is to be chosen: its last token,
// whose logits choose it, is not scheduled then. One whose token comes later from the host is held with all computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/types.h"

namespace paged {

struct StopRules {
  std::int32_t max_total_tokens = std::numeric_limits<std::int32_t>::max();  // prompt and generated together
  std::int32_t min_tokens = 0;  // generated tokens, the stopping one included, before which no stop id stops
  std::vector<TokenId> stop_token_ids = {};
};

struct SequenceSpec {
  SequenceId id = 0;
  std::vector<TokenId> prompt = {};
  StopRules stop = {};
  std::int32_t priority = 0;    // the lower, the more urgent
  std::string cache_salt = {};  // only sequences of equal salt share cached blocks
  // Of the prompt's tokens from this one on the model's logits are wanted, which lie in the rows of the tokens before
  // them; 0: of none. Tokens that far are not served from the cache.
  std::int32_t first_scored = 0;
  bool asks = false;         // may not sample a token before Scheduler::release() says so, each time
  SessionId session = 0;     // whose turn it is: the prompt is what the turn appends to the session's tokens
  bool keeps_answer = true;  // the turn's: false: only its prompt is appended to the session
};

enum class SequenceStatus : std::uint8_t { kWaiting, kRunning, kFinished };

// What every step reads or writes of a sequence stands in its first bytes.
inline constexpr std::size_t kHotSequenceBytes = 128;

struct alignas(64) Sequence {
  SequenceId id = 0;
  std::vector<TokenId> tokens;  // the prompt, then what was generated
  std::vector<BlockId> block_table;
  std::uint64_t stop_token_bits = 0;  // bit (id % 64) of each stop token
  std::int32_t num_prompt_tokens = 0;
  std::int32_t num_computed_tokens = 0;   // leading tokens whose keys and values are in the cache
  std::int32_t num_scheduled_tokens = 0;  // the tokens after those: steps in flight compute them
  std::int32_t num_pending_tokens = 0;    // sampled by steps in flight: only the device knows them
  std::int32_t num_steps_in_flight = 0;   // that include it; until 0 its blocks, its row and its id stay its own
  std::int32_t max_num_tokens = 0;        // it ends when it has so many
  std::int32_t num_sealed_blocks = 0;     // leading blocks that are full, in the prefix cache, and never written again
  std::int32_t row = -1;                  // of StepBatch::block_tables, while it runs
  std::int32_t num_row_blocks = 0;        // leading entries of block_table that the row already shows
  // The first prompt token still to be scored; num_prompt_tokens or more: none.
  std::int32_t next_scored = std::numeric_limits<std::int32_t>::max();
  OwnerSlot owner = kNoOwner;  // of its session
  SequenceStatus status = SequenceStatus::kWaiting;
  bool asks = false;
  bool held = false;          // its last token is not to be scheduled
  bool awaits_token = false;  // all is computed; the host brings the next token
  bool may_share = false;     // it was forked: the block that it writes next may be others' too

  // Now and then.
  StopRules stop;
  std::int32_t num_cached_tokens = 0;  // prompt tokens that the prefix cache served at the first admission

  // Urgency (waiting_queue.h).
  std::int32_t priority = 0;
  double deadline = 0.0;            // seconds, where the policy has turns queue by their session; else 0
  std::int64_t arrival = 0;         // counts arrivals: unique
  std::int64_t wait_left = 0;       // steps it may still wait before it is promoted
  std::int64_t promotion_step = 0;  // while it waits unpromoted: after this step it is promoted
  bool promoted = false;
  bool admitted_before = false;
  bool waits_for_room = false;  // in the queue of those that may not take what is held for others

  SessionId session = 0;  // whose turn it is
  bool keeps_answer = true;
  ContentId root = 0;                  // stands for the salt as parent of the first block
  std::uint64_t stores_until = 0;      // the transfer whose end it waited for, that others' blocks are not lost
  std::int32_t num_loaded_blocks = 0;  // from the host, for it, ever

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_generated_tokens() const { return num_tokens() - num_prompt_tokens; }
  std::int32_t num_planned_tokens() const { return num_computed_tokens + num_scheduled_tokens; }
};

}  // namespace paged
