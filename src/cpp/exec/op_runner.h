// SPDX-License-Identifier: Apache-2.0
// Turns an op of a program and a batch into a call of ops.h, over buffers that an executor owns: the same on every
// device.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "exec/kv_blocks.h"
#include "exec/program.h"

namespace paged {

struct KvPoolLimits {
  std::int32_t max_seq_len = 0;
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
};

// Of one layer, resp. of all layers.
std::int64_t kv_layer_bytes(const KvCacheSpec& spec, const KvPoolLimits& limits);
std::int64_t kv_pool_bytes(const KvCacheSpec& spec, const KvPoolLimits& limits);
KvPoolSpan kv_pool_span(std::byte* pool, const KvCacheSpec& spec, const KvPoolLimits& limits);

// Where a program's data lies on the device it runs on.
struct OpBuffers {
  std::byte* arena = nullptr;
  std::byte* kv_pool = nullptr;  // layer after layer
  void* attention_workspace = nullptr;
  void* linear_workspace = nullptr;        // on the CPU
  std::vector<const float*> vectors = {};  // the program's, by index
  // On a GPU: the limits attention plans for, and a plan for each window among the layers.
  const AttentionLimits* attention_limits = nullptr;
  std::vector<std::pair<std::int32_t, void*>> attention_plans = {};
};

// Windows among the program's attention ops, each once.
std::vector<std::int32_t> attention_windows(const Program& program);
std::int32_t max_num_heads(const Program& program);
std::int64_t max_matrix_cols(const Program& program);

class OpRunner {
 public:
  // Borrows the program and, in the context, what it points to. Throws std::invalid_argument unless the program ends in
  // logits.
  OpRunner(const Program& program, const KvPoolLimits& limits, const ExecutionContext& context, OpBuffers buffers);

  // True where nothing samples in this step and the op only feeds the logits: it has no rows.
  static bool is_idle(const Op& op, const BatchView& batch) {
    return batch.num_logits_rows == 0 && !op.outputs.empty() && op.outputs[0].rows == Rows::kLogits;
  }
  void run(const Op& op, const BatchView& batch) const;

  // In every layer. The ids lie in the device's memory.
  void copy_blocks(const std::int32_t* sources, const std::int32_t* destinations, std::int32_t count) const;

  // Throws InternalError if the batch exceeds what the arena was planned for.
  void check_size(const BatchView& batch) const;
  MatrixView logits(std::int32_t rows) const;
  const std::vector<std::pair<std::int32_t, void*>>& attention_plans() const { return buffers_.attention_plans; }

 private:
  void run_linear(const Op& op, const BatchView& batch) const;
  void run_gated_linear(const Op& op, const BatchView& batch) const;
  void run_attention(const Op& op, const BatchView& batch) const;
  void run_rope_store_kv(const Op& op, const BatchView& batch) const;
  MatrixView view(const Value& value, const BatchView& batch) const;
  KvCacheView cache(std::int32_t layer) const;
  RopeParams rope_params(const Op& op, const Value& input, const Value& output, const BatchView& batch) const;
  const float* vector_data(const Op& op) const;
  const void* plan_for(std::int32_t window) const;

  const Program& program_;
  KvPoolLimits limits_;
  ExecutionContext context_;
  OpBuffers buffers_;
};

}  // namespace paged
