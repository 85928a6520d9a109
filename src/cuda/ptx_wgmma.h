// SPDX-License-Identifier: Apache-2.0
// wgmma: D[64 x n] (+)= A[64 x 16] B[16 x n] by a warp group (4 warps, the first one's index a multiple of 4), float32
// sums, asynchronous. Layouts and descriptors as in the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions",
// and CUTLASS, cute/arch/mma_sm90_desc.hpp. Part of ptx_sm90.h.
//
// Use: wgmma_fence(); wgmma(...) ...; wgmma_commit(); wgmma_wait<0>(); then hold(d) before the first use of d. Until
// the wait neither d nor A's registers may be touched.
//
// Fragments, with w = warp of the group, g = lane / 4, t = lane % 4 (that of mma.m16n8k16, warp w has rows
// 16w..16w+15):
//   d[4j], d[4j + 1] = D(16w + g, 8j + 2t), (.., 8j + 2t + 1)      d[4j + 2], d[4j + 3] = the same of row 16w + g + 8
//   a[0] = A(16w + g, 2t..2t+1)  a[1] = A(16w + g + 8, 2t..)  a[2] = A(16w + g, 2t + 8..)  a[3] = A(16w + g + 8, 2t
//   + 8..)
// so the d of columns 16k..16k+15, packed in pairs in ascending order, are the a of a product over these columns.
#pragma once

#include <type_traits>

#include "gpu/gpu.h"
#include "ptx.h"

