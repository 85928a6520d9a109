// SPDX-License-Identifier: Apache-2.0
// A GPU's sampler against the CPU's: the same tokens, but where the uniform number falls so near to a boundary between
// two tokens that sums rounded otherwise may decide, which is then checked.
#include <limits>

#include "base/philox.h"
#include "gpu_test.h"

namespace paged::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kShare = kHasSlowThreads ? 20 : 1;  // of the cases

// Rows of logits and how each is sampled.
struct Rows {
  std::int64_t vocab = 0;
  std::int64_t stride = 0;
  std::vector<float> logits;
  std::vector<SamplingRow> how;

  Rows(std::int64_t vocab_size, std::int64_t row_stride) : vocab(vocab_size), stride(row_stride) {}
  explicit Rows(std::int64_t vocab_size) : Rows(vocab_size, vocab_size) {}
  std::int64_t size() const { return static_cast<std::int64_t>(how.size()); }
  void add(std::vector<float> row, const SamplingRow& sampling) {
    row.resize(static_cast<std::size_t>(stride), 1e30f);  // nobody reads between the rows
    logits.insert(logits.end(), row.begin(), row.end());
    how.push_back(sampling);
  }
  std::span<const float> row(std::int64_t index) const {
    return {logits.data() + index * stride, static_cast<std::size_t>(vocab)};
  }
  Rows only(std::int64_t index) const {
    Rows one(vocab, stride);
    one.add({row(index).begin(), row(index).end()}, how[static_cast<std::size_t>(index)]);
    return one;
  }
};

std::vector<std::int32_t> sample_on_gpu(Gpu& gpu, const Rows& rows) {
  const OnDevice logits(gpu, rows.logits), how(gpu, std::as_bytes(std::span(rows.how)));
  const OnDevice workspace = OnDevice::poisoned(gpu, gpu::sample_workspace_bytes(gpu.gpu, rows.size(), rows.vocab));
  const OnDevice tokens = OnDevice::poisoned(gpu, 4 * rows.size());
  ops::sample(gpu.context(), {{logits.data(), rows.size(), rows.vocab, rows.stride, DType::kFloat32},
                              how.as<SamplingRow>(),
                              workspace.data(),
                              tokens.as<std::int32_t>(),
                              nullptr,
                              nullptr});
  return tokens.ints();
}

std::vector<std::int32_t> sample_on_cpu(Gpu& gpu, const Rows& rows) {
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(ops::sample_workspace_bytes(gpu.threads.num_threads(), rows.vocab)) + 64);
  std::vector<float> logits = rows.logits;
  std::vector<std::int32_t> tokens(rows.how.size());
  void* aligned = workspace.data() + (64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64) % 64;
  ops::sample(gpu.cpu(), {{logits.data(), rows.size(), rows.vocab, rows.stride, DType::kFloat32},
                          rows.how.data(),
                          aligned,
                          tokens.data(),
                          nullptr,
                          nullptr});
  return tokens;
}

