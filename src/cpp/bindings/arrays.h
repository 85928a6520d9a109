// SPDX-License-Identifier: Apache-2.0
// A step's batch as numpy arrays, both ways.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>

#include "base/check.h"
#include "ops/batch_view.h"

namespace paged {

using Int32Array = pybind11::array_t<std::int32_t, pybind11::array::c_style | pybind11::array::forcecast>;

// Borrowed views of C++ memory: valid during the call they are handed to.
inline pybind11::array_t<std::int32_t> borrow(const std::int32_t* data, pybind11::ssize_t size) {
  return pybind11::array_t<std::int32_t>({size}, {sizeof(std::int32_t)}, data, pybind11::none());
}

inline constexpr pybind11::ssize_t kMostElements = 1 << 30;

// Keeps the arrays of a hand-made batch alive and views them.
struct ArrayBatch {
  Int32Array token_ids, positions, slot_mapping, query_start, seq_lens, block_tables, logits_rows;
  // Derived: every sequence has the row of its own index, and one of a single token counts as decoding.
  Int32Array block_table_rows = {}, is_decode = {}, sampled_table_rows = {};

  BatchView view() {
    const auto size = [](const Int32Array& a) { return static_cast<std::int32_t>(a.size()); };
    BatchView v;
    v.num_tokens = size(token_ids);
    v.num_sequences = size(seq_lens);
    v.num_logits_rows = size(logits_rows);
    PAGED_CHECK(token_ids.size() <= kMostElements && block_tables.size() <= kMostElements &&
                    logits_rows.size() <= kMostElements,
                "a batch of more than ", kMostElements, " elements");
    PAGED_CHECK(positions.size() == v.num_tokens && slot_mapping.size() == v.num_tokens &&
                    query_start.size() == v.num_sequences + 1 && block_tables.ndim() == 2 &&
                    block_tables.shape(0) == v.num_sequences,
                "a batch of ", v.num_tokens, " tokens and ", v.num_sequences, " sequences has arrays of other lengths");
    derive(v);
    v.token_ids = token_ids.data();
    v.positions = positions.data();
    v.slot_mapping = slot_mapping.data();
    v.query_start = query_start.data();
    v.seq_lens = seq_lens.data();
    v.block_table_rows = block_table_rows.data();
    v.is_decode = is_decode.data();
    v.block_tables = block_tables.data();
    v.logits_rows = logits_rows.data();
    v.sampled_table_rows = sampled_table_rows.data();
    v.block_table_stride = static_cast<std::int32_t>(block_tables.shape(1));
    return v;
  }

 private:
  void derive(BatchView& v) {
    block_table_rows = Int32Array(v.num_sequences);
    is_decode = Int32Array(v.num_sequences);
    const std::int32_t* starts = query_start.data();
    for (std::int32_t i = 0; i < v.num_sequences; ++i) {
      block_table_rows.mutable_at(i) = i;
      is_decode.mutable_at(i) = starts[i + 1] - starts[i] == 1 ? 1 : 0;
      v.num_decodes += is_decode.at(i);
    }
    sampled_table_rows = Int32Array(v.num_logits_rows);
    for (std::int32_t row = 0, i = 0; row < v.num_logits_rows; ++row) {
      while (i + 1 < v.num_sequences && starts[i + 1] <= logits_rows.data()[row]) ++i;
      sampled_table_rows.mutable_at(row) = i;
    }
  }
};

}  // namespace paged
