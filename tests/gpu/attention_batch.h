// SPDX-License-Identifier: Apache-2.0
// A ragged batch over a paged cache for tests and benches of one attention kernel: random tokens, shuffled blocks,
// every slot past a sequence's end NaN; and the plain double-precision attention it is compared with.
#pragma once

#include <numeric>
#include <optional>

#include "gpu/fast_paths.h"
#include "gpu_test.h"

namespace paged::test {

struct Extend {  // query_len tokens at the end of seq_len
  int query_len, seq_len;
  bool decode = false;
};

struct AttentionCase {
  AttentionShape shape;
  int window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  int spare_blocks = 3;  // that belong to nobody
};

// The tokens' keys, values and queries: enough of them for every batch over these sequences.
class PagedSequences {
 public:
  PagedSequences(Gpu& gpu, const AttentionCase& c, std::vector<int> lengths)
      : gpu_(&gpu), case_(c), lengths_(std::move(lengths)) {
    place_blocks();
    const AttentionShape& s = c.shape;
    for (const int length : lengths_) {
      q_.push_back(normal(std::int64_t{length} * s.num_heads * s.head_dim));
      k_.push_back(normal(std::int64_t{length} * s.num_kv_heads * s.head_dim));
      v_.push_back(normal(std::int64_t{length} * s.num_kv_heads * s.head_dim));
    }
    if (c.sinks) sinks_ = Random(2).floats(s.num_heads);
    if (c.sinks) device_sinks_.emplace(gpu, sinks_);
    upload_cache();
  }

  // Rows of all scheduled tokens in order, as bytes; rows that nobody wrote are NaN (0xff).
  std::vector<std::byte> run(const gpu::FastAttention& kernel, const std::vector<Extend>& batch,
                             const std::vector<int>& members) {
    const AttentionShape& s = case_.shape;
    std::vector<std::int32_t> starts{0}, seq_lens, rows, is_decode;
    std::vector<float> queries;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const std::int64_t width = std::int64_t{s.num_heads} * s.head_dim;
      const auto& q = q_[static_cast<std::size_t>(members[i])];
      queries.insert(queries.end(), q.begin() + (batch[i].seq_len - batch[i].query_len) * width,
                     q.begin() + batch[i].seq_len * width);
      starts.push_back(starts.back() + batch[i].query_len);
      seq_lens.push_back(batch[i].seq_len);
      rows.push_back(members[i]);
      is_decode.push_back(batch[i].decode ? 1 : 0);
    }
    const OnDevice d_starts(*gpu_, starts), d_lens(*gpu_, seq_lens), d_rows(*gpu_, rows), d_decode(*gpu_, is_decode);
    const OnDevice d_tables(*gpu_, tables_), q(*gpu_, queries, s.dtype);
    const OnDevice out = OnDevice::poisoned(*gpu_, static_cast<std::int64_t>(queries.size()) * 2);
    BatchView view;
    view.num_tokens = starts.back();
    view.num_sequences = static_cast<std::int32_t>(batch.size());
    view.num_decodes = std::accumulate(is_decode.begin(), is_decode.end(), 0);
    view.query_start = d_starts.as<std::int32_t>();
    view.seq_lens = d_lens.as<std::int32_t>();
    view.block_table_rows = d_rows.as<std::int32_t>();
    view.is_decode = d_decode.as<std::int32_t>();
    view.block_tables = d_tables.as<std::int32_t>();
    view.block_table_stride = table_stride_;
    launch(kernel, view, q, out);
    return out.bytes();
  }

  // One row of double-precision attention: all heads of the token at `position` of sequence `member`.
  std::vector<float> expected(int member, int position) const {
    std::vector<float> out;
    for (int head = 0; head < case_.shape.num_heads; ++head) append_head(out, member, position, head);
    return out;
  }

  const AttentionCase& the_case() const { return case_; }

 private:
  // Normally distributed and exact in either 16-bit type. Drawing is slow: each time the same pool from elsewhere on.
  std::vector<float> normal(std::int64_t count) {
    static const std::vector<float> pool = [] {
      std::vector<float> values = Random(1).floats(1 << 18, DType::kBFloat16);
      for (float& value : values) value = rounded(value, DType::kFloat16);
      return values;
    }();
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = pool[draws_++ % (pool.size() - 1)];
    return values;
  }

  void place_blocks() {
    const int block_size = case_.shape.block_size;
    const int longest = *std::max_element(lengths_.begin(), lengths_.end());
    table_stride_ = (longest + block_size - 1) / block_size + 1;
    std::int64_t needed = 0;
    for (const int length : lengths_) needed += (length + block_size - 1) / block_size;
    num_blocks_ = static_cast<std::int32_t>(needed) + case_.spare_blocks;
    std::vector<std::int32_t> free(static_cast<std::size_t>(num_blocks_));
    std::iota(free.begin(), free.end(), 0);
    std::mt19937 engine(5);
    std::shuffle(free.begin(), free.end(), engine);
    tables_.assign(lengths_.size() * static_cast<std::size_t>(table_stride_), 0x3fffffff);
    for (std::size_t i = 0; i < lengths_.size(); ++i)
      for (int b = 0; b * block_size < lengths_[i]; ++b) {
        tables_[i * static_cast<std::size_t>(table_stride_) + static_cast<std::size_t>(b)] = free.back();
        free.pop_back();
      }
  }