// The definition in double precision, with top_p moved by `nudge`: how far the row's uniform number lies outside of the
// token's interval of the cumulative distribution. Infinite if the token is not kept.
double distance_from(std::span<const float> row, const SamplingRow& how, std::int32_t token, double nudge) {
  const float largest = *std::max_element(row.begin(), row.end());
  const double inverse = std::min(1.0f / how.temperature, std::numeric_limits<float>::max());
  std::vector<float> sorted(row.begin(), row.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const auto weight = [&](float logit) { return std::exp((double{logit} - largest) * inverse); };
  float least = how.top_k > 0 && how.top_k < static_cast<int>(row.size())
                    ? sorted[static_cast<std::size_t>(how.top_k) - 1]
                    : -kInfinity;
  double total = 0.0;
  for (float logit : sorted) total += logit >= least ? weight(logit) : 0.0;
  if (how.top_p < 1.0f) {
    double mass = 0.0;
    for (float logit : sorted) {
      if (logit < least) break;
      mass += weight(logit);
      if (mass < (how.top_p + nudge) * total) continue;
      least = logit;
      break;
    }
  }
  double kept = 0.0, before = 0.0;
  for (std::size_t id = 0; id < row.size(); ++id) {
    if (row[id] >= least) kept += weight(row[id]);
    if (static_cast<std::int32_t>(id) < token && row[id] >= least) before += weight(row[id]);
  }
  const float own = row[static_cast<std::size_t>(token)];
  if (own < least) return kInfinity;
  const double at = uniform(how.seed, how.position) * kept;
  return std::max({0.0, before - at, at - before - weight(own)}) / kept;
}

// Returns how many tokens differ, each for a good reason.
int check_against_cpu(Gpu& gpu, const Rows& rows, const char* what) {
  const auto tokens = sample_on_gpu(gpu, rows), expected = sample_on_cpu(gpu, rows);
  int num_different = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == expected[i]) continue;
    const SamplingRow& how = rows.how[i];
    CHECK(tokens[i] >= 0 && tokens[i] < rows.vocab && expected[i] >= 0 && how.temperature > 0, what, " row ", i, ": ",
          tokens[i], ", not ", expected[i], " at temperature ", how.temperature);
    const auto row = rows.row(static_cast<std::int64_t>(i));
    double distance = kInfinity;
    for (double nudge : {0.0, -1e-6, 1e-6}) distance = std::min(distance, distance_from(row, how, tokens[i], nudge));
    CHECK(distance <= 1e-5, what, " row ", i, ": ", tokens[i], ", not ", expected[i], ", is ", distance,
          " off; temperature ", how.temperature, " top_k ", how.top_k, " top_p ", how.top_p);
    ++num_different;
  }
  return num_different;
}

// Logits of several kinds: flat and peaked, with ties, with most tokens forbidden.
std::vector<float> some_logits(Random& random, std::int64_t vocab) {
  constexpr float kScales[] = {0.5f, 2.0f, 6.0f};
  std::vector<float> row = random.floats(vocab, DType::kFloat32, kScales[random.below(3)]);
  const int kind = random.below(6);
  if (kind == 0)
    for (float& logit : row) logit = std::round(logit * 4) / 4;
  if (kind == 1) {
    const float kept = row[static_cast<std::size_t>(random.below(static_cast<int>(vocab)))];
    for (float& logit : row) logit = random.below(40) == 0 ? logit : -kInfinity;
    row[static_cast<std::size_t>(random.below(static_cast<int>(vocab)))] = kept;
  }
  if (kind == 2)
    for (float& logit : row) logit = random.below(3) == 0 ? logit : -1e9f;
  return row;
}

SamplingRow some_sampling(Random& random) {
  constexpr float kTemperatures[] = {0.0f, 1e-30f, 0.01f, 0.3f, 0.7f, 1.0f, 1.0f, 1.7f};
  constexpr std::int32_t kTopK[] = {0, 0, 1, 5, 50, 50, 1000};
  constexpr float kTopP[] = {1.0f, 1.0f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f};
  return {.temperature = kTemperatures[random.below(8)],
          .top_p = kTopP[random.below(7)],
          .top_k = kTopK[random.below(7)],
          .seed = static_cast<std::uint64_t>(random.below(1 << 30)) << 20,
          .position = random.below(1 << 20)};
}

void check_random_rows(Gpu& gpu, std::int64_t vocab, int num_rows, unsigned seed) {
  Random random(seed);
  int num_different = 0;
  for (int done = 0; done < num_rows;) {
    Rows rows(vocab, vocab + random.below(3) * 2);
    for (int left = 1 + random.below(70); left > 0 && done < num_rows; --left, ++done)
      rows.add(some_logits(random, vocab), some_sampling(random));
    num_different += check_against_cpu(gpu, rows, "random rows");
  }
  CHECK(num_different <= 2 + num_rows / 500, num_different, " of ", num_rows, " tokens differ, vocabulary ", vocab);
}

