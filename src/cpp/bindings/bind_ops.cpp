// SPDX-License-Identifier: Apache-2.0
// paged._C.ops: every op on tensors, for tests and benchmarks. Tensors come in through DLPack, outputs are written in
// place, the GIL is released around the op. Shapes are checked by the ops; lengths and indices, which in the engine are
// its own, here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <numeric>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/checked_product.h"
#include "bindings/module.h"
#include "bindings/operands.h"
#include "cpu/gguf_quantise.h"
#include "cpu/kernel_table.h"
#include "cpu/packed_matrix.h"
#include "cpu/thread_pool.h"
#include "exec/program.h"
#include "ops/ops.h"
#include "ops/shape_checks.h"

namespace py = pybind11;

namespace paged::bindings {
namespace {

ExecutionContext on(ThreadPool& threads) { return {Device::kCpu, &threads, nullptr}; }

constexpr Range kAnyIndex{0, std::int64_t{1} << 31};  // checked by whom it is given to

// One layer's cache in a tensor of the caller's, [num_blocks, 2, num_kv_heads, block_size * head_dim]; of int8 with the
// scales beside the codes, in bytes.
struct KvCache {
  KvCache(py::handle storage, std::int32_t num_blocks, std::int32_t block_size, std::int32_t num_kv_heads,
          std::int32_t head_dim)
      : tensor(storage, "cache", Access::kWrite),
        view{tensor.bytes(), num_blocks, block_size, num_kv_heads, head_dim, tensor.cache_dtype()} {
    ops::check_cache("cache", view);
    const std::int64_t bytes =
        checked_product("cache", {num_blocks, num_kv_heads, block_size, kv_token_bytes(view.dtype, head_dim)});
    PAGED_CHECK(tensor.num_bytes() == bytes, "cache: ", num_blocks, " blocks take ", bytes, " bytes, got ",
                tensor.num_bytes());
  }
  Range blocks() const { return {0, view.num_blocks}; }
  Range slots() const { return {-1, std::int64_t{view.num_blocks} * view.block_size}; }

