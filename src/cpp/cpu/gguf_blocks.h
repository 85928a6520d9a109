// SPDX-License-Identifier: Apache-2.0
// Decodes one block of a GGUF quantised row into its codes and scales. The block formats are those of ggml (the GGUF
// file format); the values they stand for are those of the gguf package's dequantize.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/weights.h"

namespace paged::cpu {

struct GgufBlock {
  std::uint8_t codes[256];  // that stand for what they are, less the packed format's zero
  std::uint16_t d;          // float16 bits
  std::uint16_t min;
  std::int8_t scales[16];
  std::int8_t mins[16];
};

struct GgufBlockSize {
  int num_weights;
  int num_bytes;
};

// {1, element size} for the float types.
GgufBlockSize block_size_of(WeightType type);

void read_block(WeightType type, const std::byte* source, GgufBlock& block);

// A whole row of a quantised type as float32, exactly.
void read_row(WeightType type, const std::byte* row, std::int64_t cols, float* out);

// Bytes of a row of the source. Throws std::invalid_argument if the source contradicts itself.
std::int64_t checked_row_bytes(const WeightSource& source);

}  // namespace paged::cpu
