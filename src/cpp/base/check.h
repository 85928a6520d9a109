// SPDX-License-Identifier: Apache-2.0
// Errors of the core. PAGED_CHECK is the caller's mistake (ValueError in Python), PAGED_INVARIANT is our bug
// (paged.InternalError; the engine that meets one is poisoned). Both are always on and print the values involved.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace paged {

class InternalError : public std::logic_error {
  using std::logic_error::logic_error;
};

namespace detail {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
[[noreturn]] void throw_invalid_argument(const Parts&... parts) {
  throw std::invalid_argument(concat(parts...));
}

template <typename... Parts>
[[noreturn]] void throw_internal_error(const char* condition, const char* file, int line, const Parts&... parts) {
  throw InternalError(concat("internal error: ", parts..., " [", condition, " at ", file, ":", line, "]"));
}

}  // namespace detail
}  // namespace paged

#define PAGED_CHECK(condition, ...)                         \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::paged::detail::throw_invalid_argument(__VA_ARGS__); \
  } while (false)

#define PAGED_INVARIANT(condition, ...)                                                   \
  do {                                                                                    \
    if (!(condition)) [[unlikely]]                                                        \
      ::paged::detail::throw_internal_error(#condition, __FILE__, __LINE__, __VA_ARGS__); \
  } while (false)
