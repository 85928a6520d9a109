// SPDX-License-Identifier: Apache-2.0
// The part of DLPack's binary interface (version 1.x, https://dmlc.github.io/dlpack) that tensors cross the border by,
// declared here so that no tensor library is needed to build. Layouts are fixed by the standard: do not reorder.
#pragma once

#include <cstdint>

namespace paged::dlpack {

inline constexpr std::uint32_t kMajorVersion = 1;
inline constexpr std::uint32_t kMinorVersion = 3;
inline constexpr std::uint64_t kReadOnlyFlag = 1;
inline constexpr std::int32_t kCpuDevice = 1;

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;    // [ndim]
  std::int64_t* strides;  // [ndim] in elements; null: row-major and compact
  std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct ManagedTensor {
  Tensor tensor;
  void* owner;
  void (*deleter)(ManagedTensor* self);
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

// What a capsule named "dltensor_versioned" holds.
struct ManagedTensorVersioned {
  Version version;
  void* owner;
  void (*deleter)(ManagedTensorVersioned* self);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* previous;
};

// What the capsule type.__dlpack_c_exchange_api__ holds (named "dlpack_exchange_api"). Functions that we do not call
// are kept as opaque pointers. Each returns 0, or -1 with a Python error set.
struct ExchangeApi {
  ExchangeApiHeader header;
  void* allocate_tensor;
  void* managed_tensor_from_object;
  void* managed_tensor_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrows: valid while the object lives and keeps its storage
  void* current_stream;
};

}  // namespace paged::dlpack
