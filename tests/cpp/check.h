// SPDX-License-Identifier: Apache-2.0
// The tests' own harness: TEST(name) { ... } registers a case, a failing CHECK throws and so ends its case, run_cases.h
// runs them. No library, so the tests build wherever the core does.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace paged::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

class Failure : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text << file << ":" << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

}  // namespace paged::test

#define TEST(name)                                                           \
  static void name();                                                        \
  static const ::paged::test::Registration registration_##name(#name, name); \
  static void name()

// Further arguments are printed on failure: the seed, the values.
#define CHECK(condition, ...)                                                                               \
  do {                                                                                                      \
    if (!(condition)) ::paged::test::fail(__FILE__, __LINE__, #condition __VA_OPT__(, "; ", ) __VA_ARGS__); \
  } while (false)

#define CHECK_EQ(left, right, ...)                                                              \
  do {                                                                                          \
    const auto& check_left = (left);                                                            \
    const auto& check_right = (right);                                                          \
    if (!(check_left == check_right))                                                           \
      ::paged::test::fail(__FILE__, __LINE__, #left, " == ", #right, ": ", check_left, " and ", \
                          check_right __VA_OPT__(, "; ", ) __VA_ARGS__);                        \
  } while (false)

// The expression throws `Type` with `part` in its message.
#define CHECK_THROWS(expression, Type, part)                                                  \
  do {                                                                                        \
    std::string check_message;                                                                \
    try {                                                                                     \
      static_cast<void>(expression);                                                          \
      ::paged::test::fail(__FILE__, __LINE__, #expression, " threw nothing");                 \
    } catch (const Type& error) {                                                             \
      check_message = error.what();                                                           \
    }                                                                                         \
    CHECK(check_message.find(part) != std::string::npos, "the message was: ", check_message); \
  } while (false)
