// SPDX-License-Identifier: Apache-2.0
// Rotary embedding against the CPU's, the cache's contents element by element, copies of blocks.
#include <numeric>
#include <string>

#include "matrix_pair.h"

namespace paged {
namespace {

using namespace test;

constexpr std::int32_t kPositions = 300;

struct RopeCase {
  std::int32_t heads, head_dim, rotary_dim;
  bool interleaved;
  std::int64_t padding = 0, offset = 0;
};
const RopeCase kRopes[] = {
    {3, 64, 64, false}, {2, 96, 96, false},     {2, 128, 128, false, 256},  {1, 256, 256, false},  {1, 512, 512, false},
    {2, 80, 32, false}, {2, 128, 64, false, 8}, {2, 64, 64, true},          {3, 128, 32, true},    {2, 10, 10, false},
    {3, 10, 6, true},   {2, 7, 4, false},       {2, 128, 128, false, 3, 1}, {2, 128, 64, true, 1}, {5, 66, 66, false},
};

// [kPositions, rotary_dim]: cosines, then sines. (Also of angles that no model has: the op does not care.)
std::vector<float> rope_table(Random& random, std::int32_t rotary_dim) {
  std::vector<float> table;
  const std::vector<float> angles = random.floats(std::int64_t{kPositions} * rotary_dim / 2, DType::kFloat32, 2.0f);
  for (std::size_t row = 0; row < kPositions; ++row) {
    const std::span<const float> of_row =
        std::span(angles).subspan(row * angles.size() / kPositions, static_cast<std::size_t>(rotary_dim) / 2);
    for (const float angle : of_row) table.push_back(std::cos(angle));
    for (const float angle : of_row) table.push_back(std::sin(angle));
  }
  return table;
}

std::vector<std::int32_t> random_positions(Random& random, std::int64_t tokens) {
  std::vector<std::int32_t> positions;
  for (std::int64_t i = 0; i < tokens; ++i) positions.push_back(random.below(kPositions));
  return positions;
}

TEST(rope_is_the_cpus) {
  Gpu gpu;
  Random random;
  for (const DType dtype : kDTypes) {
    for (const RopeCase& rope : kRopes) {
      const Layout layout{5, std::int64_t{rope.heads} * rope.head_dim, rope.padding, rope.offset};
      MatrixPair x(gpu, random, layout, dtype), out(gpu, random, {5, layout.cols}, dtype);
      const std::vector<float> table = rope_table(random, rope.rotary_dim);
      const std::vector<std::int32_t> positions = random_positions(random, layout.rows);
      const OnDevice device_table(gpu, table), device_positions(gpu, positions);
      for (MatrixPair* to : {&out, &x}) {
        RopeParams params{x.host(),      positions.data(), table.data(),     kPositions,
                          rope.head_dim, rope.rotary_dim,  rope.interleaved, to->host()};
        ops::rope(gpu.cpu(), params);
        params.x = x.device();
        params.out = to->device();
        params.positions = device_positions.as<std::int32_t>();
        params.table = device_table.as<float>();
        ops::rope(gpu.context(), params);
        to->check(tolerance_of(dtype), ("rope of head_dim " + std::to_string(rope.head_dim)).c_str());
      }
    }
  }
}

// A cache on the device, all NaN, and what it should hold.
class Cache {
 public:
  Cache(Gpu& gpu, std::int32_t num_blocks, std::int32_t block_size, std::int32_t heads, std::int32_t head_dim,
        DType dtype)
      : view_{nullptr, num_blocks, block_size, heads, head_dim, dtype},
        data_(OnDevice::poisoned(gpu, num_blocks * view_.block_bytes())),
        expected_(data_.bytes()) {
    view_.data = data_.data();
  }
  const KvCacheView& view() const { return view_; }
  std::vector<std::byte> bytes() const { return data_.bytes(); }

