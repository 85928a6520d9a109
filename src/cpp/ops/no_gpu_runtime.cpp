// SPDX-License-Identifier: Apache-2.0
// gpu/runtime.h and gpu/blas.h in a build without a GPU backend: no device is ever found, so nothing else is reached.
#include "base/check.h"
#include "gpu/blas.h"
#include "gpu/runtime.h"

namespace paged::gpu {
namespace {

[[noreturn]] void no_gpu() { throw DeviceError("this build has no GPU backend; reinstall with PAGED_GPU=cuda or hip"); }

}  // namespace

std::string_view runtime_name() { return "none"; }

int num_devices(std::string* reason) {
  if (reason != nullptr) *reason = "this build has no GPU backend";
  return 0;
}
DeviceProperties device_properties(int) { no_gpu(); }
std::int64_t free_bytes(int) { no_gpu(); }
int current_device() { no_gpu(); }
void use_device(int) { no_gpu(); }
UseDevice::~UseDevice() = default;

DeviceBuffer::DeviceBuffer(std::int64_t) { no_gpu(); }
DeviceBuffer::DeviceBuffer(DeviceBuffer&&) noexcept = default;
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&&) noexcept = default;
DeviceBuffer::~DeviceBuffer() = default;

PinnedBuffer::PinnedBuffer(std::int64_t) { no_gpu(); }
PinnedBuffer::PinnedBuffer(PinnedBuffer&&) noexcept = default;
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&&) noexcept = default;
PinnedBuffer::~PinnedBuffer() = default;

OwnedStream::OwnedStream() { no_gpu(); }
OwnedStream::~OwnedStream() = default;
void OwnedStream::synchronize() const { no_gpu(); }

Event::Event(bool) { no_gpu(); }
Event::~Event() = default;
void Event::record(void*) { no_gpu(); }
void Event::synchronize() const { no_gpu(); }
double Event::seconds_since(const Event&) const { no_gpu(); }

Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;
void Graph::launch(void*) const { no_gpu(); }
void Graph::begin_capture(void*) { no_gpu(); }
void Graph::abandon_capture(void*) {}
Graph Graph::end_capture(void*) { no_gpu(); }

void copy_to_device(void*, const void*, std::int64_t, void*) { no_gpu(); }
void copy_to_host(void*, const void*, std::int64_t, void*) { no_gpu(); }
void copy_on_device(void*, const void*, std::int64_t, void*) { no_gpu(); }
void fill_zero(void*, std::int64_t, void*) { no_gpu(); }
void synchronize(void*) { no_gpu(); }

struct Blas::Implementation {};
std::unique_ptr<Blas> Blas::load(std::span<const std::string>, std::string*) { return nullptr; }
Blas::~Blas() = default;
bool Blas::gemm(const GpuContext&, const MatrixView&, const void*, const MatrixView&, bool) { no_gpu(); }

}  // namespace paged::gpu
