// SPDX-License-Identifier: Apache-2.0
// gpu/runtime.h on the emulator: one device whose memory is the host's. Device and pinned memory start as NaN.
#include "gpu/runtime.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/check.h"
#include "streams.h"

namespace paged::gpu {
namespace {

constexpr std::int64_t kTotalBytes = std::int64_t{4} << 30;

std::byte* allocate(std::int64_t num_bytes, const char* kind) {
  PAGED_CHECK(num_bytes >= 0, "a buffer of ", num_bytes, " bytes");
  if (num_bytes == 0) return nullptr;
  void* data = num_bytes > kTotalBytes
                   ? nullptr
                   : ::operator new(static_cast<std::size_t>(num_bytes), std::align_val_t{256}, std::nothrow);
  if (data == nullptr)
    throw DeviceError("no room for " + std::to_string(num_bytes) + " bytes of " + kind + " memory (emulated)");
  std::memset(data, 0xff, static_cast<std::size_t>(num_bytes));
  return static_cast<std::byte*>(data);
}
void release(std::byte* data) { ::operator delete(data, std::align_val_t{256}); }

// Which host memory asynchronous copies may read and write later: pinned buffers by their end.
struct PinnedRanges {
  std::mutex mutex;
  std::map<const std::byte*, const std::byte*> begin_by_end;

  bool contains(const void* data) {
    const std::lock_guard lock(mutex);
    const auto after = begin_by_end.upper_bound(static_cast<const std::byte*>(data));
    return after != begin_by_end.end() && after->second <= data;
  }
};
PinnedRanges& pinned_ranges() {
  static PinnedRanges* ranges = new PinnedRanges;  // outlives every buffer
  return *ranges;
}

struct EventState {
  void* stream = nullptr;
  std::chrono::steady_clock::time_point reached{};
};
EventState& state_of(void* event) { return *static_cast<EventState*>(event); }

using Recording = std::vector<gpu_emu::Work>;

}  // namespace

std::string_view runtime_name() { return "emulation"; }
int num_devices(std::string*) { return 1; }
DeviceProperties device_properties(int) {
  return {.name = "emulated", .compute_capability = 0, .num_multiprocessors = 4, .total_bytes = kTotalBytes};
}
std::int64_t free_bytes(int) { return kTotalBytes; }
int current_device() { return 0; }
UseDevice::~UseDevice() = default;
void use_device(int device) { PAGED_CHECK(device == 0, "there is one emulated device, not number ", device); }

DeviceBuffer::DeviceBuffer(std::int64_t num_bytes) : data_(allocate(num_bytes, "device")), num_bytes_(num_bytes) {}
DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}
DeviceBuffer::~DeviceBuffer() { release(data_); }

PinnedBuffer::PinnedBuffer(std::int64_t num_bytes)
    : data_(allocate(num_bytes, "page-locked host")), num_bytes_(num_bytes) {
  if (data_ == nullptr) return;
  const std::lock_guard lock(pinned_ranges().mutex);
  pinned_ranges().begin_by_end[data_ + num_bytes] = data_;
}
PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}
PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  {
    const std::lock_guard lock(pinned_ranges().mutex);
    pinned_ranges().begin_by_end.erase(data_ + num_bytes_);
  }
  release(data_);
}

OwnedStream::OwnedStream() : handle_(new char) {}
OwnedStream::~OwnedStream() {
  gpu_emu::finish_stream(handle_);
  delete static_cast<char*>(handle_);
}
void OwnedStream::synchronize() const { gpu::synchronize(handle_); }

Event::Event(bool) : handle_(new EventState) {}
Event::~Event() {
  synchronize();  // an enqueued record would write to it
  delete &state_of(handle_);
}
void Event::record(void* stream) {
  state_of(handle_).stream = stream;
  gpu_emu::enqueue(stream, [event = &state_of(handle_)] { event->reached = std::chrono::steady_clock::now(); });
}
void Event::synchronize() const { gpu_emu::finish_stream(state_of(handle_).stream); }
double Event::seconds_since(const Event& earlier) const {
  return std::chrono::duration<double>(state_of(handle_).reached - state_of(earlier.handle_).reached).count();
}

Graph::Graph(Graph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(executable_, other.executable_);
  return *this;
}
Graph::~Graph() { delete static_cast<Recording*>(executable_); }
void Graph::launch(void* stream) const {
  PAGED_INVARIANT(executable_ != nullptr, "launch of an empty graph");
  for (const gpu_emu::Work& work : *static_cast<Recording*>(executable_)) gpu_emu::enqueue(stream, work);
}
void Graph::begin_capture(void* stream) {
  if (std::exchange(gpu_emu::stream_state(stream).capturing, true)) throw DeviceError("the stream is being captured");
}
void Graph::abandon_capture(void* stream) {
  gpu_emu::StreamState& state = gpu_emu::stream_state(stream);
  state.capturing = false;
  state.recorded.clear();
}
Graph Graph::end_capture(void* stream) {
  gpu_emu::StreamState& state = gpu_emu::stream_state(stream);
  state.capturing = false;
  Graph graph;
  graph.executable_ = new Recording(std::exchange(state.recorded, {}));
  return graph;
}

namespace {

void copy(void* to, const void* from, std::int64_t num_bytes, void* stream, bool waits) {
  if (num_bytes == 0) return;  // perhaps of null
  gpu_emu::enqueue(stream, [=] { std::memcpy(to, from, static_cast<std::size_t>(num_bytes)); });
  if (waits && !gpu_emu::stream_state(stream).capturing) gpu_emu::finish_stream(stream);
}

}  // namespace

// Copies of pageable host memory are done on return, as on a device.
void copy_to_device(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, stream, !pinned_ranges().contains(from));
}
void copy_to_host(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, stream, !pinned_ranges().contains(to));
}
void copy_on_device(void* to, const void* from, std::int64_t num_bytes, void* stream) {
  copy(to, from, num_bytes, stream, false);
}
void fill_zero(void* to, std::int64_t num_bytes, void* stream) {
  if (num_bytes == 0) return;
  gpu_emu::enqueue(stream, [=] { std::memset(to, 0, static_cast<std::size_t>(num_bytes)); });
}
void synchronize(void* stream) {
  if (gpu_emu::stream_state(stream).capturing) throw DeviceError("waiting for a stream that is being captured");
  gpu_emu::finish_stream(stream);
}

}  // namespace paged::gpu
