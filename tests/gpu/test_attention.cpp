// SPDX-License-Identifier: Apache-2.0
// Attention of a GPU against a plain double loop: whichever kernels the dispatch picks, on ragged batches that mix
// decodes and prefills. Slots that no token may see hold NaN.
#include "gpu_test.h"

namespace paged::test {
namespace {

struct SequenceCase {
  int seq_len;
  int query_len;
  bool is_decode;
};

struct AttentionCase {
  std::vector<SequenceCase> sequences;
  AttentionShape shape{4, 2, 64, 16, DType::kFloat32};
  int window = 0;
  float softcap = 0.0f;
  bool sinks = false;
};

std::span<const std::int32_t> as_span(const std::vector<std::int32_t>& values) { return values; }

// A case with its data on the host and on the device.
class Problem {
 public:
  Problem(Gpu& gpu, const AttentionCase& what, unsigned seed = 3) : gpu_(&gpu), what_(what), random_(seed) {
    lay_out();
    q_ = random_.floats(num_tokens() * width(), what.shape.dtype);
    sinks_ = random_.floats(what.shape.num_heads);
    fill_cache();
  }

  std::int64_t num_tokens() const { return query_start_.back(); }
  std::int64_t width() const { return std::int64_t{what_.shape.num_heads} * what_.shape.head_dim; }

  // Queries, keys and values of the first sequence become the other's.
  void share_first_sequence(const Problem& other) {
    std::copy_n(other.q_.begin(), what_.sequences[0].query_len * width(), q_.begin());
    for (int position = 0; position < seq_lens_[0]; ++position)
      for (int part = 0; part < 2 * what_.shape.num_kv_heads; ++part)
        std::copy_n(other.values_.begin() + static_cast<std::ptrdiff_t>(other.at(0, position, part % 2, part / 2)),
                    what_.shape.head_dim,
                    values_.begin() + static_cast<std::ptrdiff_t>(at(0, position, part % 2, part / 2)));
    cache_ = encode(values_, what_.shape.dtype);
  }

  std::vector<float> run() {
    const OnDevice q(*gpu_, q_, what_.shape.dtype), cache(*gpu_, cache_);
    const OnDevice out = OnDevice::poisoned(*gpu_, num_tokens() * width() * size_of(what_.shape.dtype));
    const OnDevice starts(*gpu_, as_span(query_start_)), lens(*gpu_, as_span(seq_lens_)), rows(*gpu_, as_span(rows_)),
        decode(*gpu_, as_span(is_decode_)), tables(*gpu_, as_span(tables_)), sinks(*gpu_, sinks_);
    BatchView batch;
    batch.num_tokens = static_cast<std::int32_t>(num_tokens());
    batch.num_sequences = static_cast<std::int32_t>(seq_lens_.size());
    for (std::int32_t one : is_decode_) batch.num_decodes += one;
    batch.query_start = starts.as<std::int32_t>();
    batch.seq_lens = lens.as<std::int32_t>();
    batch.block_table_rows = rows.as<std::int32_t>();
    batch.is_decode = decode.as<std::int32_t>();
    batch.block_tables = tables.as<std::int32_t>();
    batch.block_table_stride = stride_;
    const AttentionLimits limits{what_.shape, 4096, 512, std::max(1, stride_) * what_.shape.block_size};
    const OnDevice plan = OnDevice::poisoned(*gpu_, 256 + gpu::attention_plan_bytes(gpu_->gpu, limits));
    const OnDevice workspace = OnDevice::poisoned(*gpu_, 256 + gpu::attention_workspace_bytes(gpu_->gpu, limits));
    gpu::plan_attention(gpu_->context(), {&batch, &limits, what_.window, plan.data()});
    const AttentionShape& shape = what_.shape;
    const KvCacheView view{cache.data(),       num_blocks_,    shape.block_size,
                           shape.num_kv_heads, shape.head_dim, shape.dtype};
    ops::attention(gpu_->context(), {matrix(q.data()), view, &batch, shape.num_heads, what_.window, scale(),
                                     what_.softcap, what_.sinks ? sinks.as<float>() : nullptr, workspace.data(),
                                     matrix(out.data()), &limits, plan.data()});
    return out.floats(shape.dtype);
  }

  std::vector<float> expected() const {
    std::vector<float> out(static_cast<std::size_t>(num_tokens() * width()), 0.0f);
    for (std::size_t s = 0; s < seq_lens_.size(); ++s)
      for (int token = query_start_[s]; token < query_start_[s + 1]; ++token)
        if (seq_lens_[s] > 0) expect_token(static_cast<int>(s), token, out);
    return out;
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(what_.shape.head_dim)); }
  MatrixView matrix(void* data) const { return {data, num_tokens(), width(), width(), what_.shape.dtype}; }

