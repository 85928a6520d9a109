// SPDX-License-Identifier: Apache-2.0
// One owned, 64-byte aligned, uninitialised allocation. Large ones come straight from the operating system, so pages
// that nobody touches cost nothing; ask_for_huge_pages() is for what is read here and there.
#pragma once

#include <sys/mman.h>

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
  static constexpr std::size_t kHugePage = std::size_t{2} << 20;

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::int64_t num_bytes) : AlignedBuffer(num_bytes, kAlignment) {}

  // Memory for ask_for_huge_pages().
  static AlignedBuffer for_huge_pages(std::int64_t num_bytes) {
    return num_bytes < std::int64_t{kHugePage} ? AlignedBuffer(num_bytes) : AlignedBuffer(num_bytes, kHugePage);
  }

  // For the bytes from `begin` to `end`, whole pages of 2 MB only. Advice: where the system has no such pages, nothing
  // happens.
  void ask_for_huge_pages(std::int64_t begin, std::int64_t end) const {
    constexpr std::int64_t kPage = kHugePage;
    const std::int64_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
    if (num_bytes_ >= kPage && first < last)
      madvise(data() + first, static_cast<std::size_t>(last - first), MADV_HUGEPAGE);
  }

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  std::int64_t num_bytes() const { return num_bytes_; }

 private:
  AlignedBuffer(std::int64_t num_bytes, std::size_t alignment) : num_bytes_(num_bytes) {
    PAGED_INVARIANT(num_bytes >= 0, "negative allocation of ", num_bytes, " bytes");
    const auto rounded = (static_cast<std::size_t>(num_bytes) + alignment) / alignment * alignment;
    data_.reset(std::aligned_alloc(alignment, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<void, Free> data_;
  std::int64_t num_bytes_ = 0;
};

}  // namespace paged
