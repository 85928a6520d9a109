// SPDX-License-Identifier: Apache-2.0
// Every op of a program: one trivially copyable params struct and one free function. An op checks its shapes, picks
// cpu:: or gpu::, and never allocates: outputs and workspace come from the caller. The result of a row depends on
// that row alone, never on its neighbours in the batch (batch invariance).
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "ops/batch_view.h"
#include "ops/gpu_context.h"
#include "ops/weights.h"

namespace paged {

class ThreadPool;  // cpu/thread_pool.h

enum class Device : std::uint8_t { kCpu, kGpu };

// Where an op runs: `threads` on the CPU, `gpu` on a GPU.
struct ExecutionContext {
  Device device = Device::kCpu;
  ThreadPool* threads = nullptr;
  const GpuContext* gpu = nullptr;
};

// A row-major matrix inside some buffer; rows may be wider than the view (a view of some columns).
struct MatrixView {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // in elements
  DType dtype = DType::kFloat32;
};

// Of an int8 cache: components of a key that share a scale. A value has one scale: keys have outliers, values do not.
inline constexpr int kKeyScaleGroup = 32;

// Bytes of a head's key and value of one token. int8: codes in [-127, 127] and their scales.
constexpr std::int64_t kv_token_bytes(DType dtype, std::int64_t head_dim) {
  const std::int64_t num_scales = (head_dim + kKeyScaleGroup - 1) / kKeyScaleGroup + 1;
  return 2 * head_dim * size_of(dtype) + (dtype == DType::kInt8 ? num_scales * std::int64_t{sizeof(float)} : 0);
}

// The KV cache of one layer: num_blocks blocks, each of num_kv_heads pieces of K, then as many of V: block_size rows
// of head_dim elements. A piece is contiguous, its scales included; the order inside it belongs to the backend
// (cpu/kv_layout.h), nobody else looks.
struct KvCacheView {
  void* data = nullptr;
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  DType dtype = DType::kFloat32;

