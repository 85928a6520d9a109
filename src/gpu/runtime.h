// SPDX-License-Identifier: Apache-2.0
// The vendor's runtime as the rest of the engine sees it: devices, memory, streams, events, graphs. No vendor header is
// included, so plain C++ may use it. Everything throws DeviceError (gpu/device_error.h) with the vendor's own words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "gpu/device_error.h"

namespace paged::gpu {

std::string_view runtime_name();  // "cuda", "hip", "emulation", or "none" in a build without a GPU backend

// 0 without a driver; reason then says why.
int num_devices(std::string* reason = nullptr);

struct DeviceProperties {
  std::string name;
  int compute_capability = 0;  // 90 for sm_90; 0 on other vendors
  int num_multiprocessors = 0;
  std::int64_t total_bytes = 0;
};
DeviceProperties device_properties(int device);
std::int64_t free_bytes(int device);
int current_device();  // of the calling thread
void use_device(int device);

// Makes a device the calling thread's current one for as long as it lives: what is current belongs to the application.
class UseDevice {
 public:
  explicit UseDevice(int device) : previous_(current_device()) { use_device(device); }
  UseDevice(const UseDevice&) = delete;
  UseDevice& operator=(const UseDevice&) = delete;
  ~UseDevice();

 private:
  int previous_;
};

// Owns device memory. Throws DeviceError with the sizes when there is not enough.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::int64_t num_bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();
  std::byte* data() const { return data_; }
  std::int64_t num_bytes() const { return num_bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t num_bytes_ = 0;
};

// Owns page-locked host memory: what asynchronous copies read and write.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(std::int64_t num_bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();
  std::byte* data() const { return data_; }
  std::int64_t num_bytes() const { return num_bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t num_bytes_ = 0;
};

class OwnedStream {
 public:
  OwnedStream();
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream();
  void* handle() const { return handle_; }
  void synchronize() const;

 private:
  void* handle_ = nullptr;
};

class Event {
 public:
  explicit Event(bool timed = false);
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();
  void record(void* stream);
  void synchronize() const;
  double seconds_since(const Event& earlier) const;  // both timed and complete

 private:
  void* handle_ = nullptr;
};

// A recorded sequence of launches. Movable, empty until captured.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();
  bool empty() const { return executable_ == nullptr; }
  void launch(void* stream) const;

  // Runs body, which enqueues on the stream, without executing it, and keeps what it enqueued.
  template <class Body>
  static Graph capture(void* stream, Body&& body) {
    begin_capture(stream);
    try {
      body();
    } catch (...) {
      abandon_capture(stream);
      throw;
    }
    return end_capture(stream);
  }

 private:
  static void begin_capture(void* stream);
  static void abandon_capture(void* stream);
  static Graph end_capture(void* stream);
  void* executable_ = nullptr;
};

void copy_to_device(void* to, const void* from, std::int64_t num_bytes, void* stream);
void copy_to_host(void* to, const void* from, std::int64_t num_bytes, void* stream);
void copy_on_device(void* to, const void* from, std::int64_t num_bytes, void* stream);
void fill_zero(void* to, std::int64_t num_bytes, void* stream);
void synchronize(void* stream);

}  // namespace paged::gpu
