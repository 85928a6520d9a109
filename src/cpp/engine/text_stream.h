// SPDX-License-Identifier: Apache-2.0
// Turns the bytes of a request's tokens into text that may be shown: never half a character, never a piece of what may
// yet become a stop string. Text comes out exactly as bytes.decode("utf-8", errors="replace") of all bytes would give
// it, cut before the first stop string.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace paged {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop, bool include_stop = false);

  // Takes the next token's bytes; true once a stop string is complete (what follows it is dropped). One that is
  // complete before a token that may stop does not count. The cost is that of searching the held-back bytes for each
  // stop string.
  bool push(std::string_view bytes, bool may_stop = true);

  // Whether push() and take() would give just these bytes: nothing is held back, no stop string could be, and all
  // characters are whole. Then neither is needed.
  bool passes(std::string_view bytes) const;

  std::string take();    // what has become certain since the last call
  std::string finish();  // take(), and the rest: an incomplete character at the end becomes U+FFFD

 private:
  std::size_t certain_bytes() const;

  std::vector<std::string> stop_;
  bool include_stop_;
  std::string held_;          // bytes not handed out yet
  std::size_t searched_ = 0;  // held_ before this point contains no start of a complete stop string
  std::size_t ignored_ = 0;   // stop strings in held_ that end before this point do not count
  bool stopped_ = false;
};

// Appends the whole characters at the front of `bytes` to `text`, invalid sequences as U+FFFD (one for each maximal
// subpart, as Unicode recommends and Python does). Returns the bytes consumed; an incomplete tail is left unless
// `last`.
std::size_t append_characters(std::string_view bytes, bool last, std::string& text);

}  // namespace paged