  DlpackTensor tensor;
  KvCacheView view;
};

WeightMatrixPtr pack(ThreadPool& threads, py::handle source, const std::string& type, std::int64_t rows,
                     std::int64_t cols, py::handle row_order) {
  Operands given;
  const DlpackTensor& tensor = given.read(source, "source");
  const WeightSource weights{tensor.bytes(),
                             tensor.num_bytes(),
                             rows,
                             cols,
                             parse_weight_type(type),
                             row_order.is_none() ? nullptr : given.indices(row_order, "row_order", rows, kAnyIndex)};
  const py::gil_scoped_release unlocked;
  return pack_matrix(weights, threads);
}

void quantize(ThreadPool& threads, py::handle source, const std::string& type, std::int64_t rows, std::int64_t cols,
              py::handle to, const std::string& target) {
  Operands given;
  const DlpackTensor& tensor = given.read(source, "source");
  const DlpackTensor out(to, "out", Access::kWrite);
  const WeightSource weights{tensor.bytes(), tensor.num_bytes(), rows, cols, parse_weight_type(type), nullptr};
  const WeightType blocks = parse_weight_type(target);
  const py::gil_scoped_release unlocked;
  cpu::quantise_rows(weights, blocks, static_cast<std::byte*>(out.bytes()), out.num_bytes(), threads);
}

void unpack(ThreadPool& threads, const WeightMatrix& matrix, py::handle target) {
  const auto* packed = dynamic_cast<const cpu::PackedMatrix*>(&matrix);
  PAGED_CHECK(packed != nullptr, "unpack: the matrix is not packed for the CPU");
  Operands given;
  const MatrixView to = given.out(target);
  ops::check_matrix("unpack", "out", to, {matrix.rows, matrix.cols});
  ops::check_dtype("unpack", "out", to.dtype, DType::kFloat32);
  const py::gil_scoped_release unlocked;
  threads.parallel_for(matrix.rows, [&](std::int64_t row, int) {
    cpu::unpack_row(*packed, row, static_cast<float*>(to.data) + row * to.row_stride);
  });
}

void bind_types(py::module_& parent, py::module_& m) {
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(parent, "ThreadPool",
                                                      "num_threads threads, the caller's among them.")
      .def(py::init([](int num_threads) { return std::make_shared<ThreadPool>(num_threads); }), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads)
      .def_property_readonly("num_nodes", &ThreadPool::num_nodes, "Nodes of memory that have threads.");
  py::class_<WeightMatrix, WeightMatrixPtr>(m, "WeightMatrix",
                                            "Weights [rows, cols] as one device's kernels read them.")
      .def_readonly("rows", &WeightMatrix::rows)
      .def_readonly("cols", &WeightMatrix::cols)
      .def_property_readonly("nbytes", &WeightMatrix::num_bytes);
  py::class_<KvCache>(m, "KvCache",
                      "One layer's cache in a tensor of num_blocks * 2 * heads * block_size * head_dim; of int8 "
                      "bytes, the scales included.")
      .def(py::init<py::handle, std::int32_t, std::int32_t, std::int32_t, std::int32_t>(), py::arg("storage"),
           py::arg("num_blocks"), py::arg("block_size"), py::arg("num_kv_heads"), py::arg("head_dim"));
  m.def("isa", [] { return cpu::kernels().isa; }, "Name of the instruction set the kernels were chosen for.");
  m.def("pack", &pack, "Packs checkpoint rows (any contiguous tensor of their bytes).", py::arg("threads"),
        py::arg("source"), py::arg("type"), py::arg("rows"), py::arg("cols"), py::arg("row_order") = py::none());
  m.def("quantize", &quantize,
        "Writes float rows as the blocks of `target`, \"q8_0\" or \"q4_1\", to the bytes of out.", py::arg("threads"),
        py::arg("source"), py::arg("type"), py::arg("rows"), py::arg("cols"), py::arg("out"), py::arg("target"));
  m.def("unpack", &unpack, "Writes the matrix as float32 to out [rows, cols].", py::arg("threads"), py::arg("matrix"),
        py::arg("out"));
}

void bind_linear(py::module_& m) {
  m.def(
      "linear",
      [](ThreadPool& threads, py::handle x, const std::vector<const WeightMatrix*>& parts, py::handle to,
         py::handle bias) {
        Operands given;
        const MatrixView result = given.out(to);
        for (const WeightMatrix* part : parts) PAGED_CHECK(part != nullptr, "linear: parts has a None");
        const MatrixView input = given.in(x, "x");
        const AlignedBuffer workspace(ops::linear_workspace_bytes(input.rows, input.cols, threads.num_threads()));
        const LinearParams params{
            input,  parts.data(),    static_cast<std::int32_t>(parts.size()), given.floats(bias, "bias", result.cols),
            result, workspace.data()};
        const py::gil_scoped_release unlocked;
        ops::linear(on(threads), params);
      },
      "out = x @ concatenate(parts).T + bias; x [T, K], out [T, N].", py::arg("threads"), py::arg("x"),
      py::arg("parts"), py::arg("out"), py::arg("bias") = py::none());
  m.def(
      "embedding",
      [](ThreadPool& threads, py::handle token_ids, const WeightMatrix& table, py::handle to, float scale) {
        Operands given;
        const MatrixView result = given.out(to);
        const EmbeddingParams params{given.indices(token_ids, "token_ids", result.rows, {0, table.rows}), &table,
                                     result, scale};
        const py::gil_scoped_release unlocked;
        ops::embedding(on(threads), params);
      },
      "out[t] = scale * table[token_ids[t]].", py::arg("threads"), py::arg("token_ids"), py::arg("table"),
      py::arg("out"), py::arg("scale") = 1.0f);
}

void bind_norms(py::module_& m) {
  m.def(
      "rms_norm",
      [](ThreadPool& threads, py::handle x, py::handle weight, float eps, py::handle to) {
        Operands given;
        const DlpackTensor& weights = given.read(weight, "weight");
        const RmsNormParams params{given.in(x, "x"), weights.floats(), weights.num_elements(), eps, given.out(to)};
        const py::gil_scoped_release unlocked;
        ops::rms_norm(on(threads), params);
      },
      "Normalises each group of len(weight) columns of x [T, C].", py::arg("threads"), py::arg("x"), py::arg("weight"),
      py::arg("eps"), py::arg("out"));
  m.def(
      "add_rms_norm",
      [](ThreadPool& threads, py::handle residual, py::handle delta, py::handle weight, float eps,
         py::handle residual_out, py::handle to) {
        Operands given;
        const MatrixView result = given.out(to);
        PAGED_CHECK(!weight.is_none(), "add_rms_norm: no weight");
        const AddRmsNormParams params{given.in(residual, "residual"),
                                      given.in(delta, "delta"),
                                      given.floats(weight, "weight", result.cols),
                                      eps,
                                      given.out(residual_out, "residual_out"),
                                      result};
        const py::gil_scoped_release unlocked;
        ops::add_rms_norm(on(threads), params);
      },
      "residual_out = residual + delta; out = rms_norm(residual_out).", py::arg("threads"), py::arg("residual"),
      py::arg("delta"), py::arg("weight"), py::arg("eps"), py::arg("residual_out"), py::arg("out"));
}

void bind_elementwise(py::module_& m) {
  m.def(
      "add",
      [](ThreadPool& threads, py::handle a, py::handle b, py::handle to) {
        Operands given;
        const AddParams params{given.in(a, "a"), given.in(b, "b"), given.out(to)};
        const py::gil_scoped_release unlocked;
        ops::add(on(threads), params);
      },
      "out = a + b.", py::arg("threads"), py::arg("a"), py::arg("b"), py::arg("out"));
  m.def(
      "gated_activation",
      [](ThreadPool& threads, py::handle gate, py::handle up, const std::string& activation, py::handle to) {
        Operands given;
        const GatedActivationParams params{given.in(gate, "gate"), given.in(up, "up"), parse_activation(activation),
                                           given.out(to)};
        const py::gil_scoped_release unlocked;
        ops::gated_activation(on(threads), params);
      },
      "out = activation(gate) * up; silu, gelu_tanh or gelu_erf.", py::arg("threads"), py::arg("gate"), py::arg("up"),
      py::arg("activation"), py::arg("out"));
  m.def(
      "softcap",
      [](ThreadPool& threads, py::handle x, float cap, py::handle to) {
        Operands given;
        const SoftcapParams params{given.in(x, "x"), cap, given.out(to)};
        const py::gil_scoped_release unlocked;
        ops::softcap(on(threads), params);
      },
      "out = cap * tanh(x / cap).", py::arg("threads"), py::arg("x"), py::arg("cap"), py::arg("out"));
  m.def(
      "gather_rows",
      [](ThreadPool& threads, py::handle x, py::handle rows, py::handle to) {
        Operands given;
        const MatrixView from = given.in(x, "x"), result = given.out(to);
        const GatherRowsParams params{from, given.indices(rows, "rows", result.rows, {0, from.rows}), result};
        const py::gil_scoped_release unlocked;
        ops::gather_rows(on(threads), params);
      },
      "out[i] = x[rows[i]].", py::arg("threads"), py::arg("x"), py::arg("rows"), py::arg("out"));
}

struct RopeShape {
  std::int32_t head_dim;
  bool interleaved;
};

// `positions` count the rows of x and lie in those of the table.
RopeParams rope_params(Operands& given, MatrixView x, py::handle positions, py::handle table, RopeShape shape) {
  const MatrixView rows = given.in(table, "table");
  PAGED_CHECK(!table.is_none() && rows.cols <= 512, "table has rows of ", rows.cols, " elements, at most 512 fit");
  return {x,
          given.indices(positions, "positions", x.rows, {0, rows.rows}),
          given.floats(table, "table", rows.rows * rows.cols),
          static_cast<std::int32_t>(rows.rows),
          shape.head_dim,
          static_cast<std::int32_t>(rows.cols),
          shape.interleaved,
          {}};
}

void bind_cache(py::module_& m) {
  m.def(
      "rope",
      [](ThreadPool& threads, py::handle x, py::handle positions, py::handle table, std::int32_t head_dim,
         py::handle to, bool interleaved) {
        Operands given;
        RopeParams params = rope_params(given, given.in(x, "x"), positions, table, {head_dim, interleaved});
        params.out = given.out(to);
        const py::gil_scoped_release unlocked;
        ops::rope(on(threads), params);
      },
      "Rotates each head of x [T, heads * head_dim]; table [positions, rotary_dim] cosines then sines.",
      py::arg("threads"), py::arg("x"), py::arg("positions"), py::arg("table"), py::arg("head_dim"), py::arg("out"),
      py::arg("interleaved") = false);
  m.def(
      "store_kv",
      [](ThreadPool& threads, py::handle k, py::handle v, py::handle slot_mapping, const KvCache& cache) {
        Operands given;
        const MatrixView keys = given.in(k, "k");
        const StoreKvParams params{keys, given.in(v, "v"),
                                   given.indices(slot_mapping, "slot_mapping", keys.rows, cache.slots()), cache.view};
        const py::gil_scoped_release unlocked;
        ops::store_kv(on(threads), params);
      },
      "Writes rows of k and v [T, heads * head_dim] into their slots.", py::arg("threads"), py::arg("k"), py::arg("v"),
      py::arg("slot_mapping"), py::arg("cache"));
  m.def(
      "rope_store_kv",
      [](ThreadPool& threads, py::handle q, py::handle k, py::handle v, py::handle positions, py::handle table,
         py::handle slot_mapping, const KvCache& cache, py::handle q_out, bool interleaved) {
        Operands given;
        const MatrixView keys = given.in(k, "k");
        const RopeShape shape{cache.view.head_dim, interleaved};
        RopeStoreKvParams params{rope_params(given, given.in(q, "q"), positions, table, shape),
                                 rope_params(given, keys, positions, table, shape),
                                 given.in(v, "v"),
                                 given.indices(slot_mapping, "slot_mapping", keys.rows, cache.slots()),
                                 cache.view,
                                 nullptr,
                                 nullptr,
                                 0.0f};
        params.q.out = given.out(q_out, "q_out");
        const py::gil_scoped_release unlocked;
        ops::rope_store_kv(on(threads), params);
      },
      "rope of q and k, then store_kv.", py::arg("threads"), py::arg("q"), py::arg("k"), py::arg("v"),
      py::arg("positions"), py::arg("table"), py::arg("slot_mapping"), py::arg("cache"), py::arg("q_out"),
      py::arg("interleaved") = false);
  m.def(
      "copy_blocks",
      [](ThreadPool& threads, const KvCache& cache, py::handle source, py::handle destination) {
        Operands given;
        const std::int64_t count = given.read(source, "source").num_elements();
        const CopyBlocksParams params{cache.view, given.indices(source, "source", count, cache.blocks()),
                                      given.indices(destination, "destination", count, cache.blocks()),
                                      static_cast<std::int32_t>(count)};
        const py::gil_scoped_release unlocked;
        ops::copy_blocks(on(threads), params);
      },
      "Copies blocks source[i] to destination[i].", py::arg("threads"), py::arg("cache"), py::arg("source"),
      py::arg("destination"));
}

struct AttentionOptions {
  float scale;
  std::int32_t window;
  float softcap;
};

// Of sequences whose block tables are the rows of `tables`; `rows` is where their numbers may lie.
BatchView attention_batch(Operands& given, py::handle query_start, py::handle seq_lens, py::handle block_tables,
                          const KvCacheView& cache, std::vector<std::int32_t>& rows) {
  BatchView batch;
  const DlpackTensor& lens = given.read(seq_lens, "seq_lens");
  const DlpackTensor& tables = given.read(block_tables, "block_tables");
  batch.num_sequences = static_cast<std::int32_t>(lens.num_elements());
  batch.query_start = given.ints(query_start, "query_start", lens.num_elements() + 1);
  batch.seq_lens = lens.int32s();
  PAGED_CHECK(tables.ndim() == 2 && tables.shape(0) == batch.num_sequences, "block_tables must have a row for each of ",
              batch.num_sequences, " sequences");
  batch.block_tables = tables.int32s();
  batch.block_table_stride = static_cast<std::int32_t>(tables.shape(1));
  rows.resize(static_cast<std::size_t>(batch.num_sequences));
  std::iota(rows.begin(), rows.end(), 0);
  batch.block_table_rows = rows.data();
  batch.num_tokens = batch.query_start[batch.num_sequences];
  check_sequences(batch, {cache.num_blocks, cache.block_size});
  return batch;
}

void run_attention(ThreadPool& threads, AttentionParams params) {
  std::int32_t longest = 1;
  for (std::int32_t i = 0; i < params.batch->num_sequences; ++i) longest = std::max(longest, params.batch->seq_lens[i]);
  // What does not fit together is refused by the op, and needs no workspace.
  const bool fits = std::int64_t{params.num_heads} * params.cache.head_dim == params.q.cols;
  const std::int64_t bytes = ops::attention_workspace_bytes(params.batch->num_tokens, fits ? params.num_heads : 0,
                                                            params.cache.head_dim, longest);
  const auto workspace = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes));
  params.workspace = workspace.get();
  const py::gil_scoped_release unlocked;
  ops::attention(on(threads), params);
}

