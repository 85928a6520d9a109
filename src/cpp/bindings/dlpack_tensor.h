// SPDX-License-Identifier: Apache-2.0
// The only place that meets a tensor of torch, numpy or anybody else. A DlpackTensor reads one through DLPack: by the
// type's C exchange API where it has one (no Python call), else by __dlpack__. It keeps the object alive, copies
// nothing, and needs the GIL to be made and destroyed. What cannot be used as it lies raises ValueError saying so.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"
#include "bindings/dlpack_abi.h"
#include "ops/ops.h"

namespace paged::bindings {

enum class Access { kRead, kWrite };

class DlpackTensor {
 public:
  // `name` says in errors which argument it was. CPU tensors only; kWrite refuses read-only ones.
  DlpackTensor(pybind11::handle object, std::string name, Access access = Access::kRead);

  void* data() const { return static_cast<std::byte*>(tensor_.data) + tensor_.byte_offset; }
  int ndim() const { return tensor_.ndim; }
  std::int64_t shape(int axis) const { return tensor_.shape[axis]; }
  std::int64_t stride(int axis) const;  // in elements
  std::int64_t num_elements() const;
  std::int64_t num_bytes() const { return num_elements() * tensor_.dtype.bits / 8; }

  // float32, bfloat16 or float16; cache_dtype also int8.
  DType dtype() const;
  DType cache_dtype() const;

  // [rows, cols] with unit column stride; a vector is one row.
  MatrixView matrix() const;

  // Contiguous elements of exactly this type, in any shape.
  const std::int32_t* int32s() const { return static_cast<const std::int32_t*>(elements(dlpack::kInt, 32, "int32")); }
  std::int32_t* writable_int32s() const { return static_cast<std::int32_t*>(elements(dlpack::kInt, 32, "int32")); }
  const std::int64_t* int64s() const { return static_cast<const std::int64_t*>(elements(dlpack::kInt, 64, "int64")); }
  const float* floats() const { return static_cast<const float*>(elements(dlpack::kFloat, 32, "float32")); }

  // Contiguous memory, whatever the elements.
  void* bytes() const;

 private:
  struct Release {
    void operator()(dlpack::ManagedTensor* managed) const;
    void operator()(dlpack::ManagedTensorVersioned* managed) const;
  };

  void read_capsule();
  void* elements(dlpack::TypeCode code, int bits, const char* type) const;
  std::string dtype_name() const;

  pybind11::object object_;
  std::string name_;
  dlpack::Tensor tensor_{};
  std::unique_ptr<dlpack::ManagedTensor, Release> managed_;  // one of these where __dlpack__ was used
  std::unique_ptr<dlpack::ManagedTensorVersioned, Release> managed_versioned_;
  bool read_only_ = false;
};

namespace detail {

inline constexpr const char* kApiAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kApiCapsule = "dlpack_exchange_api";

// Null where the object's type offers none, or one of another major version.
inline const dlpack::ExchangeApi* exchange_api_of(pybind11::handle object) {
  const pybind11::object capsule =
      pybind11::getattr(pybind11::type::handle_of(object), kApiAttribute, pybind11::none());
  if (!PyCapsule_IsValid(capsule.ptr(), kApiCapsule)) return nullptr;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kApiCapsule));
  return api->header.version.major == dlpack::kMajorVersion ? api : nullptr;
}

inline pybind11::object call_dlpack(pybind11::handle object) {
  const pybind11::object method = object.attr("__dlpack__");
  try {
    return method(pybind11::arg("max_version") = pybind11::make_tuple(dlpack::kMajorVersion, dlpack::kMinorVersion));
  } catch (pybind11::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // else a producer older than max_version
  }
  return method();
}

// Takes the tensor out of its capsule, which must not free it any more.
template <typename Managed>
Managed* take(pybind11::handle capsule, const char* name, const char* used_name) {
  if (!PyCapsule_IsValid(capsule.ptr(), name)) return nullptr;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), name));
  PyCapsule_SetName(capsule.ptr(), used_name);
  return managed;
}

}  // namespace detail

inline void DlpackTensor::Release::operator()(dlpack::ManagedTensor* managed) const {
  if (managed->deleter != nullptr) managed->deleter(managed);
}

inline void DlpackTensor::Release::operator()(dlpack::ManagedTensorVersioned* managed) const {
  if (managed->deleter != nullptr) managed->deleter(managed);
}

