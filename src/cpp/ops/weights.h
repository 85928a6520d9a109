// SPDX-License-Identifier: Apache-2.0
// Weight matrices: the storage types they arrive in and the packed form the kernels read. A matrix is packed once at
// load for the device and its instruction set and never changes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

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
  bool is_file = false;           // a read-only mapping of a file: what has been packed need not stay in memory
};

// A weight [rows, cols] in the form the kernels of one device read: cpu::PackedMatrix or gpu::DeviceMatrix.
class WeightMatrix {
 public:
  WeightMatrix(std::int64_t num_rows, std::int64_t num_cols) : rows(num_rows), cols(num_cols) {}
  virtual ~WeightMatrix() = default;
  WeightMatrix(const WeightMatrix&) = delete;
  WeightMatrix& operator=(const WeightMatrix&) = delete;

  virtual std::int64_t num_bytes() const = 0;

  const std::int64_t rows;
  const std::int64_t cols;
};
using WeightMatrixPtr = std::unique_ptr<WeightMatrix>;

// For the CPU. Throws std::invalid_argument if num_bytes does not match, or cols is not a multiple of the type's group.
WeightMatrixPtr pack_matrix(const WeightSource& source, ThreadPool& threads);

// All of them at once, one beside the other in memory that they share, in the order of the sources.
std::vector<WeightMatrixPtr> pack_matrices(std::span<const WeightSource> sources, ThreadPool& threads);

}  // namespace paged