TEST(sampling_equals_the_cpus_on_small_vocabularies) {
  Gpu gpu;
  check_random_rows(gpu, 7, 1000 / kShare, 1);
  check_random_rows(gpu, 1000, 1000 / kShare, 2);
}
TEST(sampling_equals_the_cpus_on_a_vocabulary_of_32000) {
  Gpu gpu;
  check_random_rows(gpu, 32000, (gpu.gpu.compute_capability > 0 ? 2000 : 150) / kShare, 3);
}
TEST(sampling_equals_the_cpus_on_large_vocabularies) {
  Gpu gpu;
  if (gpu.gpu.compute_capability == 0) return;
  check_random_rows(gpu, 151936, 300, 4);
  check_random_rows(gpu, 128256, 300, 5);
  check_random_rows(gpu, 262208, 100, 6);
}

// Nuclei, and k, of more logits than one CTA can list; with temperatures that leave next to one or all of them.
TEST(broad_nuclei_equal_the_cpus) {
  Gpu gpu;
  Random random(31);
  Rows rows(20000);
  for (int i = 0; i < 60 / kShare; ++i) {
    constexpr float kTemperatures[] = {1.0f, 1.0f, 3.0f, 100.0f, 1e-5f};
    constexpr float kTopP[] = {0.3f, 0.8f, 0.95f, 0.999f, 0.999999f};
    constexpr std::int32_t kTopK[] = {0, 0, 0, 2500, 700};
    std::vector<float> row = random.floats(rows.vocab, DType::kFloat32, i % 2 == 0 ? 0.3f : 1.0f);
    if (i % 3 == 0)
      for (float& logit : row) logit = rounded(logit + 6.0f, DType::kBFloat16);
    rows.add(row, {.temperature = kTemperatures[random.below(5)],
                   .top_p = kTopP[random.below(5)],
                   .top_k = kTopK[random.below(5)],
                   .seed = 99,
                   .position = i});
  }
  CHECK(check_against_cpu(gpu, rows, "broad") <= 1, "too many tokens differ");
}

TEST(rows_that_are_no_distribution_give_minus_one) {
  Gpu gpu;
  for (const SamplingRow& how :
       {SamplingRow{}, SamplingRow{1.0f}, SamplingRow{1.0f, 0.9f, 3}, SamplingRow{1.0f, 0.5f}}) {
    Rows rows(9000);
    for (float bad : {std::nanf(""), -std::nanf(""), kInfinity}) {
      std::vector<float> row = Random(8).floats(9000);
      row[static_cast<std::size_t>(rows.size()) * 4000] = bad;
      rows.add(row, how);
    }
    rows.add(std::vector<float>(9000, -kInfinity), how);
    rows.add(Random(9).floats(9000), how);  // a good one among them
    const auto tokens = sample_on_gpu(gpu, rows);
    for (std::size_t i = 0; i < 4; ++i) CHECK_EQ(tokens[i], -1, "row ", i);
    CHECK(tokens[4] == sample_on_cpu(gpu, rows)[4]);
  }
}

TEST(greedy_takes_the_lowest_of_the_largest) {
  Gpu gpu;
  Rows rows(20000);
  const std::vector<int> first = {0, 5, 8191, 8192, 19999};
  for (int at : first) {
    std::vector<float> row(20000, -3.0f);
    for (std::size_t id = static_cast<std::size_t>(at); id < row.size(); id += 777) row[id] = 2.0f;
    rows.add(row, {});
    row.assign(20000, -1.0f);
    for (std::size_t id = static_cast<std::size_t>(at); id < row.size(); ++id) row[id] = id % 2 == 0 ? -0.0f : 0.0f;
    rows.add(row, {});
  }
  const auto tokens = sample_on_gpu(gpu, rows);
  for (std::size_t i = 0; i < tokens.size(); ++i) CHECK_EQ(tokens[i], first[i / 2]);
}