inline DlpackTensor::DlpackTensor(pybind11::handle object, std::string name, Access access)
    : object_(pybind11::reinterpret_borrow<pybind11::object>(object)), name_(std::move(name)) {
  if (const dlpack::ExchangeApi* api = detail::exchange_api_of(object)) {
    if (api->tensor_from_object(object.ptr(), &tensor_) != 0) throw pybind11::error_already_set();
  } else {
    read_capsule();
  }
  PAGED_CHECK(tensor_.device.type == dlpack::kCpuDevice, name_, " must be a CPU tensor, got one on DLPack device type ",
              tensor_.device.type, "; move it with .cpu()");
  PAGED_CHECK(tensor_.dtype.lanes == 1, name_, " has vector elements of ", tensor_.dtype.lanes, " lanes");
  PAGED_CHECK(access == Access::kRead || !read_only_, name_, " is written to but read-only; pass a writable copy");
}

inline void DlpackTensor::read_capsule() {
  PAGED_CHECK(pybind11::hasattr(object_, "__dlpack__"), name_,
              " must be a tensor (torch, numpy or any with __dlpack__), got ",
              pybind11::str(pybind11::type::handle_of(object_)).cast<std::string>());
  const pybind11::object capsule = detail::call_dlpack(object_);
  managed_versioned_.reset(
      detail::take<dlpack::ManagedTensorVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned"));
  if (managed_versioned_) {
    PAGED_CHECK(managed_versioned_->version.major == dlpack::kMajorVersion, name_, " speaks DLPack ",
                managed_versioned_->version.major, ".", managed_versioned_->version.minor, ", version 1 was expected");
    tensor_ = managed_versioned_->tensor;
    read_only_ = (managed_versioned_->flags & dlpack::kReadOnlyFlag) != 0;
    return;
  }
  managed_.reset(detail::take<dlpack::ManagedTensor>(capsule, "dltensor", "used_dltensor"));
  PAGED_CHECK(managed_, name_, ": __dlpack__ returned no DLPack capsule");
  tensor_ = managed_->tensor;
}

inline std::int64_t DlpackTensor::stride(int axis) const {
  if (tensor_.strides != nullptr) return tensor_.strides[axis];
  std::int64_t stride = 1;
  for (int i = axis + 1; i < tensor_.ndim; ++i) stride *= tensor_.shape[i];
  return stride;
}

inline std::int64_t DlpackTensor::num_elements() const {
  std::int64_t count = 1;
  for (int i = 0; i < tensor_.ndim; ++i) count *= tensor_.shape[i];
  return count;
}

inline std::string DlpackTensor::dtype_name() const {
  const int bits = tensor_.dtype.bits;
  switch (tensor_.dtype.code) {
    case dlpack::kInt: return paged::detail::concat("int", bits);
    case dlpack::kUInt: return paged::detail::concat("uint", bits);
    case dlpack::kFloat: return paged::detail::concat("float", bits);
    case dlpack::kBfloat: return paged::detail::concat("bfloat", bits);
    default: return paged::detail::concat("DLPack type ", int{tensor_.dtype.code}, " of ", bits, " bits");
  }
}

inline DType DlpackTensor::dtype() const {
  const auto [code, bits, lanes] = tensor_.dtype;
  if (code == dlpack::kFloat && bits == 32) return DType::kFloat32;
  if (code == dlpack::kFloat && bits == 16) return DType::kFloat16;
  PAGED_CHECK(code == dlpack::kBfloat && bits == 16, name_, " must be float32, bfloat16 or float16, got ",
              dtype_name());
  return DType::kBFloat16;
}

inline DType DlpackTensor::cache_dtype() const {
  return tensor_.dtype.code == dlpack::kInt && tensor_.dtype.bits == 8 ? DType::kInt8 : dtype();
}

inline MatrixView DlpackTensor::matrix() const {
  const int n = ndim();
  PAGED_CHECK(n == 1 || n == 2, name_, " must have one or two dimensions, got ", n);
  PAGED_CHECK(shape(n - 1) <= 1 || stride(n - 1) == 1, name_,
              " must have neighbouring columns, got a column stride of ", stride(n - 1), "; pass .contiguous()");
  const std::int64_t rows = n == 2 ? shape(0) : 1;
  const std::int64_t cols = shape(n - 1);
  return {data(), rows, cols, n == 2 && rows > 1 ? stride(0) : cols, dtype()};
}

inline void* DlpackTensor::bytes() const {
  std::int64_t expected = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    PAGED_CHECK(shape(i) <= 1 || stride(i) == expected, name_, " must be contiguous; pass .contiguous()");
    expected *= shape(i);
  }
  return data();
}

inline void* DlpackTensor::elements(dlpack::TypeCode code, int bits, const char* type) const {
  PAGED_CHECK(tensor_.dtype.code == code && tensor_.dtype.bits == bits, name_, " must be ", type, ", got ",
              dtype_name());
  return bytes();
}

}  // namespace paged::bindings
