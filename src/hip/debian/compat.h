// SPDX-License-Identifier: Apache-2.0
// Included before everything when clang 22 reads Debian 12's HIP 5.2 headers: what those expect of an older compiler
// and its device library. A ROCm installation needs none of it.
#pragma once

#ifdef __HIP__

// Was predefined until clang 21. The host pass cannot know; 64 is what it used to say.
#if defined(__HIP_DEVICE_COMPILE__) && !defined(__GFX9__) && !defined(__GFX8__)
#define __AMDGCN_WAVEFRONT_SIZE 32
#else
#define __AMDGCN_WAVEFRONT_SIZE 64
#endif

// __threadfence() and __syncthreads() of those headers call this function of newer compilers' OpenCL library. Its scope
// 1 is the work group; wider ones become the whole system, which is never too weak.
extern "C" __attribute__((device, weak)) void paged_work_item_fence(unsigned, unsigned,
                                                                    unsigned) __asm__("__atomic_work_item_fence");
extern "C" __attribute__((device, weak)) void paged_work_item_fence(unsigned, unsigned, unsigned scope) {
  if (scope == 1)
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "workgroup");
  else
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "");
}

#endif  // __HIP__
