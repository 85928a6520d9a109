// SPDX-License-Identifier: Apache-2.0
// gpu/runtime.h on whatever device is there.
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "../cpp/check.h"
#include "gpu/runtime.h"

namespace paged::gpu {
namespace {

TEST(a_device_has_a_name_and_memory) {
  const DeviceProperties properties = device_properties(0);
  CHECK(!properties.name.empty());
  CHECK(properties.num_multiprocessors > 0);
  CHECK(properties.total_bytes > 0);
  CHECK(free_bytes(0) <= properties.total_bytes);
}

TEST(what_is_copied_there_comes_back) {
  const OwnedStream stream;
  const PinnedBuffer sent(4096), received(4096);
  const DeviceBuffer first(4096), second(4096);
  for (int i = 0; i < 4096; ++i) sent.data()[i] = static_cast<std::byte>(i * 7);
  copy_to_device(first.data(), sent.data(), 4096, stream.handle());
  copy_on_device(second.data(), first.data(), 4096, stream.handle());
  fill_zero(second.data(), 16, stream.handle());
  copy_to_host(received.data(), second.data(), 4096, stream.handle());
  stream.synchronize();
  for (int i = 0; i < 4096; ++i) CHECK(received.data()[i] == (i < 16 ? std::byte{0} : sent.data()[i]), "byte ", i);
}

TEST(a_moved_buffer_belongs_to_its_new_owner) {
  DeviceBuffer first(256);
  std::byte* const data = first.data();
  const DeviceBuffer second(std::move(first));
  CHECK(second.data() == data);
  CHECK_EQ(second.num_bytes(), 256);
  CHECK(DeviceBuffer(0).data() == nullptr);
}

TEST(too_large_a_buffer_says_how_large) {
  const std::int64_t num_bytes = std::int64_t{1} << 45;
  CHECK_THROWS(DeviceBuffer(num_bytes), DeviceError, std::to_string(num_bytes));
  const DeviceBuffer buffer(64);
  fill_zero(buffer.data(), 64, nullptr);  // the failure is forgotten
  synchronize(nullptr);
}

TEST(a_graph_does_what_was_captured_with_the_data_of_its_launch) {
  const OwnedStream stream;
  const PinnedBuffer sent(64), received(64);
  const DeviceBuffer buffer(64);
  std::memset(sent.data(), 1, 64);
  std::memset(received.data(), 9, 64);
  const Graph graph = Graph::capture(stream.handle(), [&] {
    copy_to_device(buffer.data(), sent.data(), 64, stream.handle());
    copy_to_host(received.data(), buffer.data(), 64, stream.handle());
  });
  stream.synchronize();
  CHECK(received.data()[0] == std::byte{9}, "captured is not executed");
  for (int round = 1; round <= 3; ++round) {
    std::memset(sent.data(), round, 64);
    graph.launch(stream.handle());
    stream.synchronize();
    CHECK(received.data()[63] == static_cast<std::byte>(round));
  }
}

TEST(an_exception_in_a_capture_leaves_the_stream_usable) {
  const OwnedStream stream;
  const DeviceBuffer buffer(64);
  struct Oops {};
  bool caught = false;
  try {
    static_cast<void>(Graph::capture(stream.handle(), [] { throw Oops{}; }));
  } catch (const Oops&) {
    caught = true;
  }
  CHECK(caught);
  fill_zero(buffer.data(), 64, stream.handle());
  stream.synchronize();
}

TEST(events_measure_time) {
  const OwnedStream stream;
  const DeviceBuffer buffer(1 << 20);
  Event begin(true), end(true);
  begin.record(stream.handle());
  fill_zero(buffer.data(), buffer.num_bytes(), stream.handle());
  end.record(stream.handle());
  end.synchronize();
  CHECK(end.seconds_since(begin) >= 0);
}

}  // namespace
}  // namespace paged::gpu
