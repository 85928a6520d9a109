// SPDX-License-Identifier: Apache-2.0
// Forced inlining. Code shared between sources built for different instruction sets must never be emitted out of line:
// the linker would keep one copy, perhaps one that the running CPU cannot execute.
#pragma once

#define PAGED_INLINE [[gnu::always_inline]] inline
