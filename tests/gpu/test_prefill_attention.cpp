// SPDX-License-Identifier: Apache-2.0
// NVIDIA's prefill attention, Hopper's and the older one, against plain double-precision attention, and that a row's
// bits are its own.
#include "attention_batch.h"
#include "cuda/attention_paths.h"

namespace paged::test {
namespace {

bool on_hardware(const Gpu& gpu) { return gpu.gpu.compute_capability > 0; }

// None, and the test passes, where the chip is another.
std::vector<const gpu::FastAttention*> kernels_for(const Gpu& gpu, const AttentionShape& shape) {
  std::vector<const gpu::FastAttention*> kernels;
  for (const gpu::FastAttention* kernel : {gpu::prefill_attention_sm90(), gpu::mma_prefill_attention()})
    if (kernel != nullptr && kernel->takes(gpu.gpu, shape)) kernels.push_back(kernel);
  return kernels;
}

// Runs the batch of sequences 0, 1, ... and compares up to `rows_checked` random rows of each.
void check_batch_with(const gpu::FastAttention& kernel, Gpu& gpu, const AttentionCase& c,
                      const std::vector<Extend>& batch, int rows_checked) {
  std::vector<int> lengths, members;
  for (const Extend& extend : batch) {
    members.push_back(static_cast<int>(members.size()));
    lengths.push_back(extend.seq_len);
  }
  PagedSequences sequences(gpu, c, lengths);
  const std::vector<std::byte> out = sequences.run(kernel, batch, members);
  const std::size_t row_bytes =
      static_cast<std::size_t>(c.shape.num_heads) * static_cast<std::size_t>(c.shape.head_dim) * 2;
  Random random(3);
  std::size_t start = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const int queries = batch[i].query_len;
    for (int n = 0; n < std::min(queries, rows_checked); ++n) {
      const int row = queries <= rows_checked ? n : n == 0 ? 0 : n == 1 ? queries - 1 : random.below(queries);
      const std::span<const std::byte> bytes(out.data() + (start + static_cast<std::size_t>(row)) * row_bytes,
                                             row_bytes);
      if (batch[i].decode) {
        for (const std::byte byte : bytes) CHECK(byte == std::byte{0xff}, "a row of a decoding sequence was written");
        continue;
      }
      const std::string what = "head_dim " + std::to_string(c.shape.head_dim) + " block " +
                               std::to_string(c.shape.block_size) + " sequence " + std::to_string(i) + " of length " +
                               std::to_string(batch[i].seq_len) + " query " + std::to_string(row) + " of " +
                               std::to_string(queries);
      check_close(decode(bytes, c.shape.dtype),
                  sequences.expected(static_cast<int>(i), batch[i].seq_len - queries + row),
                  tolerance_of(c.shape.dtype), what.c_str());
    }
    start += static_cast<std::size_t>(queries);
  }
}

void check_batch(Gpu& gpu, const AttentionCase& c, const std::vector<Extend>& batch, int rows_checked = 24) {
  for (const gpu::FastAttention* kernel : kernels_for(gpu, c.shape))
    check_batch_with(*kernel, gpu, c, batch, rows_checked);
}

AttentionShape shape(int heads, int kv_heads, int head_dim, int block_size, DType dtype = DType::kBFloat16) {
  return {heads, kv_heads, head_dim, block_size, dtype};
}

TEST(prefill_small) {
  Gpu gpu;
  check_batch(gpu, {shape(4, 1, 64, 16)}, {{5, 5}, {1, 9}});
  check_batch(gpu, {shape(2, 2, 64, 32, DType::kFloat16)}, {{1, 30, true}, {3, 140}});
  check_batch(gpu, {.shape = shape(3, 1, 96, 8), .window = 20, .softcap = 15.0f, .sinks = true}, {{4, 150}, {2, 2}});
  check_batch(gpu, {shape(8, 1, 128, 256)}, {{20, 129}});
}

TEST(prefill_matrix) {
  Gpu gpu;
  if (!on_hardware(gpu)) return;
  const std::vector<Extend> batch = {{1, 1},     {2, 2},      {1, 700, true}, {63, 63},    {64, 64},
                                     {65, 129},  {128, 128},  {129, 300},     {300, 300},  {1, 1025},
                                     {17, 2000}, {200, 1024}, {31, 64},       {1, 1, true}};
  const auto check = [&](const AttentionShape& s) {
    check_batch(gpu, {s}, batch, 6);
    check_batch(gpu, {.shape = s, .window = 100, .softcap = 20.0f, .sinks = true}, batch, 6);
    check_batch(gpu, {.shape = s, .window = 1}, batch, 3);
  };
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int block_size : {8, 16, 32, 64, 128, 256}) check(shape(8, 2, head_dim, block_size));
    check(shape(3, 3, head_dim, 64));
    check(shape(16, 2, head_dim, 64));
    check(shape(8, 2, head_dim, 16, DType::kFloat16));
  }
}

