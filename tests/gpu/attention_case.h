// SPDX-License-Identifier: Apache-2.0
// Batches for tests of attention kernels through gpu::FastAttention, and what they must give. All data of a sequence
// comes from its own seed and absolute positions, so that it can be placed in any batch. Cache slots that no token may
// read are NaN.
#pragma once

#include <numeric>
#include <string>

#include "gpu/fast_paths.h"
#include "gpu_test.h"

namespace paged::test {

struct SequenceSpec {
  int seq_len;
  int query_len = 1;
  bool is_decode = true;
  unsigned seed = 1;
};

struct AttentionSpec {
  AttentionShape shape{8, 2, 64, 16, DType::kBFloat16};
  std::vector<SequenceSpec> sequences;
  int window = 0;
  float softcap = 0.0f;
  bool sinks = false;
  int unused_blocks_before = 0;  // of the cache: how far away the used ones are
};

class AttentionCase {
 public:
  AttentionCase(Gpu& gpu, const AttentionSpec& spec) : gpu_(gpu), spec_(spec), shape_(spec.shape) {
    limits_ = {shape_, 0, static_cast<std::int32_t>(spec.sequences.size()) + 3, 0};
    query_start_ = {0};
    int num_blocks = 2;
    for (const SequenceSpec& sequence : spec.sequences) {
      query_start_.push_back(query_start_.back() + sequence.query_len);
      limits_.max_seq_len = std::max(limits_.max_seq_len, sequence.seq_len);
      num_blocks += blocks_of(sequence);
    }
    limits_.max_tokens = query_start_.back() + 5;
    fill(num_blocks);
  }

  // The output as the kernel leaves it: [tokens][heads][head_dim]; rows of the other kind of sequence stay NaN.
  std::vector<std::byte> run(const gpu::FastAttention& attention) {
    const std::int64_t out_bytes = query_start_.back() * row_elements() * 2;
    const OnDevice out = OnDevice::poisoned(gpu_, out_bytes);
    const OnDevice q(gpu_, q_, shape_.dtype), sinks(gpu_, sinks_);
    const OnDevice query_start(gpu_, query_start_), seq_lens(gpu_, seq_lens_), rows(gpu_, table_rows_);
    const OnDevice is_decode(gpu_, is_decode_), tables(gpu_, tables_), positions(gpu_, positions_);
    const OnDevice plan = OnDevice::poisoned(gpu_, attention.plan_bytes(gpu_.gpu, limits_));
    const OnDevice workspace = OnDevice::poisoned(gpu_, attention.workspace_bytes(gpu_.gpu, limits_));
    BatchView batch;
    batch.num_tokens = query_start_.back();
    batch.num_sequences = static_cast<std::int32_t>(spec_.sequences.size());
    batch.num_decodes = static_cast<std::int32_t>(std::accumulate(is_decode_.begin(), is_decode_.end(), 0));
    batch.positions = positions.as<std::int32_t>();
    batch.query_start = query_start.as<std::int32_t>();
    batch.seq_lens = seq_lens.as<std::int32_t>();
    batch.block_table_rows = rows.as<std::int32_t>();
    batch.is_decode = is_decode.as<std::int32_t>();
    batch.block_tables = tables.as<std::int32_t>();
    batch.block_table_stride = stride_;
    const std::int64_t cols = row_elements();
    AttentionParams params{};
    params.q = {q.data(), batch.num_tokens, cols, cols, shape_.dtype};
    params.out = {out.data(), batch.num_tokens, cols, cols, shape_.dtype};
    params.cache = {cache_.data(), num_blocks_, shape_.block_size, shape_.num_kv_heads, shape_.head_dim, shape_.dtype};
    params.batch = &batch;
    params.num_heads = shape_.num_heads;
    params.window = spec_.window;
    params.scale = scale();
    params.softcap = spec_.softcap;
    params.sinks = spec_.sinks ? sinks.as<float>() : nullptr;
    params.workspace = workspace.data();
    params.limits = &limits_;
    params.plan = plan.data();
    CHECK(attention.takes(gpu_.gpu, shape_));
    attention.plan(gpu_.context(), {&batch, &limits_, spec_.window, plan.data()});
    for (int repeat = 0; repeat < 2; ++repeat) attention.run(gpu_.context(), params);  // the second meets used counters
    return out.bytes();
  }

