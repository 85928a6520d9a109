// SPDX-License-Identifier: Apache-2.0
// GPUs and the executor on them. Without a GPU backend everything is there and says that there is none.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/bind_steps.h"
#include "bindings/module.h"
#include "exec/gpu_executor.h"
#include "gpu/runtime.h"

namespace py = pybind11;

namespace paged {
namespace {

std::unique_ptr<GpuExecutor> make_executor(std::shared_ptr<Program> program, const GpuExecutorOptions& options) {
  const py::gil_scoped_release release;
  return GpuExecutor::make(std::move(program), options);
}

void bind_devices(py::module_& module) {
  py::register_exception<gpu::DeviceError>(module, "DeviceError", PyExc_RuntimeError).doc() =
      "What the GPU's runtime reported: out of memory, a failed launch, no driver.";
  module.def(
      "gpu_runtime", [] { return std::string(gpu::runtime_name()); },
      "'cuda', 'hip', 'emulation' (on the CPU, for tests), or 'none'.");
  module.def(
      "gpu_devices",
      [] {
        std::string reason;
        const int count = gpu::num_devices(&reason);
        return py::make_tuple(count, reason);
      },
      "(number of devices, why there is none).");
  module.def(
      "gpu_properties",
      [](int device) {
        const gpu::DeviceProperties p = gpu::device_properties(device);
        return py::make_tuple(p.name, p.compute_capability, p.num_multiprocessors, p.total_bytes);
      },
      "(name, compute capability, multiprocessors, bytes of memory).", py::arg("device"));
  module.def("gpu_free_bytes", &gpu::free_bytes, py::arg("device"));
}

}  // namespace

void bind_gpu(py::module_& module) {
  bind_devices(module);
  py::classh<GpuExecutor> executor(module, "GpuExecutor",
                                   "Runs a Program whose matrices lie on a GPU. One engine owns it.");
  executor
      .def(py::init([](std::shared_ptr<Program> program, std::int32_t max_seq_len, std::int32_t num_blocks,
                       std::int32_t block_size, std::int32_t max_num_sequences, int device, bool batch_invariant,
                       std::vector<std::string> blas_folders) {
             return make_executor(std::move(program), {{max_seq_len, num_blocks, block_size},
                                                       max_num_sequences,
                                                       device,
                                                       batch_invariant,
                                                       std::move(blas_folders)});
           }),
           py::kw_only(), py::arg("program").none(false), py::arg("max_seq_len"), py::arg("num_blocks"),
           py::arg("block_size"), py::arg("max_num_sequences"), py::arg("device"), py::arg("batch_invariant"),
           py::arg("blas_folders"))
      .def_property_readonly("blas_problem", &GpuExecutor::blas_problem, "Why there is no GEMM library, or ''.");
  bind_steps(executor);
}

}  // namespace paged