TEST(prefill_odd_groups) {
  Gpu gpu;
  if (!on_hardware(gpu)) return;
  for (const int group : {2, 3, 5, 7, 16, 48, 128}) {
    check_batch(gpu, {shape(group, 1, 128, 64)}, {{100, 100}, {3, 513}, {70, 400}}, 8);
    check_batch(gpu, {.shape = shape(group, 1, 64, 16), .window = 128, .sinks = true}, {{100, 100}, {3, 513}}, 8);
  }
}

TEST(prefill_long) {
  Gpu gpu;
  if (!on_hardware(gpu)) return;
  check_batch(gpu, {shape(4, 1, 128, 64)}, {{3000, 9000}, {1000, 20000}}, 12);
  check_batch(gpu, {.shape = shape(4, 1, 128, 16), .window = 4096}, {{300, 9000}, {8192, 8192}}, 12);
}

// Element offsets in the cache beyond 2^31.
TEST(prefill_far_blocks) {
  Gpu gpu;
  if (!on_hardware(gpu)) return;
  check_batch(gpu, {.shape = shape(32, 8, 128, 64), .spare_blocks = 20000}, {{500, 2500}}, 12);
}

// The rows of one sequence, computed at once and in pieces, alone and in company, to the bit.
void check_invariance_with(const gpu::FastAttention& kernel, Gpu& gpu, const AttentionCase& c, int length,
                           const std::vector<int>& cuts) {
  PagedSequences sequences(gpu, c, {length, 77, 301});
  const std::vector<std::byte> whole = sequences.run(kernel, {{length, length}}, {0});
  const std::size_t row_bytes = whole.size() / static_cast<std::size_t>(length);
  int done = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const int end = i < cuts.size() ? cuts[i] : length;
    // In company: others before it move its rows inside the tiles and the batch.
    const std::vector<std::byte> part =
        sequences.run(kernel, {{static_cast<int>(i) % 77 + 1, 77}, {1, 301, true}, {end - done, end}}, {1, 2, 0});
    const std::size_t skip = static_cast<std::size_t>(static_cast<int>(i) % 77 + 2) * row_bytes;
    CHECK(std::memcmp(part.data() + skip, whole.data() + static_cast<std::size_t>(done) * row_bytes,
                      static_cast<std::size_t>(end - done) * row_bytes) == 0,
          "head_dim ", c.shape.head_dim, " rows ", done, " to ", end);
    done = end;
  }
}

void check_invariance(Gpu& gpu, const AttentionCase& c, int length, const std::vector<int>& cuts) {
  for (const gpu::FastAttention* kernel : kernels_for(gpu, c.shape))
    check_invariance_with(*kernel, gpu, c, length, cuts);
}

TEST(prefill_invariance) {
  Gpu gpu;
  check_invariance(gpu, {shape(4, 1, 64, 16)}, 40, {1, 20});
  if (!on_hardware(gpu)) return;
  for (const int head_dim : {64, 96, 128, 256})
    for (const int group : {1, 3, 4}) {
      const AttentionShape s = shape(group * 2, 2, head_dim, 32);
      check_invariance(gpu, {s}, 1000, {1, 2, 130, 131, 200, 512, 700, 999});
      check_invariance(gpu, {.shape = s, .window = 90, .softcap = 30.0f, .sinks = true}, 1000, {5, 130, 333, 600});
    }
}

// More than one chunk of keys: what one block goes through in turn, and what is shared out when few queries are left.
TEST(prefill_chunks) {
  Gpu gpu;
  check_batch(gpu, {shape(1, 1, 64, 64)}, {{1, 4100}, {2, 60}});
  if (!on_hardware(gpu)) return;
  check_batch(gpu, {shape(8, 2, 128, 64)}, {{100, 20000}, {3, 9000}, {40, 40}}, 10);
  check_batch(gpu, {shape(8, 2, 128, 64)}, {{2000, 10000}, {3, 9000}, {40, 40}}, 10);
  check_batch(gpu, {.shape = shape(8, 2, 64, 16), .window = 5000, .sinks = true}, {{30, 20000}, {10, 8200}}, 10);
  check_batch(gpu, {shape(4, 1, 256, 32)}, {{30, 9000}}, 10);
  for (const int head_dim : {64, 96, 128, 256}) {
    check_invariance(gpu, {shape(8, 2, head_dim, 32)}, 8400, {4000, 4095, 4097, 8190, 8193, 8300, 8399});
    check_invariance(gpu, {.shape = shape(8, 2, head_dim, 32), .window = 4200, .softcap = 30.0f}, 8400,
                     {4200, 8190, 8300});
  }
}

}  // namespace
}  // namespace paged::test
