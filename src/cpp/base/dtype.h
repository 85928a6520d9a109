// SPDX-License-Identifier: Apache-2.0
// Element types of activations and of the KV cache, and the storage types a weight may arrive in.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/check.h"

namespace paged {

// kInt8 is for a KV cache only: codes with a float32 scale for each key or value of a head (KvCacheView).
enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kInt8 };

constexpr std::int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
    case DType::kInt8: return "int8";
  }
  return "?";
}

inline DType parse_dtype(std::string_view name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    if (name == name_of(dtype)) return dtype;
  detail::throw_invalid_argument("dtype must be float32, bfloat16 or float16, got '", name, "'");
}

// The same, or int8.
inline DType parse_cache_dtype(std::string_view name) {
  return name == name_of(DType::kInt8) ? DType::kInt8 : parse_dtype(name);
}

}  // namespace paged
