// SPDX-License-Identifier: Apache-2.0
// Decode attention on NVIDIA's tensor cores against sums in double, and bit by bit against itself in other batches.
// There is none on the emulator at warp 64.
#include "attention_case.h"
#include "cuda/attention_paths.h"

namespace paged::test {
namespace {

const gpu::FastAttention* kernel(Gpu& gpu, const AttentionShape& shape) {
  const gpu::FastAttention* attention = gpu::mma_decode_attention();
  return attention != nullptr && attention->takes(gpu.gpu, shape) ? attention : nullptr;
}

void check_case(Gpu& gpu, const AttentionSpec& spec, const std::string& what) {
  const gpu::FastAttention* attention = kernel(gpu, spec.shape);
  if (attention == nullptr) return;
  AttentionCase one(gpu, spec);
  one.check(one.run(*attention), true, what);
}

std::vector<SequenceSpec> ragged(std::initializer_list<int> lengths) {
  std::vector<SequenceSpec> sequences;
  for (const int length : lengths)
    sequences.push_back({.seq_len = length, .seed = static_cast<unsigned>(sequences.size() + 1)});
  return sequences;
}

bool is_real(const Gpu& gpu) { return gpu.gpu.compute_capability > 0; }

TEST(short_sequences_of_every_shape) {
  Gpu gpu;
  const std::vector<SequenceSpec> sequences = ragged({0, 1, 15, 16, 17, 63, 64, 65, 130});
  const std::vector<int> block_sizes = is_real(gpu) ? std::vector{16, 32, 64, 128, 256} : std::vector{16, 64};
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int block_size : block_sizes) {
      for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
        if (!is_real(gpu) && (dtype == DType::kFloat16) != (head_dim == 96)) continue;
        check_case(gpu, {.shape = {4, 2, head_dim, block_size, dtype}, .sequences = sequences},
                   "head_dim " + std::to_string(head_dim) + " block " + std::to_string(block_size) + " " +
                       (dtype == DType::kFloat16 ? "fp16" : "bf16"));
      }
    }
  }
}

TEST(groups_of_heads) {
  Gpu gpu;
  for (const int group : {1, 2, 3, 5, 6, 7, 8, 16})
    check_case(gpu, {.shape = {2 * group, 2, 64, 16, DType::kFloat16}, .sequences = ragged({3, 70, 0})},
               "group " + std::to_string(group));
  for (const int group : {8, 16})
    check_case(gpu, {.shape = {group, 1, 128, 32, DType::kBFloat16}, .sequences = ragged({300})},
               "group " + std::to_string(group));
}

TEST(leaves_and_nodes) {
  Gpu gpu;
  check_case(gpu, {.shape = {4, 1, 64, 32, DType::kFloat16}, .sequences = ragged({255, 256, 257, 1023, 1025})},
             "mixed");
  check_case(gpu, {.shape = {2, 1, 64, 64, DType::kFloat16}, .sequences = ragged({3000})}, "one");
  if (!is_real(gpu)) return;
  for (const int head_dim : {64, 96, 128, 256}) {
    const std::string what = "head_dim " + std::to_string(head_dim);
    const AttentionShape shape{32, 8, head_dim, 64, DType::kBFloat16};
    check_case(gpu, {.shape = shape, .sequences = ragged({1, 255, 256, 257, 1023, 1024, 1025, 5000})}, what + " mixed");
    check_case(gpu, {.shape = shape, .sequences = ragged({5000})}, what + " one");
    check_case(gpu, {.shape = {8, 2, head_dim, 16, DType::kFloat16}, .sequences = ragged({20000})}, what + " long");
    AttentionSpec many{.shape = {4, 2, head_dim, 16, DType::kBFloat16}, .sequences = {}};
    for (int i = 0; i < 300; ++i) many.sequences.push_back({.seq_len = i * 37 % 700, .seed = static_cast<unsigned>(i)});
    check_case(gpu, many, what + " many");
  }
}

TEST(window_softcap_and_sinks) {
  Gpu gpu;
  const AttentionShape shape{6, 2, 64, 16, DType::kFloat16};
  const std::vector<SequenceSpec> sequences = ragged({1, 17, 100, 330, 1100});
  for (const int window : {1, 16, 65, 256, 300})
    check_case(gpu, {.shape = shape, .sequences = sequences, .window = window}, "window " + std::to_string(window));
  check_case(gpu, {.shape = shape, .sequences = sequences, .softcap = 2.0f}, "softcap");
  check_case(gpu, {.shape = shape, .sequences = ragged({0, 5, 300}), .sinks = true}, "sinks");
  check_case(gpu, {.shape = shape, .sequences = sequences, .window = 40, .softcap = 3.0f, .sinks = true}, "all three");
}