// Ties at the k-th logit are all kept; ties everywhere take the search of the whole row.
TEST(ties_are_kept) {
  Gpu gpu;
  for (std::int64_t vocab : {40, 12000}) {
    Rows rows(vocab);
    for (int i = 0; i < 60 / kShare; ++i) {
      std::vector<float> row(static_cast<std::size_t>(vocab), i % 2 == 0 ? 1.5f : 1.0f);
      if (i % 2 != 0)
        for (std::size_t id = 3; id < row.size(); id += 5) row[id] = 2.0f;
      rows.add(row, {.temperature = 1.0f,
                     .top_p = i % 3 == 0 ? 0.4f : 1.0f,
                     .top_k = i % 3 == 1 ? 0 : 2,
                     .seed = 5,
                     .position = i});
    }
    check_against_cpu(gpu, rows, "ties");
  }
}

TEST(a_row_does_not_depend_on_its_batch) {
  Gpu gpu;
  Random random(21);
  Rows rows(9001), wider(9001, 9004);
  for (int i = 0; i < 70 / std::min(kShare, 5); ++i) {
    rows.add(some_logits(random, rows.vocab), some_sampling(random));
    wider.add({rows.row(i).begin(), rows.row(i).end()}, rows.how.back());
  }
  const auto together = sample_on_gpu(gpu, rows);
  CHECK(sample_on_gpu(gpu, wider) == together);
  for (std::int64_t i = 0; i < rows.size(); ++i) {
    const std::int32_t alone = sample_on_gpu(gpu, rows.only(i))[0];
    CHECK_EQ(alone, together[static_cast<std::size_t>(i)], "row ", i);
  }
}

// Pearson's test with 6 degrees of freedom: a right sampler is above 38.3 for one seed in a million.
TEST(tokens_follow_the_distribution) {
  Gpu gpu;
  const std::vector<float> logits = {0.3f, -1.0f, 1.2f, 0.0f, -0.5f, 0.9f, -2.0f};
  const int num_draws = 3000 / kShare;
  Rows rows(7);
  for (int i = 0; i < num_draws; ++i) rows.add(logits, {.temperature = 0.8f, .seed = 77, .position = i});
  std::vector<double> expected;
  double total = 0.0;
  for (float logit : logits) total += expected.emplace_back(std::exp(logit / 0.8));
  std::vector<int> count(7, 0);
  for (std::int32_t token : sample_on_gpu(gpu, rows)) ++count[static_cast<std::size_t>(token)];
  double statistic = 0.0;
  for (std::size_t i = 0; i < 7; ++i) {
    const double mean = expected[i] / total * num_draws;
    statistic += (count[i] - mean) * (count[i] - mean) / mean;
  }
  CHECK(statistic < 38.3, statistic);
}

TEST(the_next_step_finds_its_tokens) {
  Gpu gpu;
  const OnDevice logits(gpu, std::vector<float>{0, 1, 0, 0, 0, 2, 5, 0, 0});
  const std::vector<SamplingRow> how(3);
  const OnDevice rows(gpu, std::as_bytes(std::span(how)));
  const std::vector<std::int32_t> of_rows = {4, 0, 2}, before(6, 9);
  const OnDevice table_rows(gpu, std::span(of_rows)), last(gpu, std::span(before));
  const OnDevice tokens = OnDevice::poisoned(gpu, 12);
  const OnDevice workspace = OnDevice::poisoned(gpu, gpu::sample_workspace_bytes(gpu.gpu, 3, 3));
  ops::sample(gpu.context(), {{logits.data(), 3, 3, 3, DType::kFloat32},
                              rows.as<SamplingRow>(),
                              workspace.data(),
                              tokens.as<std::int32_t>(),
                              table_rows.as<std::int32_t>(),
                              last.as<std::int32_t>()});
  CHECK(tokens.ints() == (std::vector{1, 2, 0}));
  CHECK(last.ints() == (std::vector{2, 9, 0, 9, 1, 9}));
}

}  // namespace
}  // namespace paged::test