void bind_attention(py::module_& m) {
  py::class_<AttentionOptions>(m, "AttentionOptions", "scale of the scores; window and softcap, 0 turns them off.")
      .def(py::init<float, std::int32_t, float>(), py::arg("scale"), py::arg("window") = 0, py::arg("softcap") = 0.0f);
  m.def(
      "attention",
      [](ThreadPool& threads, py::handle q, const KvCache& cache, py::handle query_start, py::handle seq_lens,
         py::handle block_tables, py::handle to, std::int32_t num_heads, const AttentionOptions& options,
         py::handle sinks) {
        Operands given;
        std::vector<std::int32_t> rows;
        const BatchView batch = attention_batch(given, query_start, seq_lens, block_tables, cache.view, rows);
        run_attention(threads,
                      {given.in(q, "q"), cache.view, &batch, num_heads, options.window, options.scale, options.softcap,
                       given.floats(sinks, "sinks", num_heads), nullptr, given.out(to), nullptr, nullptr});
      },
      "Causal attention of q [T, heads * head_dim] over the cache; block_tables [sequences, blocks].",
      py::arg("threads"), py::arg("q"), py::arg("cache"), py::arg("query_start"), py::arg("seq_lens"),
      py::arg("block_tables"), py::arg("out"), py::arg("num_heads"), py::arg("options"), py::arg("sinks") = py::none());
}