  // Checks the rows of the sequences with is_decode == `decode` against sums in double, and that others are untouched.
  void check(std::span<const std::byte> out_bytes, bool decode, const std::string& what) const {
    const std::vector<float> out = test::decode(out_bytes, shape_.dtype);
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    for (std::size_t s = 0; s < spec_.sequences.size(); ++s) {
      for (int t = 0; t < spec_.sequences[s].query_len; ++t) {
        for (int head = 0; head < shape_.num_heads; ++head) {
          const auto at =
              static_cast<std::size_t>((query_start_[s] + t) * row_elements()) + static_cast<std::size_t>(head) * dim;
          if (spec_.sequences[s].is_decode != decode) {
            for (std::size_t i = 0; i < dim; ++i) CHECK(std::isnan(out[at + i]), what, " touched sequence ", s);
            continue;
          }
          check_row(std::span(out).subspan(at, dim), expected(s, t, head),
                    what + ", sequence " + std::to_string(s) + " token " + std::to_string(t) + " head " +
                        std::to_string(head));
        }
      }
    }
  }

  std::span<const std::byte> rows_of(std::span<const std::byte> out, std::size_t sequence, int first_token,
                                     int num_tokens) const {
    const auto row = static_cast<std::size_t>(row_elements() * 2);
    const auto first = static_cast<std::size_t>(query_start_[sequence] + first_token);
    return out.subspan(first * row, static_cast<std::size_t>(num_tokens) * row);
  }

