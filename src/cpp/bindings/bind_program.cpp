// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bind_steps.h"
#include "bindings/module.h"
#include "exec/program_executor.h"
#include "gpu/runtime.h"

namespace py = pybind11;

namespace paged {
namespace {

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;
using FloatVector = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Borrows the arrays.
WeightSource weight_source(const ByteArray& data, const std::string& type, std::int64_t rows, std::int64_t cols,
                           const std::optional<Int32Array>& row_order) {
  PAGED_CHECK(!row_order || row_order->size() == rows, "row_order has ", row_order ? row_order->size() : 0,
              " entries for ", rows, " rows");
  return {data.data(),
          static_cast<std::int64_t>(data.nbytes()),
          rows,
          cols,
          parse_weight_type(type),
          row_order ? row_order->data() : nullptr};
}

// (data uint8, type, rows, cols, row_order int32 or None).
using SourceTuple = std::tuple<ByteArray, std::string, std::int64_t, std::int64_t, std::optional<Int32Array>>;

// Whether the array is a view of a file mapped for reading, whose pages may be dropped, for the file has them.
bool is_of_file(const ByteArray& data) {
  const py::object base = data.base();
  if (!base || !PyMemoryView_Check(base.ptr())) return false;
  const Py_buffer* buffer = PyMemoryView_GET_BUFFER(base.ptr());
  const py::handle owner = buffer->obj;
  return buffer->readonly && owner && py::isinstance(owner, py::module_::import("mmap").attr("mmap"));
}

std::int32_t add_matrices(Program& program, const std::vector<SourceTuple>& sources, ThreadPool& threads) {
  std::vector<WeightSource> raw;
  for (const auto& [data, type, rows, cols, row_order] : sources) {
    raw.push_back(weight_source(data, type, rows, cols, row_order));
    raw.back().is_file = is_of_file(data);
  }
  const py::gil_scoped_release release;
  return program.add_matrices(raw, threads);
}

std::int32_t add_stacked_matrix(Program& program, const std::vector<SourceTuple>& sources, const std::string& dtype,
                                int gpu, ThreadPool& threads) {
  std::vector<WeightSource> raw;
  for (const auto& [data, type, rows, cols, row_order] : sources)
    raw.push_back(weight_source(data, type, rows, cols, row_order));
  const py::gil_scoped_release release;
  const gpu::UseDevice scope(gpu);
  return program.add_stacked_matrix(raw, parse_dtype(dtype), threads);
}

template <typename T>
T attribute(const std::string& name, const py::handle& value) {
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw py::type_error("op attribute '" + name + "' does not take a value of type " +
                         std::string(py::str(py::type::handle_of(value).attr("__name__"))));
  }
}

OpAttributes parse_attributes(const py::dict& given) {
  OpAttributes a;
  const std::map<std::string, float*> floats{{"eps", &a.eps}, {"scale", &a.scale}, {"softcap", &a.softcap}};
  const std::map<std::string, std::int32_t*> ints{{"width", &a.width},           {"layer", &a.layer},
                                                  {"num_heads", &a.num_heads},   {"head_dim", &a.head_dim},
                                                  {"rotary_dim", &a.rotary_dim}, {"window", &a.window}};
  for (const auto& [key, value] : given) {
    const auto name = attribute<std::string>("names", key);
    if (floats.contains(name))
      *floats.at(name) = attribute<float>(name, value);
    else if (ints.contains(name))
      *ints.at(name) = attribute<std::int32_t>(name, value);
    else if (name == "interleaved")
      a.interleaved = attribute<bool>(name, value);
    else if (name == "activation")
      a.activation = parse_activation(attribute<std::string>(name, value));
    else
      detail::throw_invalid_argument("unknown op attribute '", name, "'");
  }
  return a;
}

void add_op(Program& program, const std::string& kind, std::vector<Value> inputs, std::vector<Value> outputs,
            std::vector<std::int32_t> matrices, std::int32_t vector, std::int32_t head_norms,
            const py::dict& attributes) {
  program.add_op({parse_op_kind(kind), std::move(inputs), std::move(outputs), std::move(matrices), vector, head_norms,
                  parse_attributes(attributes)});
}

Value make_value(std::int64_t offset, const std::string& rows, std::int64_t cols, std::int64_t row_stride,
                 const std::string& dtype) {
  PAGED_CHECK(rows == "tokens" || rows == "logits", "rows must be 'tokens' or 'logits', got '", rows, "'");
  return {offset, rows == "tokens" ? Rows::kTokens : Rows::kLogits, cols, row_stride, parse_dtype(dtype)};
}

void bind_executor(py::module_& module) {
  py::classh<ProgramExecutor> executor(module, "ProgramExecutor",
                                       "Runs a Program on the CPU. One engine, or one thread, owns it.");
  executor.def(py::init([](std::shared_ptr<Program> program, std::int32_t max_seq_len, std::int32_t num_blocks,
                           std::int32_t block_size, std::shared_ptr<ThreadPool> threads) {
                 return std::make_unique<ProgramExecutor>(
                     std::move(program), KvPoolLimits{max_seq_len, num_blocks, block_size}, std::move(threads));
               }),
               py::kw_only(), py::arg("program").none(false), py::arg("max_seq_len"), py::arg("num_blocks"),
               py::arg("block_size"), py::arg("threads").none(false));
  bind_steps(executor);
}

}  // namespace

