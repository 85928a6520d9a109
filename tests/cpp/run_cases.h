// SPDX-License-Identifier: Apache-2.0
// What every test program's main does.
#pragma once

#include <cstdio>
#include <exception>
#include <string_view>

#include "check.h"

namespace paged::test {

// All registered cases, or those whose name contains the first argument. 0 if there were some and none failed.
inline int run_cases(int num_arguments, char** arguments) {
  const std::string_view filter = num_arguments > 1 ? arguments[1] : "";
  int num_run = 0;
  int num_failed = 0;
  for (const Case& test : cases()) {
    if (std::string_view(test.name).find(filter) == std::string_view::npos) continue;
    ++num_run;
    try {
      test.run();
      std::printf("ok      %s\n", test.name);
    } catch (const std::exception& error) {
      ++num_failed;
      std::printf("FAILED  %s\n        %s\n", test.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d cases, %d failed\n", num_run, num_failed);
  return num_failed > 0 || num_run == 0 ? 1 : 0;
}

}  // namespace paged::test
