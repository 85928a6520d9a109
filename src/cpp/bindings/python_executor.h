// SPDX-License-Identifier: Apache-2.0
// An executor written in Python: how a program reaches any torch device, and how tests put a fake model under the
// engine. The only thing that makes the engine thread take the GIL, and only in engines built with it.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "exec/executor.h"
#include "exec/host_sampler.h"

namespace paged {

class PythonExecutor final : public Executor {
 public:
  // `run(token_ids, positions, slot_mapping, query_start, seq_lens, block_tables, logits_rows)` takes int32 arrays and
  // returns float32 logits [len(logits_rows), vocab_size]; `copy_blocks(source, destination)` takes block ids.
  PythonExecutor(pybind11::object run, pybind11::object copy_blocks, std::int32_t vocab_size,
                 std::shared_ptr<ThreadPool> threads)
      : run_(std::move(run)),
        copy_blocks_(std::move(copy_blocks)),
        vocab_size_(vocab_size),
        sampler_(std::move(threads), vocab_size) {}

  ~PythonExecutor() override {
    const pybind11::gil_scoped_acquire gil;  // gone when the members are destroyed: they must be empty by then
    run_.release().dec_ref();
    copy_blocks_.release().dec_ref();
    logits_.release().dec_ref();
  }

  std::int32_t vocab_size() const override { return vocab_size_; }

  void launch(const StepInput& step) override {
    {
      const pybind11::gil_scoped_acquire gil;
      copy_blocks(step.copy_sources, step.copy_destinations);
      run(step.batch);
    }
    // What the executor returned is its own: edits are made in a copy.
    if (step.extras != nullptr) edited_.assign(logits_.data(), logits_.data() + logits_.size());
    sampler_.sample(step.extras != nullptr ? edited_.data() : const_cast<float*>(logits_.data()), step.sampling,
                    step.extras);
  }

  std::span<const std::int32_t> wait() override { return sampler_.token_ids(); }
  ExtraOutputs extra_outputs() const override { return sampler_.extra_outputs(); }

 private:
  using FloatArray = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;

  void copy_blocks(std::span<const std::int32_t> source, std::span<const std::int32_t> destination) {
    if (source.empty()) return;
    without_python_errors([&] {
      copy_blocks_(borrow(source.data(), static_cast<pybind11::ssize_t>(source.size())),
                   borrow(destination.data(), static_cast<pybind11::ssize_t>(destination.size())));
    });
  }

  void run(const BatchView& batch) {
    without_python_errors([&] { logits_ = FloatArray::ensure(call_run(batch)); });
    PAGED_CHECK(
        logits_ && logits_.ndim() == 2 && logits_.shape(0) == batch.num_logits_rows && logits_.shape(1) == vocab_size_,
        "the executor's run() must return float32 logits of shape [", batch.num_logits_rows, ", ", vocab_size_, "]");
  }

  // A Python exception must not outlive the GIL: only its text leaves.
  template <typename Body>
  static void without_python_errors(Body&& body) {
    try {
      body();
    } catch (const pybind11::error_already_set& error) {
      throw std::runtime_error(error.what());
    }
  }

  pybind11::object call_run(const BatchView& batch) {
    Int32Array tables({batch.num_sequences, batch.block_table_stride});
    for (std::int32_t i = 0; i < batch.num_sequences; ++i)
      std::copy_n(batch.block_table(i), batch.block_table_stride, tables.mutable_data(i, 0));
    return run_(borrow(batch.token_ids, batch.num_tokens), borrow(batch.positions, batch.num_tokens),
                borrow(batch.slot_mapping, batch.num_tokens), borrow(batch.query_start, batch.num_sequences + 1),
                borrow(batch.seq_lens, batch.num_sequences), tables, borrow(batch.logits_rows, batch.num_logits_rows));
  }

  pybind11::object run_;
  pybind11::object copy_blocks_;
  FloatArray logits_;
  std::vector<float> edited_;
  std::int32_t vocab_size_;
  HostSampler sampler_;
};

}  // namespace paged