void bind_program(py::module_& module) {
  py::class_<Value>(module, "Value", "Where a value of a program lies in the arena.")
      .def(py::init(&make_value), py::kw_only(), py::arg("offset"), py::arg("rows"), py::arg("cols"),
           py::arg("row_stride"), py::arg("dtype"));
  py::class_<Program, std::shared_ptr<Program>>(module, "Program", "A recorded model as the executor runs it.")
      .def(py::init([](std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t head_dim,
                       const std::string& dtype, std::int64_t arena_bytes, std::int32_t max_tokens,
                       std::int32_t max_logits_rows, std::int32_t vocab_size, std::int32_t max_positions) {
             return std::make_shared<Program>(KvCacheSpec{num_layers, num_kv_heads, head_dim, parse_cache_dtype(dtype)},
                                              ArenaPlan{arena_bytes, max_tokens, max_logits_rows}, vocab_size,
                                              max_positions);
           }),
           py::kw_only(), py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("dtype"),
           py::arg("arena_bytes"), py::arg("max_tokens"), py::arg("max_logits_rows"), py::arg("vocab_size"),
           py::arg("max_positions"))
      .def("add_matrices", &add_matrices, py::kw_only(), py::arg("sources"), py::arg("threads"),
           "Packs matrices (data, type, rows, cols, row_order) from their raw bytes (uint8) as a checkpoint holds "
           "them.\n"
           "Returns the index of the first; the others follow. Views of a mapped file leave memory once packed.")
      .def("add_stacked_matrix", &add_stacked_matrix, py::kw_only(), py::arg("sources"), py::arg("dtype"),
           py::arg("gpu"), py::arg("threads"),
           "Uploads matrices (data, type, rows, cols, row_order) under each other, as `dtype`. Returns the index.")
      .def(
          "add_vector",
          [](Program& self, const FloatVector& values) {
            return self.add_vector(std::vector<float>(values.data(), values.data() + values.size()));
          },
          py::arg("values"))
      .def("add_op", &add_op, py::arg("kind"), py::kw_only(), py::arg("inputs"), py::arg("outputs"),
           py::arg("matrices"), py::arg("vector"), py::arg("head_norms"), py::arg("attributes"))
      .def_property_readonly("matrix_bytes", &Program::matrix_bytes, "Of each matrix as packed.")
      .def_property_readonly("weight_bytes", &Program::weight_bytes);
  bind_executor(module);
}

}  // namespace paged
