// SPDX-License-Identifier: Apache-2.0
// Without a GPU there is nothing to test: ctest then counts the program as skipped.
#include <cstdio>
#include <string>

#include "../cpp/run_cases.h"
#include "gpu/runtime.h"

int main(int num_arguments, char** arguments) {
  constexpr int kSkipped = 77;
  std::string reason;
  if (paged::gpu::num_devices(&reason) == 0) {
    std::printf("skipped: no GPU: %s\n", reason.c_str());
    return kSkipped;
  }
  return paged::test::run_cases(num_arguments, arguments);
}
