// SPDX-License-Identifier: Apache-2.0
// Weight matrices: the storage types they arrive in and the packed form the kernels read. A matrix is packed once at
// load for the device and its instruction set and never changes.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

namespace paged {

class ThreadPool;

// As found in safetensors (the first three) and GGUF files.
enum class WeightType : std::uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K
};

WeightType parse_weight_type(std::string_view name);  // "float32", ..., "q8_0", "q4_k", ...
std::string_view name_of(WeightType type);

// Raw rows of a checkpoint, usually a memory-mapped file. Borrowed: needed only while packing.
struct WeightSource {
  const void* data;
  std::int64_t num_bytes;  // checked against rows, cols and type
  std::int64_t rows;       // output features
  std::int64_t cols;       // input features
  WeightType type;
  const std::int32_t* row_order;  // [rows] row i of the matrix is row row_order[i] of the source; null: as they lie
};

class PackedMatrix;  // cpu/packed_matrix.h

struct PackedMatrixDeleter {
  void operator()(PackedMatrix* matrix) const;
};
using PackedMatrixPtr = std::unique_ptr<PackedMatrix, PackedMatrixDeleter>;

// Throws std::invalid_argument if num_bytes does not match, or cols is not a multiple of the type's group.
PackedMatrixPtr pack_matrix(const WeightSource& source, ThreadPool& threads);

std::int64_t num_rows(const PackedMatrix& matrix);
std::int64_t num_cols(const PackedMatrix& matrix);
std::int64_t num_bytes(const PackedMatrix& matrix);

}  // namespace paged