  // Every sequence gets blocks in random order and a random row of the table.
  void lay_out() {
    const int block = what_.shape.block_size;
    query_start_ = {0};
    for (const SequenceCase& sequence : what_.sequences) {
      query_start_.push_back(query_start_.back() + sequence.query_len);
      seq_lens_.push_back(sequence.seq_len);
      is_decode_.push_back(sequence.is_decode ? 1 : 0);
      rows_.push_back(static_cast<std::int32_t>(rows_.size()));
      const int blocks = (sequence.seq_len + block - 1) / block;
      num_blocks_ += blocks;
      stride_ = std::max(stride_, blocks);
    }
    num_blocks_ += 3;
    std::vector<std::int32_t> free(static_cast<std::size_t>(num_blocks_));
    for (std::size_t i = 0; i < free.size(); ++i) free[i] = static_cast<std::int32_t>(i);
    for (std::size_t i = free.size(); i-- > 1;)
      std::swap(free[i], free[static_cast<std::size_t>(random_.below(static_cast<int>(i + 1)))]);
    for (std::size_t i = rows_.size(); i-- > 1;)
      std::swap(rows_[i], rows_[static_cast<std::size_t>(random_.below(static_cast<int>(i + 1)))]);
    stride_ += 1;
    tables_.assign(rows_.size() * static_cast<std::size_t>(stride_), -1);
    for (std::size_t s = 0; s < rows_.size(); ++s)
      for (int i = 0; i * block < seq_lens_[s]; ++i) {
        tables_[static_cast<std::size_t>(rows_[s] * stride_ + i)] = free.back();
        free.pop_back();
      }
  }

  std::size_t at(int sequence, int position, int is_value, int kv_head) const {
    const AttentionShape& shape = what_.shape;
    const std::int64_t block = tables_[static_cast<std::size_t>(rows_[static_cast<std::size_t>(sequence)] * stride_ +
                                                                position / shape.block_size)];
    const std::int64_t piece = ((block * 2 + is_value) * shape.num_kv_heads + kv_head) * shape.block_size;
    return static_cast<std::size_t>((piece + position % shape.block_size) * shape.head_dim);
  }

  void fill_cache() {
    const AttentionShape& shape = what_.shape;
    const std::int64_t elements =
        std::int64_t{num_blocks_} * 2 * shape.num_kv_heads * shape.block_size * shape.head_dim;
    values_.assign(static_cast<std::size_t>(elements), std::nanf(""));
    for (std::size_t s = 0; s < seq_lens_.size(); ++s)
      for (int position = 0; position < seq_lens_[s]; ++position)
        for (int part = 0; part < 2 * shape.num_kv_heads; ++part) {
          const auto one = random_.floats(shape.head_dim, shape.dtype);
          std::copy(
              one.begin(), one.end(),
              values_.begin() + static_cast<std::ptrdiff_t>(at(static_cast<int>(s), position, part % 2, part / 2)));
        }
    cache_ = encode(values_, shape.dtype);
  }

  void expect_token(int sequence, int token, std::vector<float>& out) const {
    const AttentionShape& shape = what_.shape;
    const auto s = static_cast<std::size_t>(sequence);
    const int position = seq_lens_[s] - (query_start_[s + 1] - token);
    const int lowest = what_.window > 0 ? std::max(0, position - what_.window + 1) : 0;
    for (int head = 0; head < shape.num_heads; ++head) {
      const int kv_head = head / (shape.num_heads / shape.num_kv_heads);
      const std::size_t row = static_cast<std::size_t>((std::int64_t{token} * shape.num_heads + head) * shape.head_dim);
      std::vector<double> score;
      double largest = what_.sinks ? sinks_[static_cast<std::size_t>(head)] : -1e300;
      for (int key = lowest; key <= position; ++key) {
        const std::size_t k = at(sequence, key, 0, kv_head);
        double sum = 0.0;
        for (int d = 0; d < shape.head_dim; ++d)
          sum += double{q_[row + static_cast<std::size_t>(d)]} * values_[k + static_cast<std::size_t>(d)];
        sum *= scale();
        if (what_.softcap > 0) sum = what_.softcap * std::tanh(sum / what_.softcap);
        score.push_back(sum);
        largest = std::max(largest, sum);
      }
      double total = what_.sinks ? std::exp(sinks_[static_cast<std::size_t>(head)] - largest) : 0.0;
      std::vector<double> acc(static_cast<std::size_t>(shape.head_dim), 0.0);
      for (int key = lowest; key <= position; ++key) {
        const double weight = std::exp(score[static_cast<std::size_t>(key - lowest)] - largest);
        total += weight;
        const std::size_t v = at(sequence, key, 1, kv_head);
        for (std::size_t d = 0; d < acc.size(); ++d) acc[d] += weight * values_[v + d];
      }
      for (std::size_t d = 0; d < acc.size(); ++d) out[row + d] = static_cast<float>(acc[d] / total);
    }
  }

