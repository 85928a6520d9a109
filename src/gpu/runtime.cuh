// SPDX-License-Identifier: Apache-2.0
// gpu/runtime.h, once for every vendor: their runtimes differ in a prefix. The few calls that differ in more are in
// each vendor's runtime_spelling.h. The emulator's runtime is tests/gpu_emu/runtime.cpp.
#pragma once

#include <utility>

#include "base/check.h"
#include "gpu/gpu.h"
#include "gpu/runtime.h"
#include "runtime_spelling.h"

namespace paged::gpu {
namespace {

Stream stream_of(void* handle) { return static_cast<Stream>(handle); }
GPU_API(Event_t) event_of(void* handle) { return static_cast<GPU_API(Event_t)>(handle); }

// The runtime remembers its last error until somebody asks; whoever launches next would take it for its own.
void forget_error() { static_cast<void>(GPU_API(GetLastError)()); }

[[noreturn]] void throw_no_memory(const char* kind, std::int64_t num_bytes, GPU_API(Error_t) error) {
  forget_error();
  std::size_t free = 0, total = 0;
  std::string text = "no room for " + std::to_string(num_bytes) + " bytes of " + kind + " memory";
  if (GPU_API(MemGetInfo)(&free, &total) == GPU_API(Success))
    text += "; the device has " + std::to_string(free) + " of " + std::to_string(total) + " bytes free";
  throw DeviceError(text + " (" + GPU_API(GetErrorName)(error) + ": " + GPU_API(GetErrorString)(error) + ")");
}

}  // namespace

std::string_view runtime_name() { return kRuntimeName; }

int num_devices(std::string* reason) {
  int count = 0;
  const GPU_API(Error_t) error = GPU_API(GetDeviceCount)(&count);
  if (error == GPU_API(Success) && count > 0) return count;
  forget_error();
  if (reason != nullptr) *reason = error == GPU_API(Success) ? "no device" : GPU_API(GetErrorString)(error);
  return 0;
}

DeviceProperties device_properties(int device) {
  VendorProperties found;
  check(GPU_API(GetDeviceProperties)(&found, device), "device properties");
  return {.name = found.name,
          .compute_capability = compute_capability_of(found),
          .num_multiprocessors = found.multiProcessorCount,
          .total_bytes = static_cast<std::int64_t>(found.totalGlobalMem)};
}

std::int64_t free_bytes(int device) {
  const UseDevice scope(device);
  std::size_t free = 0, total = 0;
  check(GPU_API(MemGetInfo)(&free, &total), "free device memory");
  return static_cast<std::int64_t>(free);
}

int current_device() {
  int device = 0;
  check(GPU_API(GetDevice)(&device), "current device");
  return device;
}
void use_device(int device) { check(GPU_API(SetDevice)(device), "choosing a device"); }
UseDevice::~UseDevice() {
  if (GPU_API(SetDevice)(previous_) != GPU_API(Success)) forget_error();
}

DeviceBuffer::DeviceBuffer(std::int64_t num_bytes) : num_bytes_(num_bytes) {
  PAGED_CHECK(num_bytes >= 0, "a device buffer of ", num_bytes, " bytes");
  if (num_bytes == 0) return;
  void* data = nullptr;
  const GPU_API(Error_t) error = GPU_API(Malloc)(&data, static_cast<std::size_t>(num_bytes));
  if (error != GPU_API(Success)) throw_no_memory("device", num_bytes, error);
  data_ = static_cast<std::byte*>(data);
}
DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}
DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr && GPU_API(Free)(data_) != GPU_API(Success)) forget_error();
}

PinnedBuffer::PinnedBuffer(std::int64_t num_bytes) : num_bytes_(num_bytes) {
  PAGED_CHECK(num_bytes >= 0, "a pinned buffer of ", num_bytes, " bytes");
  if (num_bytes == 0) return;
  void* data = nullptr;
  const GPU_API(Error_t) error = allocate_pinned(&data, static_cast<std::size_t>(num_bytes));
  if (error != GPU_API(Success)) throw_no_memory("page-locked host", num_bytes, error);
  data_ = static_cast<std::byte*>(data);
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr && free_pinned(data_) != GPU_API(Success)) forget_error();
}

