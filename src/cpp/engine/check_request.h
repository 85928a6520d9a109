// SPDX-License-Identifier: Apache-2.0
// What a caller may ask of an engine.
#pragma once

#include <cstdint>

#include "core/scheduler.h"
#include "engine/request.h"
#include "exec/executor.h"

namespace paged {

// Throws std::invalid_argument for what can never run, with what arrived and what is allowed. Any thread.
void check_request(const RequestSpec& spec, std::int32_t vocab_size, bool has_tokenizer);

// The same for an executor that the scheduler's steps would overrun.
void check_fits(const SchedulerConfig& config, const ExecutorLimits& limits);

}  // namespace paged