  // Heads of one token, as floats, belong into the slot.
  void expect(std::int32_t slot, int is_value, std::span<const float> heads) {
    const std::vector<std::byte> stored = encode(heads, view_.dtype);
    const std::int64_t head_bytes = view_.head_dim * size_of(view_.dtype);
    for (std::int64_t head = 0; head < view_.num_kv_heads; ++head) {
      const std::int64_t piece = (std::int64_t{slot / view_.block_size} * 2 + is_value) * view_.num_kv_heads + head;
      const std::int64_t at = (piece * view_.block_size + slot % view_.block_size) * head_bytes;
      std::copy_n(stored.begin() + head * head_bytes, head_bytes, expected_.begin() + at);
    }
  }
  void check(const std::string& what) const { CHECK(data_.bytes() == expected_, what); }

 private:
  KvCacheView view_;
  OnDevice data_;
  std::vector<std::byte> expected_;
};

// Slots of `tokens` different tokens; every fourth stores nothing.
std::vector<std::int32_t> random_slots(Random& random, std::int32_t num_slots, std::size_t tokens) {
  std::vector<std::int32_t> slots(static_cast<std::size_t>(num_slots));
  std::iota(slots.begin(), slots.end(), 0);
  for (std::size_t i = slots.size(); i-- > 1;)
    std::swap(slots[i], slots[static_cast<std::size_t>(random.below(static_cast<int>(i + 1)))]);
  slots.resize(tokens);
  for (std::size_t i = 3; i < tokens; i += 4) slots[i] = -1;
  return slots;
}

// Row `row` of the view whose bytes these are, as floats.
std::vector<float> row_of(const std::vector<float>& elements, const Layout& layout, std::size_t row) {
  const auto begin = elements.begin() + layout.offset + static_cast<std::ptrdiff_t>(row) * layout.stride();
  return {begin, begin + layout.cols};
}

void check_store(Gpu& gpu, Random& random, std::int32_t block_size, std::int32_t heads, std::int32_t head_dim,
                 DType dtype, DType cache_dtype, std::int64_t padding) {
  const std::int32_t num_blocks = 3 + 24 / block_size;
  const Layout layout{13, std::int64_t{heads} * head_dim, padding};
  const MatrixPair k(gpu, random, layout, dtype), v(gpu, random, layout, dtype);
  Cache cache(gpu, num_blocks, block_size, heads, head_dim, cache_dtype);
  const std::vector<std::int32_t> slots = random_slots(random, num_blocks * block_size, 13);
  const OnDevice device_slots(gpu, slots);
  ops::store_kv(gpu.context(), {k.device(), v.device(), device_slots.as<std::int32_t>(), cache.view()});
  const std::vector<float> keys = decode(k.bytes(), dtype), values = decode(v.bytes(), dtype);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < 0) continue;
    cache.expect(slots[i], 0, row_of(keys, layout, i));
    cache.expect(slots[i], 1, row_of(values, layout, i));
  }
  cache.check("store_kv, block_size " + std::to_string(block_size) + ", head_dim " + std::to_string(head_dim));
}

TEST(store_kv_puts_every_element_where_it_belongs) {
  Gpu gpu;
  Random random;
  for (const std::int32_t block_size : {1, 2, 16, 64, 256})
    check_store(gpu, random, block_size, 2, 64, DType::kBFloat16, DType::kBFloat16, 0);
  for (const std::int32_t head_dim : {2, 10, 80, 96, 128, 256, 512})
    check_store(gpu, random, 16, 3, head_dim, DType::kFloat16, DType::kFloat16, 8);
  for (const DType dtype : kDTypes)
    for (const DType cache_dtype : kDTypes)
      for (const std::int64_t padding : {0, 3}) check_store(gpu, random, 8, 2, 64, dtype, cache_dtype, padding);
}

struct FusedCase {
  RopeCase q;
  std::int32_t kv_heads;
  std::int32_t block_size;
};

