// SPDX-License-Identifier: Apache-2.0
// The first and the last kernel of a step: they fetch its inputs from page-locked memory and leave its sampled tokens
// there, so that a step, recorded or not, is kernels only. The host alternates between two places for either; which one
// is a step's, the device knows by counting steps.
#pragma once

#include "gpu/rows.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

constexpr int kStepThreads = 256;
constexpr unsigned kTableBlocks = 2;  // for changes of the block tables, of which only the device knows the number

// A grid-stride loop of some of the grid's blocks.
struct BlockRange {
  unsigned first, count;
  template <class Body>
  __device__ void each(std::int64_t limit, const Body& body) const {
    for (std::int64_t i = (blockIdx.x - first) * kStepThreads + threadIdx.x; i < limit; i += count * kStepThreads)
      body(i);
  }
};

// The first blocks change the tables, the next ones resolve tokens, the rest copies: each read of the host's memory is
// a long way, so they go side by side. No release_dependents(): gpu.h says why.
__global__ void __launch_bounds__(kStepThreads) begin_step_kernel(BeginStepParams step, unsigned token_blocks) {
  wait_for_predecessors();
  const std::byte* staging = step.staging[*step.num_steps & 1];
  if (blockIdx.x < kTableBlocks) {
    const auto* changes = reinterpret_cast<const Vec<std::int32_t, 2>*>(staging + step.table_changes);
    // By one thread: all threads' reads of the same word of the host's memory would go there one after the other.
    __shared__ std::int32_t count;
    if (threadIdx.x == 0)
      count = load_from_host(reinterpret_cast<const std::int32_t*>(staging + step.num_table_changes));
    __syncthreads();
    BlockRange{0, kTableBlocks}.each(count, [&](std::int64_t i) {
      const auto* change = changes[i].data;
      step.block_tables[load_from_host(change)] = load_from_host(change + 1);
    });
  } else if (blockIdx.x < kTableBlocks + token_blocks) {
    const auto* tokens = reinterpret_cast<const std::int32_t*>(staging + step.staged_token_ids);
    BlockRange{kTableBlocks, token_blocks}.each(step.num_tokens, [&](std::int64_t i) {
      std::int32_t token = load_from_host(tokens + i);
      if (token < 0) token = step.last_tokens[-1 - token];
      // -1 was sampled from logits that are no numbers: its sequence fails once the host knows, any token will do.
      step.token_ids[i] = token < 0 ? 0 : token;
    });
  } else {
    using Unit = Vec<std::int32_t, 4>;
    const unsigned first = kTableBlocks + token_blocks;
    BlockRange{first, gridDim.x - first}.each(step.num_bytes / 16, [&](std::int64_t i) {
      reinterpret_cast<Unit*>(step.inputs)[i] = load_from_host(reinterpret_cast<const Unit*>(staging) + i);
    });
  }
}

// One block.
__global__ void __launch_bounds__(kStepThreads) end_step_kernel(EndStepParams step) {
  release_dependents();
  wait_for_predecessors();
  const std::uint32_t number = *step.num_steps;
  std::int32_t* results = step.results[number & 1];
  for (int i = static_cast<int>(threadIdx.x); i < step.num_sampled; i += kStepThreads) results[i] = step.sampled[i];
  __syncthreads();  // all have read the number and written their tokens
  if (threadIdx.x != 0) return;
  *step.num_steps = number + 1;
  tell_host(step.finished, number + 1);
}

}  // namespace

void begin_step(const ExecutionContext& context, const BeginStepParams& params) {
  const auto blocks_for = [](std::int64_t count) {
    return static_cast<unsigned>(std::clamp<std::int64_t>(divide_up(count, kStepThreads), 1, 64));
  };
  const unsigned token_blocks = blocks_for(params.num_tokens), copy_blocks = blocks_for(params.num_bytes / 16);
  launch(begin_step_kernel, dim3(kTableBlocks + token_blocks + copy_blocks), dim3(kStepThreads), 0, stream_of(context),
         params, token_blocks);
}

void end_step(const ExecutionContext& context, const EndStepParams& params) {
  launch(end_step_kernel, dim3(1), dim3(kStepThreads), 0, stream_of(context), params);
}

}  // namespace paged::gpu
