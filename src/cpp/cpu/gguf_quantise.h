// SPDX-License-Identifier: Apache-2.0
// Float weights as the blocks of a GGUF file: what `quantize=` does at load.
#pragma once

#include "cpu/thread_pool.h"
#include "ops/weights.h"

namespace paged::cpu {

// Writes the rows of `source` (float32, bfloat16 or float16, in the order they lie in) as blocks of `type` to out. Each
// block is a row's next 32 weights:
//   q8_0   the scale that puts the largest at 127
//   q4_1   scale and minimum of least squared error, found from several ranges by turns of rounding and regression
// Throws std::invalid_argument where the types or shapes are others; num_bytes is out's size.
void quantise_rows(const WeightSource& source, WeightType type, std::byte* out, std::int64_t num_bytes,
                   ThreadPool& threads);

}  // namespace paged::cpu