void check_rope_store(Gpu& gpu, Random& random, const FusedCase& fused, DType dtype, DType cache_dtype) {
  constexpr std::int64_t kTokens = 9;
  const RopeCase& rope = fused.q;
  const Layout q_layout{kTokens, std::int64_t{rope.heads} * rope.head_dim, rope.padding, rope.offset};
  const Layout k_layout{kTokens, std::int64_t{fused.kv_heads} * rope.head_dim, rope.padding};
  const MatrixPair q(gpu, random, q_layout, dtype), k(gpu, random, k_layout, dtype), v(gpu, random, k_layout, dtype);
  const MatrixPair q_apart(gpu, random, {kTokens, q_layout.cols}, dtype),
      k_apart(gpu, random, {kTokens, k_layout.cols}, dtype), q_fused(gpu, random, {kTokens, q_layout.cols}, dtype);
  const std::int32_t num_blocks = 2 + 24 / fused.block_size;
  Cache apart(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, cache_dtype);
  Cache together(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, cache_dtype);
  const OnDevice slots(gpu, random_slots(random, num_blocks * fused.block_size, kTokens));
  const OnDevice positions(gpu, random_positions(random, kTokens)), table(gpu, rope_table(random, rope.rotary_dim));

  RopeParams of_q{q.device(),        positions.as<std::int32_t>(),
                  table.as<float>(), kPositions,
                  rope.head_dim,     rope.rotary_dim,
                  rope.interleaved,  q_apart.device()};
  RopeParams of_k = of_q;
  of_k.x = k.device();
  of_k.out = k_apart.device();
  ops::rope(gpu.context(), of_q);
  ops::rope(gpu.context(), of_k);
  ops::store_kv(gpu.context(), {of_k.out, v.device(), slots.as<std::int32_t>(), apart.view()});

  of_q.out = q_fused.device();
  of_k.out = {};
  ops::rope_store_kv(gpu.context(),
                     {of_q, of_k, v.device(), slots.as<std::int32_t>(), together.view(), nullptr, nullptr, 0.0f});
  CHECK(q_fused.bytes() == q_apart.bytes(), "q of head_dim ", rope.head_dim);
  CHECK(together.bytes() == apart.bytes(), "the cache, head_dim ", rope.head_dim);

  of_q.out = of_q.x;  // in place
  ops::rope_store_kv(gpu.context(),
                     {of_q, of_k, v.device(), slots.as<std::int32_t>(), together.view(), nullptr, nullptr, 0.0f});
  const std::vector<float> rotated = decode(q.bytes(), dtype), wanted = decode(q_apart.bytes(), dtype);
  for (std::size_t row = 0; row < kTokens; ++row)
    CHECK(row_of(rotated, q_layout, row) == row_of(wanted, {kTokens, q_layout.cols}, row), "q in place, row ", row);
}

