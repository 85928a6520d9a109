// SPDX-License-Identifier: Apache-2.0
// The bytes each token stands for: what text is made of. Immutable and shared by all requests of an engine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"

namespace paged {

class TokenTable {
 public:
  // bytes: all tokens' bytes, one after the other; offsets: [vocab_size + 1] where each begins; is_special:
  // [vocab_size], or empty: none is.
  TokenTable(std::string bytes, std::vector<std::int64_t> offsets, std::vector<bool> is_special)
      : bytes_(std::move(bytes)), offsets_(std::move(offsets)), is_special_(std::move(is_special)) {
    PAGED_CHECK(
        !offsets_.empty() && offsets_.front() == 0 && offsets_.back() == static_cast<std::int64_t>(bytes_.size()),
        "token table: offsets must run from 0 to the ", bytes_.size(), " bytes given");
    for (std::size_t i = 1; i < offsets_.size(); ++i)
      PAGED_CHECK(offsets_[i - 1] <= offsets_[i], "token table: offsets decrease at token ", i - 1);
    PAGED_CHECK(is_special_.empty() || is_special_.size() + 1 == offsets_.size(), "token table: ", offsets_.size() - 1,
                " tokens, but is_special of ", is_special_.size());
  }

  std::int32_t vocab_size() const { return static_cast<std::int32_t>(offsets_.size()) - 1; }

  // A model may have more rows than its tokenizer has tokens: those rows have no text.
  std::string_view bytes_of(std::int32_t token, bool skip_special) const {
    if (token < 0 || token >= vocab_size()) return {};
    if (skip_special && !is_special_.empty() && is_special_[static_cast<std::size_t>(token)]) return {};
    const auto begin = static_cast<std::size_t>(offsets_[static_cast<std::size_t>(token)]);
    const auto end = static_cast<std::size_t>(offsets_[static_cast<std::size_t>(token) + 1]);
    return std::string_view(bytes_).substr(begin, end - begin);
  }

 private:
  std::string bytes_;
  std::vector<std::int64_t> offsets_;
  std::vector<bool> is_special_;
};

}  // namespace paged
