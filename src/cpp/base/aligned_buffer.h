// SPDX-License-Identifier: Apache-2.0
// One owned, 64-byte aligned, uninitialised allocation. Large ones come straight from the operating system, so pages
// that nobody touches cost nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/check.h"

namespace paged {

class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::int64_t num_bytes) : num_bytes_(num_bytes) {
    PAGED_INVARIANT(num_bytes >= 0, "negative allocation of ", num_bytes, " bytes");
    const auto rounded = (static_cast<std::size_t>(num_bytes) + kAlignment) / kAlignment * kAlignment;
    data_.reset(std::aligned_alloc(kAlignment, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::int64_t num_bytes() const { return num_bytes_; }

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<void, Free> data_;
  std::int64_t num_bytes_ = 0;
};

}  // namespace paged
