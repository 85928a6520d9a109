// SPDX-License-Identifier: Apache-2.0
#include "cpu/gguf_quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "cpu/float16.h"
#include "cpu/gguf_blocks.h"

namespace paged::cpu {
namespace {

constexpr int kBlock = 32;

struct Weights {
  float values[kBlock];
};

template <typename T>
void read(const std::byte* from, Weights& to) {
  for (int i = 0; i < kBlock; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to.values[i] = to_float(value);
  }
}

void read(WeightType type, const std::byte* from, Weights& to) {
  if (type == WeightType::kFloat32)
    read<float>(from, to);
  else if (type == WeightType::kBFloat16)
    read<BFloat16>(from, to);
  else
    read<Float16>(from, to);
}

float largest_of(const Weights& weights) {
  float largest = 0.0f;
  for (const float value : weights.values) {
    PAGED_CHECK(std::abs(value) <= 65504.0f, "quantize: weights must be finite and at most 65504, got ", value);
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// value = scale * code + min as a block stores them, and how well it fits.
struct Line {
  Float16 scale;
  Float16 min;
  std::uint8_t codes[kBlock];
  float error;
};

Line round_to(const Weights& weights, float scale, float min) {
  Line line{from_float<Float16>(scale), from_float<Float16>(min), {}, 0.0f};
  const float a = to_float(line.scale), b = to_float(line.min), inverse = inverse_of(a);
  for (int i = 0; i < kBlock; ++i) {
    const float code = std::clamp(std::nearbyint((weights.values[i] - b) * inverse), 0.0f, 15.0f);
    line.codes[i] = static_cast<std::uint8_t>(code);
    const float difference = a * code + b - weights.values[i];
    line.error += difference * difference;
  }
  return line;
}

// The line of least squares through the codes, rounded to again.
Line refit(const Weights& weights, const Line& line) {
  float x = 0, y = 0, xx = 0, xy = 0;
  for (int i = 0; i < kBlock; ++i) {
    const auto code = static_cast<float>(line.codes[i]);
    x += code, y += weights.values[i], xx += code * code, xy += code * weights.values[i];
  }
  const float determinant = kBlock * xx - x * x;
  if (determinant <= 0.0f) return line;
  const float scale = (kBlock * xy - x * y) / determinant;
  return round_to(weights, scale, (y - scale * x) / kBlock);
}

void write_q4_1(const Weights& weights, std::byte* out) {
  const auto [low, high] = std::minmax_element(weights.values, weights.values + kBlock);
  Line best = round_to(weights, (*high - *low) / 15.0f, *low);
  for (const float steps : {15.0f, 16.5f, 18.0f}) {  // more than 15 cut the ends of the range off
    const float scale = (*high - *low) / steps;
    Line line = round_to(weights, scale, *low + (*high - *low - 15.0f * scale) / 2);
    for (int turn = 0; turn < 3; ++turn) {
      if (line.error < best.error) best = line;
      line = refit(weights, line);
    }
    if (line.error < best.error) best = line;
  }
  std::memcpy(out, &best.scale, 2);
  std::memcpy(out + 2, &best.min, 2);
  for (int i = 0; i < 16; ++i) out[4 + i] = static_cast<std::byte>(best.codes[i] | (best.codes[i + 16] << 4));
}

void write_q8_0(const Weights& weights, float largest, std::byte* out) {
  const Float16 scale = from_float<Float16>(largest / 127.0f);
  const float inverse = inverse_of(to_float(scale));
  std::memcpy(out, &scale, 2);
  for (int i = 0; i < kBlock; ++i)
    out[2 + i] = static_cast<std::byte>(
        static_cast<std::int8_t>(std::clamp(std::nearbyint(weights.values[i] * inverse), -127.0f, 127.0f)));
}

}  // namespace

void quantise_rows(const WeightSource& source, WeightType type, std::byte* out, std::int64_t num_bytes,
                   ThreadPool& threads) {
  const bool floats = source.type == WeightType::kFloat32 || source.type == WeightType::kBFloat16 ||
                      source.type == WeightType::kFloat16;
  PAGED_CHECK(floats, "quantize: expected float32, bfloat16 or float16 weights, got ", name_of(source.type));
  PAGED_CHECK(type == WeightType::kQ8_0 || type == WeightType::kQ4_1, "quantize: to q8_0 or q4_1, got ", name_of(type));
  const std::int64_t row_bytes = checked_row_bytes(source), element_bytes = row_bytes / source.cols;
  PAGED_CHECK(source.cols % kBlock == 0, "quantize: rows must have a multiple of ", kBlock, " columns, got ",
              source.cols);
  const std::int64_t blocks = source.cols / kBlock, block_bytes = block_size_of(type).num_bytes;
  PAGED_CHECK(num_bytes == source.rows * blocks * block_bytes, "quantize: out must have ",
              source.rows * blocks * block_bytes, " bytes, got ", num_bytes);
  threads.parallel_for(source.rows, [&](std::int64_t row, int) {
    const std::byte* from = static_cast<const std::byte*>(source.data) + row * row_bytes;
    std::byte* to = out + row * blocks * block_bytes;
    for (std::int64_t block = 0; block < blocks; ++block, to += block_bytes) {
      Weights weights;
      read(source.type, from + block * kBlock * element_bytes, weights);
      const float largest = largest_of(weights);
      type == WeightType::kQ8_0 ? write_q8_0(weights, largest, to) : write_q4_1(weights, to);
    }
  });
}

}  // namespace paged::cpu