// With norms, against rms_norm of the heads followed by the op without: equal but for the order of a sum.
void check_normed(Gpu& gpu, Random& random, const FusedCase& fused, DType dtype) {
  constexpr std::int64_t kTokens = 9;
  const RopeCase& rope = fused.q;
  const std::int64_t q_cols = std::int64_t{rope.heads} * rope.head_dim;
  const std::int64_t kv_cols = std::int64_t{fused.kv_heads} * rope.head_dim;
  const Layout kv_layout{kTokens, kv_cols, rope.padding};
  const MatrixPair q(gpu, random, {kTokens, q_cols, rope.padding, rope.offset}, dtype),
      v(gpu, random, kv_layout, dtype), q_normed(gpu, random, {kTokens, q_cols}, dtype),
      k_normed(gpu, random, {kTokens, kv_cols}, dtype), q_apart(gpu, random, {kTokens, q_cols}, dtype),
      q_fused(gpu, random, {kTokens, q_cols}, dtype);
  const MatrixPair k(gpu, random, kv_layout, dtype);
  const std::int32_t num_blocks = 2 + 24 / fused.block_size;
  Cache apart(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, dtype);
  Cache together(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, dtype);
  const OnDevice slots(gpu, random_slots(random, num_blocks * fused.block_size, kTokens));
  const OnDevice positions(gpu, random_positions(random, kTokens)), table(gpu, rope_table(random, rope.rotary_dim));
  const OnDevice q_norm(gpu, random.floats(rope.head_dim)), k_norm(gpu, random.floats(rope.head_dim));
  constexpr float kEps = 1e-5f;

  ops::rms_norm(gpu.context(), {q.device(), q_norm.as<float>(), rope.head_dim, kEps, q_normed.device()});
  ops::rms_norm(gpu.context(), {k.device(), k_norm.as<float>(), rope.head_dim, kEps, k_normed.device()});
  RopeParams of_q{q_normed.device(), positions.as<std::int32_t>(),
                  table.as<float>(), kPositions,
                  rope.head_dim,     rope.rotary_dim,
                  rope.interleaved,  q_apart.device()};
  RopeParams of_k = of_q;
  of_k.x = k_normed.device();
  of_k.out = {};
  ops::rope_store_kv(gpu.context(),
                     {of_q, of_k, v.device(), slots.as<std::int32_t>(), apart.view(), nullptr, nullptr, 0.0f});
  of_q.x = q.device();
  of_q.out = q_fused.device();
  of_k.x = k.device();
  ops::rope_store_kv(gpu.context(), {of_q, of_k, v.device(), slots.as<std::int32_t>(), together.view(),
                                     q_norm.as<float>(), k_norm.as<float>(), kEps});
  check_close(decode(q_fused.bytes(), dtype), decode(q_apart.bytes(), dtype), tolerance_of(dtype), "q");
  const std::vector<float> stored = decode(together.bytes(), dtype), wanted = decode(apart.bytes(), dtype);
  for (std::size_t i = 0; i < stored.size(); ++i)  // what nobody wrote is NaN in both
    CHECK(std::isnan(wanted[i]) ? std::isnan(stored[i])
                                : std::abs(stored[i] - wanted[i]) <= tolerance_of(dtype) * (1 + std::abs(wanted[i])),
          "element ", i, " of the cache is ", stored[i], ", expected ", wanted[i]);
}

TEST(heads_are_normalised_on_the_way_to_the_cache) {
  Gpu gpu;
  Random random;
  const FusedCase cases[] = {
      {{16, 128, 128, false}, 8, 64},  {{4, 64, 64, false}, 2, 16}, {{5, 256, 256, false}, 1, 32},
      {{3, 96, 96, false, 96}, 1, 32}, {{6, 80, 32, true}, 3, 256}, {{2, 32, 32, false, 8, 8}, 2, 16},
  };
  for (const DType dtype : kDTypes)
    for (const FusedCase& fused : cases) check_normed(gpu, random, fused, dtype);
}

TEST(rope_store_kv_is_rope_and_then_store_kv) {
  Gpu gpu;
  Random random;
  const FusedCase cases[] = {
      {{32, 128, 128, false}, 8, 64},    {{4, 64, 64, false}, 2, 16}, {{3, 96, 96, false, 96}, 1, 32},
      {{2, 256, 64, false}, 2, 1},       {{6, 80, 32, true}, 3, 256}, {{3, 10, 6, false}, 2, 4},
      {{2, 64, 64, false, 5, 1}, 2, 16},
  };
  for (const DType dtype : kDTypes)
    for (const DType cache_dtype : kDTypes)
      for (const FusedCase& fused : cases)
        if (dtype == cache_dtype || fused.kv_heads == 2) check_rope_store(gpu, random, fused, dtype, cache_dtype);
}