OwnedStream::OwnedStream() {
  Stream stream = nullptr;
  // Non-blocking: the default stream belongs to the application and must neither wait for ours nor hold it up.
  check(GPU_API(StreamCreateWithFlags)(&stream, GPU_API(StreamNonBlocking)), "a stream");
  handle_ = stream;
}
OwnedStream::~OwnedStream() {
  if (GPU_API(StreamDestroy)(stream_of(handle_)) != GPU_API(Success)) forget_error();
}
void OwnedStream::synchronize() const { gpu::synchronize(handle_); }

Event::Event(bool timed) {
  // Who waits for one sleeps: the processor belongs to the application.
  constexpr unsigned kUntimed = GPU_API(EventDisableTiming) | GPU_API(EventBlockingSync);
  GPU_API(Event_t) event = nullptr;
  check(GPU_API(EventCreateWithFlags)(&event, timed ? GPU_API(EventDefault) : kUntimed), "an event");
  handle_ = event;
}
Event::~Event() {
  if (GPU_API(EventDestroy)(event_of(handle_)) != GPU_API(Success)) forget_error();
}
void Event::record(void* stream) { check(GPU_API(EventRecord)(event_of(handle_), stream_of(stream)), "event"); }
void Event::synchronize() const { check(GPU_API(EventSynchronize)(event_of(handle_)), "waiting for the device"); }
double Event::seconds_since(const Event& earlier) const {
  float milliseconds = 0;
  check(GPU_API(EventElapsedTime)(&milliseconds, event_of(earlier.handle_), event_of(handle_)), "elapsed time");
  return milliseconds * 1e-3;
}

Graph::Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(executable_, other.executable_);
  return *this;
}
Graph::~Graph() {
  if (executable_ == nullptr) return;
  if (GPU_API(GraphExecDestroy)(static_cast<GPU_API(GraphExec_t)>(executable_)) != GPU_API(Success)) forget_error();
}
void Graph::launch(void* stream) const {
  PAGED_INVARIANT(executable_ != nullptr, "launch of an empty graph");
  check(GPU_API(GraphLaunch)(static_cast<GPU_API(GraphExec_t)>(executable_), stream_of(stream)), "graph launch");
}

void Graph::begin_capture(void* stream) {
  // Thread-local: what other threads of the application do meanwhile is their business.
  check(GPU_API(StreamBeginCapture)(stream_of(stream), GPU_API(StreamCaptureModeThreadLocal)), "graph capture");
}
void Graph::abandon_capture(void* stream) {
  GPU_API(Graph_t) graph = nullptr;
  static_cast<void>(GPU_API(StreamEndCapture)(stream_of(stream), &graph));
  if (graph != nullptr) static_cast<void>(GPU_API(GraphDestroy)(graph));
  forget_error();
}
Graph Graph::end_capture(void* stream) {
  GPU_API(Graph_t) graph = nullptr;
  check(GPU_API(StreamEndCapture)(stream_of(stream), &graph), "end of a graph capture");
  GPU_API(GraphExec_t) executable = nullptr;
  const GPU_API(Error_t) error = instantiate_graph(&executable, graph);
  static_cast<void>(GPU_API(GraphDestroy)(graph));
  check(error, "making a graph executable");
  Graph result;
  result.executable_ = executable;
  return result;
}

namespace {

void copy(void* to, const void* from, std::int64_t num_bytes, GPU_API(MemcpyKind) kind, void* stream) {
  check(GPU_API(MemcpyAsync)(to, from, static_cast<std::size_t>(num_bytes), kind, stream_of(stream)), "copy");
}

}  // namespace

void copy_to_device(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, GPU_API(MemcpyHostToDevice), stream);
}
void copy_to_host(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, GPU_API(MemcpyDeviceToHost), stream);
}
void copy_on_device(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, GPU_API(MemcpyDeviceToDevice), stream);
}
void fill_zero(void* to, std::int64_t num_bytes, void* stream) {
  check(GPU_API(MemsetAsync)(to, 0, static_cast<std::size_t>(num_bytes), stream_of(stream)), "fill");
}
void synchronize(void* stream) { check(GPU_API(StreamSynchronize)(stream_of(stream)), "waiting for the device"); }

}  // namespace paged::gpu
