// SPDX-License-Identifier: Apache-2.0
// A GPU's edits of logits and its scores against the CPU's, on rows of all kinds and sizes.
#include <limits>
#include <set>

#include "gpu_test.h"
#include "ops/logits_ops.h"

namespace paged::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kShare = kHasSlowThreads ? 10 : 1;  // of the rows

template <class T>
OnDevice upload(Gpu& gpu, const std::vector<T>& values) {
  return {gpu, std::as_bytes(std::span(values))};
}

// With ties, and with most tokens forbidden, in some.
std::vector<float> some_logits(Random& random, std::int64_t vocab) {
  std::vector<float> row = random.floats(vocab, DType::kFloat32, 3.0f);
  const int kind = random.below(4);
  for (float& logit : row) {
    if (kind == 0) logit = std::round(logit);
    if (kind == 1 && random.below(20) != 0) logit = -kInfinity;
  }
  row[static_cast<std::size_t>(random.below(static_cast<int>(vocab)))] = 4.0f;
  return row;
}

// Logits of several rows with something between them that nobody may touch.
struct Logits {
  Logits(Random& random, std::int64_t vocab_size, std::int64_t num_rows)
      : vocab(vocab_size), stride(vocab_size + 2 * random.below(3)), rows(num_rows) {
    for (std::int64_t i = 0; i < rows; ++i) {
      std::vector<float> row = some_logits(random, vocab);
      row.resize(static_cast<std::size_t>(stride), 1e30f);
      values.insert(values.end(), row.begin(), row.end());
    }
  }
  MatrixView view(void* data) const { return {data, rows, vocab, stride, DType::kFloat32}; }

  std::int64_t vocab, stride, rows;
  std::vector<float> values;
};

struct Edits {
  std::vector<EditedRow> rows;
  std::vector<std::uint32_t> masks;
  std::vector<LogitBan> bans;
  std::vector<LogitBias> biases;
  std::vector<TokenCount> counts;
  std::vector<std::int32_t> last_tokens;
};

// Different ids, in any order.
std::vector<std::int32_t> some_ids(Random& random, std::int64_t vocab, int max_count) {
  std::set<std::int32_t> ids;
  for (int left = random.below(max_count + 1); left > 0; --left) ids.insert(random.below(static_cast<int>(vocab)));
  std::vector<std::int32_t> out(ids.begin(), ids.end());
  std::reverse(out.begin(), out.begin() + std::ssize(out) / 2);
  return out;
}

EditedRow some_edit(Random& random, std::int64_t vocab, Edits& edits) {
  EditedRow row;
  if (random.below(2) == 0) {
    row.mask = static_cast<std::int32_t>(std::ssize(edits.masks) / mask_words(vocab));
    for (std::int64_t i = 0; i < mask_words(vocab); ++i)
      edits.masks.push_back(static_cast<std::uint32_t>(random.below(1 << 30)) | (i % 3 == 0 ? 3u << 30 : 0));
  }
  row.first_ban = static_cast<std::int32_t>(std::ssize(edits.bans));
  for (const std::int32_t id : some_ids(random, vocab, 9)) edits.bans.push_back({id, random.below(3) - 1});
  row.num_bans = static_cast<std::int32_t>(std::ssize(edits.bans)) - row.first_ban;
  row.first_bias = static_cast<std::int32_t>(std::ssize(edits.biases));
  for (const std::int32_t id : some_ids(random, vocab, 700)) edits.biases.push_back({id, random.floats(1)[0] * 5.0f});
  row.num_biases = static_cast<std::int32_t>(std::ssize(edits.biases)) - row.first_bias;
  row.repetition = random.below(2) == 0 ? 1.0f : 0.5f + 0.3f * static_cast<float>(random.below(5));
  row.presence = 0.5f * static_cast<float>(random.below(3));
  row.frequency = 0.25f * static_cast<float>(random.below(3));
  row.first_count = static_cast<std::int32_t>(std::ssize(edits.counts));
  for (const std::int32_t id : some_ids(random, vocab, 900)) edits.counts.push_back({id, random.below(4)});
  if (std::ssize(edits.counts) > row.first_count) {  // the tokens in flight are often counted already
    const auto counted = edits.counts.begin() + row.first_count;
    if (std::none_of(counted, edits.counts.end(), [](const TokenCount& token) { return token.id == 1; }))
      counted->id = 1;
  }
  row.num_counts = static_cast<std::int32_t>(std::ssize(edits.counts)) - row.first_count;
  if (random.below(2) == 0) row.pending_row = random.below(static_cast<int>(std::ssize(edits.last_tokens)));
  if (random.below(2) == 0) row.min_p_gap = static_cast<float>(random.below(8));
  return row;
}