// q against the CPU's op; the cache against the ops one by one, bit for bit: a head's sum has the same order in both.
void check_norm_rope_store(Gpu& gpu, Random& random, const FusedCase& fused, DType dtype, DType cache_dtype) {
  constexpr std::int64_t kTokens = 9;
  const RopeCase& rope = fused.q;
  const Layout q_layout{kTokens, std::int64_t{rope.heads} * rope.head_dim, rope.padding, rope.offset};
  const Layout k_layout{kTokens, std::int64_t{fused.kv_heads} * rope.head_dim, rope.padding};
  MatrixPair q(gpu, random, q_layout, dtype, 5.0f), k(gpu, random, k_layout, dtype), v(gpu, random, k_layout, dtype);
  MatrixPair q_out(gpu, random, {kTokens, q_layout.cols}, dtype);
  const MatrixPair k_apart(gpu, random, {kTokens, k_layout.cols}, dtype);
  const std::int32_t num_blocks = 2 + 24 / fused.block_size;
  Cache apart(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, cache_dtype);
  Cache together(gpu, num_blocks, fused.block_size, fused.kv_heads, rope.head_dim, cache_dtype);
  const std::vector<std::int32_t> slots = random_slots(random, num_blocks * fused.block_size, kTokens);
  const std::vector<std::int32_t> positions = random_positions(random, kTokens);
  const std::vector<float> table = rope_table(random, rope.rotary_dim), q_norm = random.floats(rope.head_dim),
                           k_norm = random.floats(rope.head_dim);
  const OnDevice device_slots(gpu, slots), device_positions(gpu, positions), device_table(gpu, table),
      device_q_norm(gpu, q_norm), device_k_norm(gpu, k_norm);

  const RopeParams of_q{q.device(),
                        device_positions.as<std::int32_t>(),
                        device_table.as<float>(),
                        kPositions,
                        rope.head_dim,
                        rope.rotary_dim,
                        rope.interleaved,
                        q_out.device()};
  RopeParams of_k = of_q;
  of_k.x = of_k.out = k_apart.device();
  const auto* on_device = device_slots.as<std::int32_t>();
  ops::rms_norm(gpu.context(), {k.device(), device_k_norm.as<float>(), rope.head_dim, 1e-6f, k_apart.device()});
  ops::rope(gpu.context(), of_k);
  ops::store_kv(gpu.context(), {k_apart.device(), v.device(), on_device, apart.view()});

  of_k.x = k.device();
  ops::rope_store_kv(gpu.context(), {of_q, of_k, v.device(), on_device, together.view(), device_q_norm.as<float>(),
                                     device_k_norm.as<float>(), 1e-6f});
  CHECK(together.bytes() == apart.bytes(), "the cache, head_dim ", rope.head_dim);

  std::vector<std::byte> cpu_cache(together.bytes().size());
  KvCacheView cpu_view = together.view();
  cpu_view.data = cpu_cache.data();
  const RopeParams cpu_q{q.host(),      positions.data(), table.data(),     kPositions,
                         rope.head_dim, rope.rotary_dim,  rope.interleaved, q_out.host()};
  RopeParams cpu_k = cpu_q;
  cpu_k.x = k.host();
  ops::rope_store_kv(gpu.cpu(), {cpu_q, cpu_k, v.host(), slots.data(), cpu_view, q_norm.data(), k_norm.data(), 1e-6f});
  q_out.check(tolerance_of(dtype), "q normalised and rotated");
}

TEST(rope_store_kv_with_norms_is_the_ops_one_by_one) {
  Gpu gpu;
  Random random;
  const FusedCase cases[] = {
      {{16, 128, 128, false}, 8, 64},      {{4, 64, 64, false}, 2, 16}, {{3, 128, 128, false, 128}, 1, 32},
      {{2, 96, 96, false}, 2, 16},         {{3, 128, 64, false}, 2, 8}, {{2, 64, 64, true}, 2, 4},
      {{2, 128, 128, false, 5, 1}, 2, 16}, {{5, 32, 32, false}, 3, 1},  {{3, 16, 16, false}, 1, 256},
  };
  for (const DType dtype : kDTypes)
    for (const DType cache_dtype : kDTypes)
      for (const FusedCase& fused : cases)
        if (dtype == cache_dtype || fused.kv_heads == 2) check_norm_rope_store(gpu, random, fused, dtype, cache_dtype);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16})
    check_norm_rope_store(gpu, random, {{2, 256, 256, false}, 2, 16}, dtype, dtype);
}