 private:
  std::int64_t row_elements() const { return std::int64_t{shape_.num_heads} * shape_.head_dim; }
  float scale() const { return 1.5f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  int blocks_of(const SequenceSpec& sequence) const {
    return (sequence.seq_len + shape_.block_size - 1) / shape_.block_size;
  }
  // The first position that any query of the sequence sees.
  int first_visible(const SequenceSpec& sequence) const {
    return spec_.window > 0 ? std::max(0, sequence.seq_len - sequence.query_len + 1 - spec_.window) : 0;
  }

  void fill(int num_blocks) {
    num_blocks_ = num_blocks + spec_.unused_blocks_before;
    const std::int64_t block_elements = 2 * std::int64_t{shape_.num_kv_heads} * shape_.block_size * shape_.head_dim;
    std::vector<std::byte> cache(static_cast<std::size_t>(num_blocks * block_elements * 2), std::byte{0xff});
    std::vector<int> ids(static_cast<std::size_t>(num_blocks));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
    stride_ = (limits_.max_seq_len + shape_.block_size - 1) / shape_.block_size + 2;
    tables_.assign(static_cast<std::size_t>(stride_) * static_cast<std::size_t>(limits_.max_sequences), 1 << 30);
    std::size_t next = 0;
    for (std::size_t s = 0; s < spec_.sequences.size(); ++s) {
      const SequenceSpec& sequence = spec_.sequences[s];
      table_rows_.push_back(static_cast<std::int32_t>(spec_.sequences.size() - s));
      seq_lens_.push_back(sequence.seq_len);
      is_decode_.push_back(sequence.is_decode ? 1 : 0);
      std::int32_t* table = tables_.data() + table_rows_.back() * stride_;
      for (int b = 0; b < blocks_of(sequence); ++b) {
        if ((b + 1) * shape_.block_size > first_visible(sequence)) table[b] = ids[next] + spec_.unused_blocks_before;
        ++next;
      }
      fill_sequence(sequence, table, cache);
    }
    const std::int64_t before = spec_.unused_blocks_before * block_elements * 2;
    cache_ = gpu::DeviceBuffer(before + static_cast<std::int64_t>(cache.size()));
    gpu::copy_to_device(cache_.data() + before, cache.data(), static_cast<std::int64_t>(cache.size()), gpu_.gpu.stream);
    gpu::synchronize(gpu_.gpu.stream);
    sinks_ = Random(3).floats(shape_.num_heads);
  }

  void fill_sequence(const SequenceSpec& sequence, const std::int32_t* table, std::vector<std::byte>& cache) {
    const auto row = static_cast<std::size_t>(shape_.head_dim);
    const std::int64_t count = std::int64_t{sequence.seq_len} * shape_.num_kv_heads * shape_.head_dim;
    keys_.push_back(elements(2 * sequence.seed, count));
    values_.push_back(elements(2 * sequence.seed + 1, count));
    for (int p = first_visible(sequence); p < sequence.seq_len; ++p) {
      for (int is_value = 0; is_value < 2; ++is_value) {
        for (int head = 0; head < shape_.num_kv_heads; ++head) {
          const int block = table[p / shape_.block_size] - spec_.unused_blocks_before;
          const std::int64_t piece = (std::int64_t{block} * 2 + is_value) * shape_.num_kv_heads + head;
          const std::int64_t at = (piece * shape_.block_size + p % shape_.block_size) * shape_.head_dim;
          const std::vector<float>& from = is_value != 0 ? values_.back() : keys_.back();
          const auto index = static_cast<std::size_t>(p * shape_.num_kv_heads + head) * row;
          for (std::size_t i = 0; i < row; ++i) {
            const std::uint16_t half =
                shape_.dtype == DType::kBFloat16 ? to_bfloat16(from[index + i]) : to_float16(from[index + i]);
            std::memcpy(cache.data() + 2 * (static_cast<std::size_t>(at) + i), &half, 2);
          }
        }
      }
    }
    for (int t = 0; t < sequence.query_len; ++t) {
      const int position = sequence.seq_len - sequence.query_len + t;
      positions_.push_back(std::max(position, 0));
      const auto q = elements(sequence.seed * 7919 + static_cast<unsigned>(position + 1), row_elements());
      q_.insert(q_.end(), q.begin(), q.end());
    }
  }

  std::vector<double> expected(std::size_t s, int token, int head) const {
    const SequenceSpec& sequence = spec_.sequences[s];
    const int end = sequence.seq_len - sequence.query_len + token + 1;
    const int first = spec_.window > 0 ? std::max(0, end - spec_.window) : 0;
    const auto dim = static_cast<std::size_t>(shape_.head_dim);
    const int kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
    const float* q = q_.data() + (query_start_[s] + token) * row_elements() + head * shape_.head_dim;
    std::vector<double> scores, out(dim, 0.0);
    double largest = spec_.sinks ? sinks_[static_cast<std::size_t>(head)] : -1e30;
    for (int p = first; p < end; ++p) {
      const float* k = keys_[s].data() + (p * shape_.num_kv_heads + kv_head) * shape_.head_dim;
      double score = 0.0;
      for (std::size_t i = 0; i < dim; ++i) score += double{q[i]} * double{k[i]};
      score *= double{scale()};
      if (spec_.softcap > 0.0f) score = double{spec_.softcap} * std::tanh(score / double{spec_.softcap});
      scores.push_back(score);
      largest = std::max(largest, score);
    }
    double sum = spec_.sinks ? std::exp(double{sinks_[static_cast<std::size_t>(head)]} - largest) : 0.0;
    for (int p = first; p < end; ++p) {
      const double weight = std::exp(scores[static_cast<std::size_t>(p - first)] - largest);
      const float* v = values_[s].data() + (p * shape_.num_kv_heads + kv_head) * shape_.head_dim;
      for (std::size_t i = 0; i < dim; ++i) out[i] += weight * double{v[i]};
      sum += weight;
    }
    for (double& value : out) value = sum > 0.0 ? value / sum : 0.0;
    return out;
  }

  // Normally distributed elements, exact in the type. Drawing is slow: parts of one pool.
  std::vector<float> elements(unsigned seed, std::int64_t count) const {
    static const std::vector<float> pool = Random(1).floats(262139);
    std::vector<float> values(static_cast<std::size_t>(count));
    std::size_t at = seed * std::size_t{7919} % pool.size();
    for (float& value : values) {
      value = rounded(pool[at], shape_.dtype);
      at = at + 1 == pool.size() ? 0 : at + 1;
    }
    return values;
  }

  // Errors are measured against the row's root mean square.
  void check_row(std::span<const float> row, const std::vector<double>& wanted, const std::string& what) const {
    double squares = 0.0;
    for (const double value : wanted) squares += value * value;
    const double size = std::sqrt(squares / static_cast<double>(wanted.size()));
    const double tolerance = shape_.dtype == DType::kBFloat16 ? 1.2e-2 : 2e-3;
    for (std::size_t i = 0; i < row.size(); ++i)
      CHECK(std::abs(double{row[i]} - wanted[i]) <= tolerance * (size + std::abs(wanted[i])), what, " element ", i,
            " is ", row[i], ", expected ", wanted[i], " of a row of size ", size);
  }

  Gpu& gpu_;
  AttentionSpec spec_;
  AttentionShape shape_;
  AttentionLimits limits_;
  gpu::DeviceBuffer cache_;
  std::int32_t num_blocks_ = 0, stride_ = 0;
  std::vector<std::int32_t> query_start_, seq_lens_, table_rows_, is_decode_, tables_, positions_;
  std::vector<float> q_, sinks_;
  std::vector<std::vector<float>> keys_, values_;  // of each sequence: [position][kv head][head_dim]
};

}  // namespace paged::test