  Gpu* gpu_;
  AttentionCase what_;
  Random random_;
  std::vector<std::int32_t> query_start_, seq_lens_, is_decode_, rows_, tables_;
  std::int32_t num_blocks_ = 0, stride_ = 0;
  std::vector<float> q_, sinks_, values_;
  std::vector<std::byte> cache_;
};

// Rounding the output, and (where a fast path keeps the softmax's weights in the dtype) of the weights.
double tolerance(DType dtype) { return dtype == DType::kFloat32 ? 2e-5 : dtype == DType::kBFloat16 ? 1.5e-2 : 2e-3; }

void check_case(Gpu& gpu, const AttentionCase& what, const char* name, unsigned seed = 3) {
  Problem problem(gpu, what, seed);
  const std::vector<float> out = problem.run();
  check_close(out, problem.expected(), tolerance(what.shape.dtype), name);
}

// Decodes, prompts with and without a cached prefix, a prompt of one token, padding of a graph.
const std::vector<SequenceCase> kMixed = {{1, 1, true},   {70, 1, true}, {0, 1, true},  {5, 5, false},
                                          {90, 9, false}, {64, 1, true}, {33, 1, false}};

TEST(attention_of_every_dtype_and_head_dim) {
  Gpu gpu;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    for (int head_dim : {32, 64, 80, 96, 128, 256, 100, 46, 512})
      check_case(gpu, {{{70, 1, true}, {0, 1, true}, {34, 3, false}}, {4, 2, head_dim, 16, dtype}}, "head dim");
}

TEST(attention_of_every_block_size) {
  Gpu gpu;
  for (int block_size : {1, 4, 16, 32, 64, 256})
    check_case(gpu, {kMixed, {4, 2, 64, block_size, DType::kBFloat16}}, "block size");
}

TEST(attention_of_every_group) {
  Gpu gpu;
  for (int group : {1, 2, 3, 4, 7, 8, 12})
    check_case(gpu, {{{70, 1, true}, {21, 2, false}}, {2 * group, 2, 64, 16, DType::kBFloat16}}, "group");
}

TEST(attention_with_windows_softcap_and_sinks) {
  Gpu gpu;
  for (int window : {1, 16, 65, 1000})
    for (bool other : {false, true})
      check_case(gpu, {kMixed, {4, 1, 64, 16, DType::kBFloat16}, window, other ? 2.0f : 0.0f, other}, "window");
  check_case(gpu, {kMixed, {4, 2, 64, 16, DType::kFloat32}, 0, 0.0f, true}, "sinks");
  check_case(gpu, {kMixed, {4, 2, 128, 16, DType::kFloat16}, 0, 1.5f, false}, "softcap");
}

TEST(attention_over_several_leaves) {
  Gpu gpu;
  check_case(gpu, {{{1100, 1, true}, {700, 2, false}, {513, 1, true}}, {2, 1, 64, 64, DType::kBFloat16}}, "long");
  check_case(gpu, {{{1100, 1, true}, {700, 2, false}}, {2, 1, 64, 64, DType::kFloat32}, 300}, "long, window");
}

TEST(attention_of_batches_of_one_kind) {
  Gpu gpu;
  check_case(gpu, {{{9, 1, true}, {300, 1, true}, {0, 1, true}}, {4, 2, 128, 16, DType::kBFloat16}}, "decodes");
  check_case(gpu, {{{9, 9, false}, {200, 40, false}}, {4, 2, 128, 16, DType::kBFloat16}}, "prefills");
}

// The first sequence of each batch is the same; so are its results, bit for bit.
TEST(attention_does_not_see_the_neighbours) {
  Gpu gpu;
  for (const SequenceCase& one : {SequenceCase{300, 1, true}, SequenceCase{150, 20, false}}) {
    const AttentionShape shape{4, 2, 64, 16, DType::kBFloat16};
    Problem alone(gpu, {{one}, shape}), together(gpu, {{one, {40, 1, true}, {30, 10, false}, {0, 1, true}}, shape});
    together.share_first_sequence(alone);
    const auto small = alone.run(), large = together.run();
    for (std::size_t i = 0; i < small.size(); ++i) CHECK(small[i] == large[i], "element ", i);
  }
}

TEST(attention_of_real_sizes) {
  Gpu gpu;
  if (gpu.gpu.compute_capability == 0) return;
  for (int head_dim : {64, 128, 256})
    for (int block_size : {16, 64})
      check_case(gpu,
                 {{{5000, 1, true}, {2048, 100, false}, {200, 200, false}, {1, 1, true}, {3000, 1, true}},
                  {8, 2, head_dim, block_size, DType::kBFloat16}},
                 "real");
}

}  // namespace
}  // namespace paged::test
