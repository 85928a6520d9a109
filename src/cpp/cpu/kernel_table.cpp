// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernel_table.h"

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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
namespace amx {
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

// Whether the CPU has AMX with bfloat16 and 8-bit integers and the kernel lets this process use its registers, for
// which it must be asked.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool has = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
                   (edx & (kBf16 | kTile | kInt8)) == (kBf16 | kTile | kInt8);
  return has && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const KernelTable* choose(std::string_view wanted) {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_avx512bf16 =
      has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const Candidate candidates[] = {
      {&amx::kTable, has_avx512bf16 && has_amx()},
      {&avx512bf16::kTable, has_avx512bf16},
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
  detail::throw_invalid_argument(
      "PAGED_ISA must be baseline, avx2, avx512, avx512bf16 or amx (baseline only on Arm), got '", wanted, "'");
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