namespace paged::gpu {

// Operands in shared memory lie in groups of 8 rows of 128 bytes, swizzled as by make_swizzled_tensor_map; consecutive
// groups are group_bytes apart.
//
// K-major: element (i, k) is at row i, column k of a tile [rows][64 k]. The next 16 k of the same tile: descriptor + 2
// (32 bytes). 64 k on: the next tile.
__device__ __forceinline__ std::uint64_t k_major_descriptor(const void* tile, int group_bytes = 1024) {
  return std::uint64_t{1} << 62 | std::uint64_t{static_cast<std::uint32_t>(group_bytes) >> 4} << 32 |
         std::uint64_t{1} << 16 | ((shared_address(tile) & 0x3ffff) >> 4);
}
// MN-major (B as V of attention: k is the row): element (k, j) is at row k, column j % 64 of tile j / 64, tiles [k
// rows] [64 j] being tile_bytes apart. The next 16 k: descriptor + 2 * group_bytes / 16.
__device__ __forceinline__ std::uint64_t mn_major_descriptor(const void* tile, int tile_bytes, int group_bytes = 1024) {
  return std::uint64_t{1} << 62 | std::uint64_t{static_cast<std::uint32_t>(group_bytes) >> 4} << 32 |
         std::uint64_t{static_cast<std::uint32_t>(tile_bytes) >> 4} << 16 | ((shared_address(tile) & 0x3ffff) >> 4);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` of the newest groups are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// The compiler moves no access to these registers across this point.
template <int n>
__device__ __forceinline__ void hold(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Register lists of 8 accumulators: as text and as operands.
#define PAGED_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PAGED_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define PAGED_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define PAGED_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define PAGED_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define PAGED_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define PAGED_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define PAGED_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define PAGED_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define PAGED_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define PAGED_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define PAGED_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define PAGED_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define PAGED_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define PAGED_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define PAGED_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define PAGED_D(i)                                                                                                    \
  "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), \
      "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define PAGED_R_8 "%0, %1, %2, %3"
#define PAGED_D_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define PAGED_R_16 PAGED_R0
#define PAGED_D_16 PAGED_D(0)
#define PAGED_R_24 PAGED_R0 ", %8, %9, %10, %11"
#define PAGED_D_24 PAGED_D(0), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define PAGED_R_32 PAGED_R_16 ", " PAGED_R1
#define PAGED_D_32 PAGED_D_16, PAGED_D(1)
#define PAGED_R_48 PAGED_R_32 ", " PAGED_R2
#define PAGED_D_48 PAGED_D_32, PAGED_D(2)
#define PAGED_R_64 PAGED_R_32 ", " PAGED_R2 ", " PAGED_R3
#define PAGED_D_64 PAGED_D_32, PAGED_D(2), PAGED_D(3)
#define PAGED_R_96 PAGED_R_64 ", " PAGED_R4 ", " PAGED_R5
#define PAGED_D_96 PAGED_D_64, PAGED_D(4), PAGED_D(5)
#define PAGED_R_112 PAGED_R_96 ", " PAGED_R6
#define PAGED_D_112 PAGED_D_96, PAGED_D(6)
#define PAGED_R_128 PAGED_R_96 ", " PAGED_R6 ", " PAGED_R7
#define PAGED_D_128 PAGED_D_96, PAGED_D(6), PAGED_D(7)
#define PAGED_R_160 PAGED_R_128 ", " PAGED_R8 ", " PAGED_R9
#define PAGED_D_160 PAGED_D_128, PAGED_D(8), PAGED_D(9)
#define PAGED_R_192 PAGED_R_160 ", " PAGED_R10 ", " PAGED_R11
#define PAGED_D_192 PAGED_D_160, PAGED_D(10), PAGED_D(11)
#define PAGED_R_224 PAGED_R_192 ", " PAGED_R12 ", " PAGED_R13
#define PAGED_D_224 PAGED_D_192, PAGED_D(12), PAGED_D(13)
#define PAGED_R_256 PAGED_R_192 ", " PAGED_R12 ", " PAGED_R13 ", " PAGED_R14 ", " PAGED_R15
#define PAGED_D_256 PAGED_D_192, PAGED_D(12), PAGED_D(13), PAGED_D(14), PAGED_D(15)

// The numbers of the operands after the accumulators are spelled out: asm has no arithmetic.
#define PAGED_WGMMA_SS(type, n, a, b, p, trans)                                                                        \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #p ", 0;\n wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" PAGED_R_##n "}, %" #a ", %" #b ", p, 1, 1, 0, %" #trans ";\n}"                            \
               : PAGED_D_##n                                                                                           \
               : "l"(desc_a), "l"(desc_b), "r"(static_cast<int>(accumulate)), "n"(transposed_b ? 1 : 0))
#define PAGED_WGMMA_RS(type, n, a0, a1, a2, a3, b, p, trans)                                                           \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #p ", 0;\n wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" PAGED_R_##n "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, %" #trans     \
                                         ";\n}"                                                                        \
               : PAGED_D_##n                                                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b), "r"(static_cast<int>(accumulate)),           \
                 "n"(transposed_b ? 1 : 0))
#define PAGED_WGMMA(which, n, ...)                 \
  if constexpr (sizeof(d) == 2 * n) {              \
    if constexpr (std::is_same_v<T, BFloat16>)     \
      PAGED_WGMMA_##which("bf16", n, __VA_ARGS__); \
    else                                           \
      PAGED_WGMMA_##which("f16", n, __VA_ARGS__);  \
  }

// n = 2 * registers, one of 8, 16, 24, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256. d = A B if !accumulate. B is
// K-major, or MN-major if transposed_b; A is K-major.
template <class T, bool transposed_b, int registers>
__device__ __forceinline__ void wgmma(float (&d)[registers], std::uint64_t desc_a, std::uint64_t desc_b,
                                      bool accumulate) {
  PAGED_WGMMA(SS, 8, 4, 5, 6, 7)
  PAGED_WGMMA(SS, 16, 8, 9, 10, 11)
  PAGED_WGMMA(SS, 24, 12, 13, 14, 15)
  PAGED_WGMMA(SS, 32, 16, 17, 18, 19)
  PAGED_WGMMA(SS, 48, 24, 25, 26, 27)
  PAGED_WGMMA(SS, 64, 32, 33, 34, 35)
  PAGED_WGMMA(SS, 96, 48, 49, 50, 51)
  PAGED_WGMMA(SS, 112, 56, 57, 58, 59)
  PAGED_WGMMA(SS, 128, 64, 65, 66, 67)
  PAGED_WGMMA(SS, 160, 80, 81, 82, 83)
  PAGED_WGMMA(SS, 192, 96, 97, 98, 99)
  PAGED_WGMMA(SS, 224, 112, 113, 114, 115)
  PAGED_WGMMA(SS, 256, 128, 129, 130, 131)
}
// The same with A in registers.
template <class T, bool transposed_b, int registers>
__device__ __forceinline__ void wgmma(float (&d)[registers], const std::uint32_t (&a)[4], std::uint64_t desc_b,
                                      bool accumulate) {
  PAGED_WGMMA(RS, 8, 4, 5, 6, 7, 8, 9, 10)
  PAGED_WGMMA(RS, 16, 8, 9, 10, 11, 12, 13, 14)
  PAGED_WGMMA(RS, 24, 12, 13, 14, 15, 16, 17, 18)
  PAGED_WGMMA(RS, 32, 16, 17, 18, 19, 20, 21, 22)
  PAGED_WGMMA(RS, 64, 32, 33, 34, 35, 36, 37, 38)
  PAGED_WGMMA(RS, 96, 48, 49, 50, 51, 52, 53, 54)
  PAGED_WGMMA(RS, 128, 64, 65, 66, 67, 68, 69, 70)
  PAGED_WGMMA(RS, 192, 96, 97, 98, 99, 100, 101, 102)
  PAGED_WGMMA(RS, 256, 128, 129, 130, 131, 132, 133, 134)
}

#undef PAGED_R0
#undef PAGED_R1
#undef PAGED_R2
#undef PAGED_R3
#undef PAGED_R4
#undef PAGED_R5
#undef PAGED_R6
#undef PAGED_R7
#undef PAGED_R8
#undef PAGED_R9
#undef PAGED_R10
#undef PAGED_R11
#undef PAGED_R12
#undef PAGED_R13
#undef PAGED_R14
#undef PAGED_R15
#undef PAGED_D
#undef PAGED_R_8
#undef PAGED_R_16
#undef PAGED_R_24
#undef PAGED_R_32
#undef PAGED_R_48
#undef PAGED_D_48
#undef PAGED_R_64
#undef PAGED_R_96
#undef PAGED_R_112
#undef PAGED_D_112
#undef PAGED_R_128
#undef PAGED_R_160
#undef PAGED_R_192
#undef PAGED_R_224
#undef PAGED_R_256
#undef PAGED_D_8
#undef PAGED_D_16
#undef PAGED_D_24
#undef PAGED_D_32
#undef PAGED_D_64
#undef PAGED_D_96
#undef PAGED_D_128
#undef PAGED_D_160
#undef PAGED_D_192
#undef PAGED_D_224
#undef PAGED_D_256
#undef PAGED_WGMMA_SS
#undef PAGED_WGMMA_RS
#undef PAGED_WGMMA

}  // namespace paged::gpu