  void upload_cache() {
    const AttentionShape& s = case_.shape;
    const std::int64_t piece = std::int64_t{s.block_size} * s.head_dim, block = 2 * s.num_kv_heads * piece;
    std::vector<std::vector<std::uint16_t>> blocks(static_cast<std::size_t>(num_blocks_));
    for (std::size_t i = 0; i < lengths_.size(); ++i)
      for (int t = 0; t < lengths_[i]; ++t) {
        const auto id = static_cast<std::size_t>(
            tables_[i * static_cast<std::size_t>(table_stride_) + static_cast<std::size_t>(t / s.block_size)]);
        if (blocks[id].empty()) blocks[id].assign(static_cast<std::size_t>(block), 0xffff);
        for (int h = 0; h < s.num_kv_heads; ++h)
          for (int d = 0; d < s.head_dim; ++d) {
            const std::size_t from =
                (static_cast<std::size_t>(t) * static_cast<std::size_t>(s.num_kv_heads) + static_cast<std::size_t>(h)) *
                    static_cast<std::size_t>(s.head_dim) +
                static_cast<std::size_t>(d);
            const std::int64_t to = h * piece + std::int64_t{t % s.block_size} * s.head_dim + d;
            blocks[id][static_cast<std::size_t>(to)] = half(k_[i][from]);
            blocks[id][static_cast<std::size_t>(to + s.num_kv_heads * piece)] = half(v_[i][from]);
          }
      }
    cache_ = gpu::DeviceBuffer(num_blocks_ * block * 2);
    for (std::size_t id = 0; id < blocks.size(); ++id)
      if (!blocks[id].empty())
        gpu::copy_to_device(cache_.data() + static_cast<std::int64_t>(id) * block * 2, blocks[id].data(), block * 2,
                            gpu_->gpu.stream);
    gpu::synchronize(gpu_->gpu.stream);
  }

  std::uint16_t half(float value) const {
    return case_.shape.dtype == DType::kBFloat16 ? to_bfloat16(value) : to_float16(value);
  }

  void launch(const gpu::FastAttention& kernel, const BatchView& view, const OnDevice& q, const OnDevice& out) {
    const AttentionShape& s = case_.shape;
    const AttentionLimits limits{s, view.num_tokens, view.num_sequences, 1 << 20};
    CHECK(kernel.takes(gpu_->gpu, s));
    const OnDevice plan = OnDevice::poisoned(*gpu_, kernel.plan_bytes(gpu_->gpu, limits));
    const OnDevice workspace = OnDevice::poisoned(*gpu_, kernel.workspace_bytes(gpu_->gpu, limits));
    kernel.plan(gpu_->context(), {&view, &limits, case_.window, plan.data()});
    const std::int64_t width = std::int64_t{s.num_heads} * s.head_dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    const AttentionParams params{
        .q = {q.data(), view.num_tokens, width, width, s.dtype},
        .cache = {cache_.data(), num_blocks_, s.block_size, s.num_kv_heads, s.head_dim, s.dtype},
        .batch = &view,
        .num_heads = s.num_heads,
        .window = case_.window,
        .scale = scale,
        .softcap = case_.softcap,
        .sinks = case_.sinks ? device_sinks_->as<float>() : nullptr,
        .workspace = workspace.data(),
        .out = {out.data(), view.num_tokens, width, width, s.dtype},
        .limits = &limits,
        .plan = plan.data()};
    kernel.run(gpu_->context(), params);
    gpu::synchronize(gpu_->gpu.stream);
  }

  void append_head(std::vector<float>& out, int member, int position, int head) const {
    const AttentionShape& s = case_.shape;
    const auto m = static_cast<std::size_t>(member);
    const int kv_head = head / (s.num_heads / s.num_kv_heads), dim = s.head_dim;
    const float* q = q_[m].data() + (std::int64_t{position} * s.num_heads + head) * dim;
    const int first = case_.window > 0 ? std::max(0, position - case_.window + 1) : 0;
    std::vector<double> scores;
    double top = case_.sinks ? double{sinks_[static_cast<std::size_t>(head)]} : -1e300;
    for (int t = first; t <= position; ++t) {
      const float* k = k_[m].data() + (std::int64_t{t} * s.num_kv_heads + kv_head) * dim;
      double score = std::inner_product(q, q + dim, k, 0.0) / std::sqrt(static_cast<double>(dim));
      if (case_.softcap > 0.0f) score = case_.softcap * std::tanh(score / case_.softcap);
      scores.push_back(score);
      top = std::max(top, score);
    }
    double total = case_.sinks ? std::exp(double{sinks_[static_cast<std::size_t>(head)]} - top) : 0.0;
    std::vector<double> sums(static_cast<std::size_t>(dim));
    for (int t = first; t <= position; ++t) {
      const double weight = std::exp(scores[static_cast<std::size_t>(t - first)] - top);
      total += weight;
      const float* v = v_[m].data() + (std::int64_t{t} * s.num_kv_heads + kv_head) * dim;
      for (int d = 0; d < dim; ++d) sums[static_cast<std::size_t>(d)] += weight * double{v[d]};
    }
    for (const double sum : sums) out.push_back(static_cast<float>(sum / total));
  }

  Gpu* gpu_;
  AttentionCase case_;
  std::vector<int> lengths_;
  std::vector<std::int32_t> tables_;
  std::int32_t table_stride_ = 0, num_blocks_ = 0;
  std::vector<std::vector<float>> q_, k_, v_;  // of each sequence, token after token
  std::vector<float> sinks_;
  std::optional<OnDevice> device_sinks_;
  std::size_t draws_ = 0;
  gpu::DeviceBuffer cache_;
};

}  // namespace paged::test