  std::int64_t piece_elements() const { return std::int64_t{block_size} * head_dim; }
  std::int64_t block_bytes() const { return std::int64_t{num_kv_heads} * block_size * kv_token_bytes(dtype, head_dim); }
};

// out[t] = scale * table[token_ids[t]]
struct EmbeddingParams {
  const std::int32_t* token_ids;  // [out.rows]
  const WeightMatrix* table;      // [vocab_size, hidden]
  MatrixView out;                 // [T, hidden]
  float scale;
};

// out[:, columns of part i] = x @ part_i.T + bias; the parts' rows are laid side by side in the columns of out.
struct LinearParams {
  MatrixView x;                      // [T, K]
  const WeightMatrix* const* parts;  // [num_parts], each [N_i, K]
  std::int32_t num_parts;
  const float* bias;          // [sum N_i] or null
  MatrixView out;             // [T, sum N_i]; float32 or x's dtype
  void* workspace = nullptr;  // on the CPU, where a part is quantised: linear_workspace_bytes(...), 64-byte aligned
};

enum class Activation : std::uint8_t { kSilu, kGeluTanh, kGeluErf };

// out = activation(x @ matrix[:N].T) * (x @ matrix[N:].T): what the executor makes of linear and gated_activation.
struct GatedLinearParams {
  MatrixView x;                // [T, K]
  const WeightMatrix* matrix;  // [2 N, K]; on the CPU [N, K], the other half is `up`
  Activation activation;
  MatrixView gate_up;  // [T, 2 N] scratch: a backend that does both in one kernel leaves it alone
  MatrixView out;      // [T, N]
  // On the CPU:
  const WeightMatrix* up = nullptr;
  void* workspace = nullptr;  // as linear's
};

// Each group of `width` consecutive columns is normalised on its own (width == cols: the whole row; width == head_dim:
// per head): out = x / sqrt(mean(x^2) + eps) * weight. Accumulates in float32. out may be x.
struct RmsNormParams {
  MatrixView x;
  const float* weight;  // [width], any "+1" of the checkpoint folded in at load
  std::int64_t width;
  float eps;
  MatrixView out;
};

// residual_out = residual + delta (rounded to its dtype); out = rms_norm(residual_out). residual_out may be residual.
struct AddRmsNormParams {
  MatrixView residual;
  MatrixView delta;
  const float* weight;  // [cols]
  float eps;
  MatrixView residual_out;
  MatrixView out;
};

struct AddParams {
  MatrixView a;
  MatrixView b;
  MatrixView out;  // may be a or b
};

// Rotates the first rotary_dim elements of each head by the row's position. table: [max_positions, rotary_dim], the
// first half of a row cosines, the second half sines. Half style pairs (i, i + rotary_dim/2), interleaved (2i, 2i+1).
struct RopeParams {
  MatrixView x;  // [T, heads * head_dim]
  const std::int32_t* positions;
  const float* table;
  std::int32_t max_positions;
  std::int32_t head_dim;
  std::int32_t rotary_dim;
  bool interleaved;
  MatrixView out;  // may be x
};

// Writes row t of k and v into slot slot_mapping[t] of the cache; -1 skips the row.
struct StoreKvParams {
  MatrixView k;  // [T, num_kv_heads * head_dim]
  MatrixView v;
  const std::int32_t* slot_mapping;
  KvCacheView cache;
};

// rope on q (into q.out) and on k, then store_kv: what the fusion pass makes of rope, rope and store_kv. With norms,
// every head of q and k is first replaced by its rms_norm; k.x may then be overwritten.
struct RopeStoreKvParams {
  RopeParams q;
  RopeParams k;  // k.out is ignored: rotated keys go to the cache only
  MatrixView v;
  const std::int32_t* slot_mapping;
  KvCacheView cache;
  const float* q_norm;  // [head_dim], or null with k_norm
  const float* k_norm;
  float norm_eps;
};

// What decides which attention kernel runs: the same in every step of an engine.
struct AttentionShape {
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
  std::int32_t block_size;
  DType dtype;
};

// Bounds of every batch that an engine may form.
struct AttentionLimits {
  AttentionShape shape;
  std::int32_t max_tokens;
  std::int32_t max_sequences;
  std::int32_t max_seq_len;
};

// Causal attention of every scheduled token over its sequence's cache (which already holds the step's own K and V).
// window > 0: a token sees itself and the window - 1 tokens before it. softcap > 0: s = cap * tanh(s / cap).
// sinks: one extra logit per head that takes part in the softmax's denominator only (gpt-oss), or null.
struct AttentionParams {
  MatrixView q;  // [T, num_heads * head_dim]
  KvCacheView cache;
  const BatchView* batch;
  std::int32_t num_heads;
  std::int32_t window;
  float scale;
  float softcap;
  const float* sinks;  // [num_heads] or null
  void* workspace;     // attention_workspace_bytes(...)
  MatrixView out;      // [T, num_heads * head_dim]
  // On a GPU: the engine's limits, and what plan_attention wrote in this step for this window. Null on the CPU.
  const AttentionLimits* limits;
  const void* plan;
};

// On a GPU: lists the units of work of a step's attention, once for all layers of one window.
struct AttentionPlanParams {
  const BatchView* batch;
  const AttentionLimits* limits;
  std::int32_t window;
  void* plan;  // gpu::attention_plan_bytes(...)
};

// out = activation(gate) * up
struct GatedActivationParams {
  MatrixView gate;
  MatrixView up;
  Activation activation;
  MatrixView out;  // may be gate
};

// out[i] = x[rows[i]]
struct GatherRowsParams {
  MatrixView x;
  const std::int32_t* rows;  // [out.rows]
  MatrixView out;
};

// out = cap * tanh(x / cap)
struct SoftcapParams {
  MatrixView x;
  float cap;
  MatrixView out;  // may be x
};

// How one row samples. temperature 0 is greedy: the lowest id among the largest logits.
struct SamplingRow {
  float temperature = 0.0f;
  float top_p = 1.0f;
  std::int32_t top_k = 0;  // 0: all
  std::uint64_t seed = 0;
  std::int64_t position = 0;  // of the sampled token in its sequence: with the seed, the key of the random number
};

struct SampleParams {
  MatrixView logits;        // [rows, vocab] float32; left as they are
  const SamplingRow* rows;  // [logits.rows]
  void* workspace;          // sample_workspace_bytes(...)
  std::int32_t* token_ids;  // [logits.rows] out
  // On a GPU, if not null: also last_tokens[table_rows[i]] = token_ids[i], where the next step finds its inputs.
  const std::int32_t* table_rows;
  std::int32_t* last_tokens;
};

// Copies whole blocks inside one layer's cache (copy-on-write).
struct CopyBlocksParams {
  KvCacheView cache;
  const std::int32_t* source;       // [num_copies]
  const std::int32_t* destination;  // [num_copies]
  std::int32_t num_copies;
};

namespace ops {

void embedding(const ExecutionContext& context, const EmbeddingParams& params);
void linear(const ExecutionContext& context, const LinearParams& params);
void gated_linear(const ExecutionContext& context, const GatedLinearParams& params);
void rms_norm(const ExecutionContext& context, const RmsNormParams& params);
void add_rms_norm(const ExecutionContext& context, const AddRmsNormParams& params);
void add(const ExecutionContext& context, const AddParams& params);
void rope(const ExecutionContext& context, const RopeParams& params);
void store_kv(const ExecutionContext& context, const StoreKvParams& params);
void rope_store_kv(const ExecutionContext& context, const RopeStoreKvParams& params);
void attention(const ExecutionContext& context, const AttentionParams& params);
void gated_activation(const ExecutionContext& context, const GatedActivationParams& params);
void gather_rows(const ExecutionContext& context, const GatherRowsParams& params);
void softcap(const ExecutionContext& context, const SoftcapParams& params);
void sample(const ExecutionContext& context, const SampleParams& params);
void copy_blocks(const ExecutionContext& context, const CopyBlocksParams& params);

// On the CPU; upper bounds over every batch the limits allow, so that the caller allocates once.
std::int64_t linear_workspace_bytes(std::int64_t max_rows, std::int64_t max_cols, int num_threads);
std::int64_t attention_workspace_bytes(int max_tokens, int num_heads, int head_dim, int max_seq_len);
std::int64_t sample_workspace_bytes(int num_threads, std::int64_t vocab_size);

}  // namespace ops
}  // namespace paged