void check_edits(Gpu& gpu, std::int64_t vocab, unsigned seed) {
  Random random(seed);
  const Logits logits(random, vocab, 24 / kShare + 1);
  Edits edits;
  edits.last_tokens = {0, 1, static_cast<std::int32_t>(vocab) - 1};
  for (std::int32_t i = 0; i < logits.rows; ++i) {
    if (random.below(5) == 0) continue;  // this one is left alone
    edits.rows.push_back(some_edit(random, vocab, edits));
    edits.rows.back().row = i;
  }
  std::vector<float> expected = logits.values;
  const auto num_rows = static_cast<std::int32_t>(std::ssize(edits.rows));
  ops::edit_logits(gpu.cpu(), {logits.view(expected.data()), edits.rows.data(), num_rows, edits.masks.data(),
                               edits.bans.data(), edits.biases.data(), edits.counts.data(), edits.last_tokens.data()});
  const OnDevice on_device(gpu, logits.values), rows = upload(gpu, edits.rows), masks = upload(gpu, edits.masks),
                                                bans = upload(gpu, edits.bans), biases = upload(gpu, edits.biases),
                                                counts = upload(gpu, edits.counts),
                                                last_tokens = upload(gpu, edits.last_tokens);
  ops::edit_logits(gpu.context(), {logits.view(on_device.data()), rows.as<EditedRow>(), num_rows,
                                   masks.as<std::uint32_t>(), bans.as<LogitBan>(), biases.as<LogitBias>(),
                                   counts.as<TokenCount>(), last_tokens.as<std::int32_t>()});
  const std::vector<float> found = on_device.floats();
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool is_close = std::isinf(expected[i])
                              ? found[i] == expected[i]
                              : std::abs(found[i] - expected[i]) <= 1e-5f * (1.0f + std::abs(expected[i]));
    CHECK(is_close, "logit ", i, " is ", found[i], ", expected ", expected[i]);
  }
}

TEST(edits_equal_the_cpus) {
  Gpu gpu;
  check_edits(gpu, 7, 1);
  check_edits(gpu, 320, 2);
  check_edits(gpu, 1003, 3);
  check_edits(gpu, 32000, 4);
}

ScoredRow some_score(Random& random, std::int64_t vocab, std::int32_t num_copies, std::int32_t max_top) {
  ScoredRow row;
  if (random.below(3) == 0) row.unedited = random.below(num_copies);
  if (random.below(2) == 0) row.token = random.below(static_cast<int>(vocab));
  row.num_top = random.below(4) == 0 ? max_top : std::min<std::int32_t>(random.below(6), max_top);
  row.normalised = random.below(4) != 0;
  if (random.below(2) == 0) {
    row.temperature = 0.3f + 0.4f * static_cast<float>(random.below(4));
    row.top_k = random.below(2) == 0 ? 0 : 1 + random.below(static_cast<int>(vocab));
    row.top_p = random.below(2) == 0 ? 1.0f : 0.1f + 0.2f * static_cast<float>(random.below(5));
  }
  return row;
}

void check_score(const ScoredToken& found, const ScoredToken& expected, std::size_t index) {
  CHECK_EQ(found.id, expected.id, "score ", index);
  CHECK_EQ(found.rank, expected.rank, "score ", index);
  const bool is_close = std::isinf(expected.value)
                            ? found.value == expected.value
                            : std::abs(found.value - expected.value) <= 2e-5f * (1.0f + std::abs(expected.value));
  CHECK(is_close, "score ", index, " is ", found.value, ", expected ", expected.value);
}

void check_scores(Gpu& gpu, std::int64_t vocab, std::int32_t max_top, unsigned seed) {
  Random random(seed);
  const Logits logits(random, vocab, 12 / kShare + 1);
  std::vector<float> copies;
  constexpr std::int32_t kNumCopies = 3;
  for (std::int32_t i = 0; i < kNumCopies; ++i) {
    const std::vector<float> copy = some_logits(random, vocab);
    copies.insert(copies.end(), copy.begin(), copy.end());
  }
  std::vector<std::int32_t> sampled;
  std::vector<ScoredRow> rows;
  std::int32_t num_scores = 0;
  for (std::int32_t i = 0; i < logits.rows; ++i) {
    sampled.push_back(random.below(static_cast<int>(vocab)));
    rows.push_back(some_score(random, vocab, kNumCopies, max_top));
    rows.back().row = i;
    rows.back().first_out = num_scores;
    num_scores += 1 + rows.back().num_top;
  }
  const auto num_rows = static_cast<std::int32_t>(std::ssize(rows));
  std::vector<ScoredToken> expected(static_cast<std::size_t>(num_scores)), found(expected.size());
  std::vector<std::byte> workspace(
      static_cast<std::size_t>(ops::sample_workspace_bytes(gpu.threads.num_threads(), vocab)) + 64);
  void* aligned = workspace.data() + (64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64) % 64;
  std::vector<float> values = logits.values;
  ops::score_logits(gpu.cpu(), {logits.view(values.data()), copies.data(), rows.data(), num_rows, sampled.data(),
                                aligned, expected.data()});
  const OnDevice on_device(gpu, logits.values), unedited(gpu, copies), asked = upload(gpu, rows),
                                                                       tokens = upload(gpu, sampled);
  const OnDevice out = OnDevice::poisoned(gpu, num_scores * std::int64_t{sizeof(ScoredToken)});
  ops::score_logits(gpu.context(), {logits.view(on_device.data()), unedited.as<float>(), asked.as<ScoredRow>(),
                                    num_rows, tokens.as<std::int32_t>(), nullptr, out.as<ScoredToken>()});
  const std::vector<std::byte> raw = out.bytes();
  std::memcpy(found.data(), raw.data(), raw.size());
  for (std::size_t i = 0; i < found.size(); ++i) check_score(found[i], expected[i], i);
}

TEST(scores_equal_the_cpus) {
  Gpu gpu;
  check_scores(gpu, 7, 7, 11);
  check_scores(gpu, 320, 320, 12);
  check_scores(gpu, 1003, 40, 13);
  check_scores(gpu, 32000, 20, 14);
}

}  // namespace
}  // namespace paged::test