void check_copies(Gpu& gpu, Random& random, const KvCacheView& shape, std::vector<std::int32_t> source,
                  std::vector<std::int32_t> destination) {
  const std::int64_t num_bytes = shape.num_blocks * shape.block_bytes();
  std::vector<std::byte> expected = encode(random.floats(num_bytes / size_of(shape.dtype), shape.dtype), shape.dtype);
  const OnDevice data(gpu, expected), device_source(gpu, source), device_destination(gpu, destination);
  KvCacheView view = shape;
  view.data = data.data();
  ops::copy_blocks(gpu.context(), {view, device_source.as<std::int32_t>(), device_destination.as<std::int32_t>(),
                                   static_cast<std::int32_t>(source.size())});
  for (std::size_t i = 0; i < source.size(); ++i)
    std::copy_n(expected.begin() + source[i] * shape.block_bytes(), shape.block_bytes(),
                expected.begin() + destination[i] * shape.block_bytes());
  CHECK(data.bytes() == expected, "blocks of ", shape.block_bytes(), " bytes");
}

TEST(copy_blocks_copies_blocks) {
  Gpu gpu;
  Random random;
  check_copies(gpu, random, {nullptr, 9, 16, 2, 64, DType::kBFloat16}, {3, 3, 0, 8}, {1, 2, 7, 4});
  check_copies(gpu, random, {nullptr, 4, 64, 5, 72, DType::kFloat32}, {2}, {0});
  check_copies(gpu, random, {nullptr, 5, 1, 1, 2, DType::kFloat16}, {0, 4}, {2, 3});
  check_copies(gpu, random, {nullptr, 5, 1, 1, 2, DType::kFloat16}, {}, {});
}

// Slots and blocks whose elements lie beyond what 32 bits count.
TEST(a_cache_may_be_large) {
  Gpu gpu;
  if (gpu.gpu.compute_capability == 0) return;  // not on the emulator
  constexpr std::int32_t kBlocks = 40000;       // of 128 KB
  KvCacheView cache{nullptr, kBlocks, 64, 4, 128, DType::kBFloat16};
  const gpu::DeviceBuffer data(kBlocks * cache.block_bytes());
  cache.data = data.data();
  Random random;
  const MatrixPair k(gpu, random, {1, 512}, DType::kBFloat16), v(gpu, random, {1, 512}, DType::kBFloat16);
  const OnDevice slot(gpu, std::vector<std::int32_t>{(kBlocks - 1) * 64 + 63});
  ops::store_kv(gpu.context(), {k.device(), v.device(), slot.as<std::int32_t>(), cache});
  const OnDevice source(gpu, std::vector<std::int32_t>{kBlocks - 1}),
      destination(gpu, std::vector<std::int32_t>{kBlocks - 2});
  ops::copy_blocks(gpu.context(), {cache, source.as<std::int32_t>(), destination.as<std::int32_t>(), 1});
  std::vector<std::byte> block(static_cast<std::size_t>(cache.block_bytes()));
  gpu::copy_to_host(block.data(), data.data() + (kBlocks - 2) * cache.block_bytes(), cache.block_bytes(),
                    gpu.gpu.stream);
  gpu::synchronize(gpu.gpu.stream);
  const std::vector<std::byte> values = v.bytes();
  for (std::ptrdiff_t head = 0; head < 4; ++head)
    CHECK(std::equal(values.begin() + head * 256, values.begin() + (head + 1) * 256,
                     block.begin() + ((4 + head) * 64 + 63) * 256),
          "head ", head);
}

}  // namespace
}  // namespace paged
