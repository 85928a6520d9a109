// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <exception>
#include <string_view>

#include "check.h"

int main(int num_arguments, char** arguments) {
  const std::string_view filter = num_arguments > 1 ? arguments[1] : "";
  int num_run = 0;
  int num_failed = 0;
  for (const paged::test::Case& test : paged::test::cases()) {
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
