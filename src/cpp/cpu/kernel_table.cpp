// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernel_table.h"

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "base/check.h"

namespace paged::cpu {

namespace baseline {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx512bf16 {
extern const KernelTable kTable;
}
#endif

namespace {

struct Candidate {
  const KernelTable* table;
  bool supported;
};

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers. It knows no "f16c" everywhere.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

const KernelTable* choose(std::string_view wanted) {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Candidate candidates[] = {
      {&avx512bf16::kTable, has_avx512 && __builtin_cpu_supports("avx512bf16")},
      {&avx512::kTable, has_avx512},
      {&avx2::kTable, has_avx2},
      {&baseline::kTable, true},
  };
#else
const KernelTable* choose(std::string_view wanted) {
  const Candidate candidates[] = {{&baseline::kTable, true}};
#endif
  for (const Candidate& candidate : candidates) {
    if (!wanted.empty() && wanted != candidate.table->isa) continue;
    if (candidate.supported) return candidate.table;
    PAGED_CHECK(wanted.empty(), "PAGED_ISA=", wanted, ": this CPU lacks it; unset PAGED_ISA to let the CPU decide");
  }
  detail::throw_invalid_argument("PAGED_ISA must be baseline, avx2, avx512 or avx512bf16 (baseline only on Arm), got '",
                                 wanted, "'");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* const table = [] {
    const char* wanted = std::getenv("PAGED_ISA");
    return choose(wanted != nullptr ? wanted : "");
  }();
  return *table;
}

}  // namespace paged::cpu