TEST(several_tokens_of_a_sequence_and_prefills_left_alone) {
  Gpu gpu;
  AttentionSpec spec{.shape = {6, 2, 64, 16, DType::kFloat16}, .sequences = {}};
  spec.sequences = {{.seq_len = 70, .query_len = 7, .seed = 1},
                    {.seq_len = 40, .query_len = 40, .is_decode = false, .seed = 2},
                    {.seq_len = 300, .query_len = 1, .seed = 3},
                    {.seq_len = 0, .query_len = 1, .seed = 4},
                    {.seq_len = 9, .query_len = 9, .seed = 5}};
  check_case(gpu, spec, "several");
  spec.window = 5;
  check_case(gpu, spec, "several, window");
  spec.shape = {4, 2, 256, 16, DType::kBFloat16};
  check_case(gpu, spec, "several, head_dim 256");
}

// What a sequence gets must not depend on who else is in the batch, nor on being computed token by token.
TEST(bits_do_not_depend_on_the_batch) {
  Gpu gpu;
  AttentionSpec spec{.shape = {8, 2, 64, 16, DType::kBFloat16}, .sequences = {}};
  if (kernel(gpu, spec.shape) == nullptr) return;
  const std::vector<int> lengths = is_real(gpu) ? std::vector{77, 1025, 2600, 9000} : std::vector{77, 1300};
  for (const int window : {0, 600}) {
    spec.window = window;
    for (const int length : lengths) {
      const SequenceSpec sequence{.seq_len = length, .seed = 42};
      spec.sequences = {sequence};
      AttentionCase alone(gpu, spec);
      const std::vector<std::byte> wanted = alone.run(*kernel(gpu, spec.shape));
      const auto compare = [&](std::size_t at, int token, const char* what) {
        AttentionCase other(gpu, spec);
        const std::vector<std::byte> out = other.run(*kernel(gpu, spec.shape));
        const std::span<const std::byte> rows = other.rows_of(out, at, token, 1);
        CHECK(std::equal(rows.begin(), rows.end(), wanted.begin(), wanted.end()), what, " length ", length, " window ",
              window);
      };
      spec.sequences = {{.seq_len = 3, .seed = 7}, sequence, {.seq_len = 500, .seed = 8}};
      compare(1, 0, "of three");
      spec.sequences = {{.seq_len = 31, .query_len = 31, .is_decode = false, .seed = 9},
                        {.seq_len = length, .query_len = 6, .seed = 42}};
      compare(1, 5, "last of six tokens");
      spec.sequences = {{.seq_len = length + 3, .query_len = 9, .seed = 42}};
      // Longer: the same seed gives the same first positions.
      compare(0, 5, "among nine tokens");
      if (!is_real(gpu)) continue;
      spec.sequences.assign(100, {.seq_len = 1500, .seed = 10});
      spec.sequences[77] = sequence;
      compare(77, 0, "of a hundred");
      spec.sequences.assign(400, {.seq_len = 200, .seed = 11});
      spec.sequences.back() = sequence;
      compare(399, 0, "of four hundred");
    }
  }
}

// Few blocks and small enough for a race detector: pairs that one block has whole, that two and that many share.
TEST(small_batches_on_few_multiprocessors) {
  Gpu gpu;
  for (const int head_dim : {64, 256}) {
    gpu.gpu.num_multiprocessors = 3;
    check_case(gpu, {.shape = {4, 2, head_dim, 64, DType::kBFloat16}, .sequences = ragged({30, 700})},
               "three, head_dim " + std::to_string(head_dim));
  }
}

// Nor on where its keys are cut: between nodes, between the leaves of a node, or not at all.
TEST(bits_do_not_depend_on_the_number_of_blocks) {
  Gpu gpu;
  AttentionSpec spec{.shape = {4, 2, 64, 16, DType::kBFloat16}, .sequences = ragged({2600, 70, 0, 1025, 300})};
  if (kernel(gpu, spec.shape) == nullptr) return;
  for (const int window : {0, 700}) {
    spec.window = window;
    AttentionCase batch(gpu, spec);
    gpu.gpu.num_multiprocessors = 1;
    const std::vector<std::byte> wanted = batch.run(*kernel(gpu, spec.shape));
    batch.check(wanted, true, "on one multiprocessor");
    for (const int count : {2, 5, 7, 11, 19, 30, 64, 132}) {
      gpu.gpu.num_multiprocessors = count;
      CHECK(batch.run(*kernel(gpu, spec.shape)) == wanted, count, " multiprocessors, window ", window);
    }
  }
}

TEST(offsets_beyond_two_billion_elements) {
  Gpu gpu;
  if (!is_real(gpu)) return;
  AttentionSpec spec{.shape = {16, 8, 128, 64, DType::kBFloat16}, .sequences = ragged({300, 70})};
  spec.unused_blocks_before = 40000;  // of 131072 elements
  check_case(gpu, spec, "far away");
}

}  // namespace
}  // namespace paged::test