void bind_sample(py::module_& m) {
  py::class_<SamplingRow>(m, "SamplingRow", "How one row samples; temperature 0 is greedy, top_k 0 keeps all.")
      .def(py::init([](float temperature, float top_p, std::int32_t top_k, std::uint64_t seed, std::int64_t position) {
             PAGED_CHECK(temperature >= 0.0f && top_p >= 0.0f && top_p <= 1.0f && top_k >= 0,
                         "temperature and top_k must not be negative and top_p in [0, 1], got ", temperature, ", ",
                         top_k, ", ", top_p);
             return SamplingRow{temperature, top_p, top_k, seed, position};
           }),
           py::arg("temperature") = 0.0f, py::arg("top_p") = 1.0f, py::arg("top_k") = 0, py::arg("seed") = 0,
           py::arg("position") = 0);
  m.def(
      "sample",
      [](ThreadPool& threads, py::handle logits, const std::vector<SamplingRow>& rows, py::handle token_ids) {
        Operands given;
        const DlpackTensor& tokens = given.read(token_ids, "token_ids", Access::kWrite);
        SampleParams params{given.in(logits, "logits"), rows.data(), nullptr,
                            tokens.writable_int32s(),   nullptr,     nullptr};
        PAGED_CHECK(static_cast<std::int64_t>(rows.size()) == params.logits.rows, "sample: ", params.logits.rows,
                    " rows of logits but ", rows.size(), " SamplingRow");
        PAGED_CHECK(tokens.num_elements() == params.logits.rows, "token_ids must have ", params.logits.rows,
                    " elements, got ", tokens.num_elements());
        const std::int64_t bytes = ops::sample_workspace_bytes(threads.num_threads(), params.logits.cols);
        const auto workspace = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes));
        params.workspace = workspace.get();
        const py::gil_scoped_release unlocked;
        ops::sample(on(threads), params);
      },
      "token_ids[i] sampled from row i of logits float32 [rows, vocab]; -1 for a row that is no distribution.",
      py::arg("threads"), py::arg("logits"), py::arg("rows"), py::arg("token_ids"));
}

}  // namespace
}  // namespace paged::bindings

void paged::bind_ops(py::module_& module) {
  py::module_ m = module.def_submodule("ops", "Every op of the engine on tensors, for tests and benchmarks.");
  bindings::bind_types(module, m);
  bindings::bind_linear(m);
  bindings::bind_norms(m);
  bindings::bind_elementwise(m);
  bindings::bind_cache(m);
  bindings::bind_attention(m);
  bindings::bind_sample(m);
}
