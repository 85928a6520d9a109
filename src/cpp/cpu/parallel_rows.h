// SPDX-License-Identifier: Apache-2.0
// Cuts rows into items large enough to be worth handing to another thread.
#pragma once

#include <algorithm>

#include "base/divide_up.h"
#include "cpu/thread_pool.h"

namespace paged::cpu {

// Calls body(begin, end) for ranges that cover [0, rows), each from a multiple of row_step on. Work of less than
// kItemBytes stays in one item.
template <typename Body>
void parallel_rows(ThreadPool& threads, std::int64_t rows, std::int64_t bytes_per_row, Body body,
                   std::int64_t row_step = 1) {
  constexpr std::int64_t kItemBytes = 32 * 1024;
  const std::int64_t enough = std::max<std::int64_t>(1, kItemBytes / std::max<std::int64_t>(1, bytes_per_row));
  const std::int64_t per_item = divide_up(enough, row_step) * row_step;
  threads.parallel_for((rows + per_item - 1) / per_item,
                       [&](std::int64_t item, int) { body(item * per_item, std::min(rows, (item + 1) * per_item)); });
}

}  // namespace paged::cpu
