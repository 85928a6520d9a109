// SPDX-License-Identifier: Apache-2.0
// Emulated streams: what is enqueued runs at once, or is recorded while the stream is captured into a graph. With
// GPU_EMU_LAZY=1 in the environment it runs only when somebody waits for the stream, as late as a GPU might: host code
// that reads a result too early, or reuses a buffer that a copy has yet to read, then shows.
#pragma once

#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace gpu_emu {

using Work = std::function<void()>;

struct StreamState {
  std::vector<Work> queue;     // enqueued and not yet run, oldest first
  std::vector<Work> recorded;  // of the capture under way
  bool capturing = false;
};

inline std::mutex& streams_mutex() {
  static std::mutex mutex;
  return mutex;
}
// By handle; null is the default stream.
inline StreamState& stream_state(void* stream) {
  static std::map<void*, StreamState> states;
  const std::lock_guard lock(streams_mutex());
  return states[stream];
}

inline bool is_lazy() {
  const char* lazy = std::getenv("GPU_EMU_LAZY");
  return lazy != nullptr && lazy[0] == '1';
}

inline void finish_stream(void* stream) {
  std::vector<Work> queue = std::exchange(stream_state(stream).queue, {});
  for (const Work& work : queue) work();
}

inline void enqueue(void* stream, Work work) {
  StreamState& state = stream_state(stream);
  if (state.capturing) {
    state.recorded.push_back(std::move(work));
    return;
  }
  state.queue.push_back(std::move(work));
  if (!is_lazy()) finish_stream(stream);
}

}  // namespace gpu_emu
