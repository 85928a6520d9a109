// SPDX-License-Identifier: Apache-2.0
// Runs GPU kernels on the CPU: one fiber per GPU thread, blocks one after another. Barriers and warp collectives are
// real rendezvous; divergence that would hang or be undefined on a GPU is reported and aborts. GPU_EMU_WARP is 32 or 64
// (compile once with each); the environment variable GPU_EMU_SEED makes the order of threads and blocks random.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#ifndef GPU_EMU_WARP
#define GPU_EMU_WARP 32
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace gpu_emu {

constexpr int kLanes = GPU_EMU_WARP;
constexpr std::size_t kStackBytes = 256 * 1024;

enum class State { kReady, kAtBlockBarrier, kAtCollective, kDone };

struct Fiber {
  dim3 thread;
  int index = 0;  // in its block
  State state = State::kReady;
  const char* waits_in = "start";
  int parity = 0;
  unsigned exchanges = 0;  // shuffles of this block so far
  bool fresh = true;
  ucontext_t context;
  jmp_buf resume;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  std::uint64_t slot[2] = {};     // what a shuffle or ballot posts, two rounds so that a fast lane may run ahead
  unsigned char payload[2][128];  // what a tensor-core instruction posts
};

// Of some threads of a block, by number (bar.sync).
struct NamedBarrier {
  int arrived = 0;
  unsigned generation = 0;
};

struct Machine {
  dim3 grid, block_dim, block;
  int num_threads = 0;
  Fiber* current = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> dynamic_shared;
  NamedBarrier named_barriers[16];
  std::function<void()> body;
  ucontext_t main_context;
  jmp_buf main_resume;
  unsigned seed = 0;

  unsigned random() { return (seed = seed * 1664525u + 1013904223u) >> 8; }
};

inline Machine& machine() {
  static thread_local Machine the_machine;
  return the_machine;
}

// AddressSanitizer follows swapcontext but not longjmp between stacks; without it longjmp is 50 times faster.
inline void switch_to_main() {
  Machine& m = machine();
  Fiber* self = m.current;
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&self->context, &m.main_context);
#else
  if (!_setjmp(self->resume)) _longjmp(m.main_resume, 1);
#endif
}

inline void wait_in(State state, const char* what) {
  Fiber* self = machine().current;
  self->state = state;
  self->waits_in = what;
  switch_to_main();
}

inline void fiber_entry() {
  Machine& m = machine();
  m.body();
  m.current->state = State::kDone;
  m.current->waits_in = "exit";
  switch_to_main();
  abort();
}

// For loops that wait until another thread changed something.
inline void let_others_run(const char* what) {
  machine().current->waits_in = what;
  switch_to_main();
}

inline void run_until_wait(Fiber* fiber) {
  Machine& m = machine();
  m.current = fiber;
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&m.main_context, &fiber->context);
#else
  if (_setjmp(m.main_resume)) return;
  if (std::exchange(fiber->fresh, false))
    setcontext(&fiber->context);
  else
    _longjmp(fiber->resume, 1);
#endif
}

[[noreturn]] inline void stuck(const char* why) {
  const Machine& m = machine();
  std::fprintf(stderr, "gpu_emu: %s in block (%u, %u, %u)\n", why, m.block.x, m.block.y, m.block.z);
  for (int i = 0; i < m.num_threads; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (i == 0 || m.fibers[at]->waits_in != m.fibers[at - 1]->waits_in)
      std::fprintf(stderr, "  from thread %d: %s\n", i, m.fibers[at]->waits_in);
  }
  abort();
}

inline void start_fibers() {
  Machine& m = machine();
  for (NamedBarrier& barrier : m.named_barriers) barrier = {};
  for (int i = 0; i < m.num_threads; ++i) {
    Fiber& f = *m.fibers[static_cast<std::size_t>(i)];
    f.index = i;
    f.state = State::kReady;
    f.exchanges = 0;
    f.waits_in = "start";
    f.parity = 0;
    f.fresh = true;
    const auto n = static_cast<unsigned>(i);
    f.thread = dim3(n % m.block_dim.x, n / m.block_dim.x % m.block_dim.y, n / (m.block_dim.x * m.block_dim.y));
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_entry, 0);
  }
}

// Releases every warp whose live lanes all wait in the same collective. True if one was.
inline bool release_warps() {
  Machine& m = machine();
  bool released = false;
  for (int first = 0; first < m.num_threads; first += kLanes) {
    int live = 0, waiting = 0;
    const char* what = nullptr;
    for (int i = first; i < first + kLanes && i < m.num_threads; ++i) {
      const Fiber& f = *m.fibers[static_cast<std::size_t>(i)];
      live += f.state != State::kDone;
      if (f.state != State::kAtCollective) continue;
      ++waiting;
      if (what != nullptr && std::strcmp(what, f.waits_in) != 0)
        stuck("lanes of one warp wait in different collectives");
      what = f.waits_in;
    }
    if (waiting == 0 || waiting < live) continue;
    for (int i = first; i < first + kLanes && i < m.num_threads; ++i) {
      Fiber& f = *m.fibers[static_cast<std::size_t>(i)];
      if (f.state == State::kAtCollective) f.state = State::kReady;
    }
    released = true;
  }
  return released;
}

// True if every live thread waited at the block's barrier.
inline bool release_block() {
  Machine& m = machine();
  for (int i = 0; i < m.num_threads; ++i) {
    const State s = m.fibers[static_cast<std::size_t>(i)]->state;
    if (s != State::kAtBlockBarrier && s != State::kDone) return false;
  }
  for (int i = 0; i < m.num_threads; ++i) {
    Fiber& f = *m.fibers[static_cast<std::size_t>(i)];
    if (f.state == State::kAtBlockBarrier) f.state = State::kReady;
  }
  return true;
}

inline void run_block() {
  Machine& m = machine();
  start_fibers();
  std::vector<int> order(static_cast<std::size_t>(m.num_threads));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  while (true) {
    if (m.seed != 0)
      for (std::size_t i = order.size(); i-- > 1;) std::swap(order[i], order[m.random() % (i + 1)]);
    bool ran = false;
    for (int i : order) {
      Fiber* f = m.fibers[static_cast<std::size_t>(i)].get();
      if (f->state != State::kReady) continue;
      run_until_wait(f);
      ran = true;
    }
    int done = 0;
    for (int i = 0; i < m.num_threads; ++i) done += m.fibers[static_cast<std::size_t>(i)]->state == State::kDone;
    if (done == m.num_threads) return;
    if (release_warps()) continue;
    if (release_block()) continue;
    if (!ran) stuck("deadlock: divergent barrier or warp collective");
  }
}

inline void fill_dynamic_shared(std::size_t bytes) {
  Machine& m = machine();
  // The block ends where the allocation ends, as far as alignment allows, so that AddressSanitizer sees an overrun.
  const std::size_t rounded = (bytes + 1023) / 1024 * 1024;
  m.dynamic_shared.reset(static_cast<char*>(std::aligned_alloc(1024, rounded == 0 ? 1024 : rounded)));
  std::memset(m.dynamic_shared.get(), 0xff, rounded);  // NaN, so that reading the unwritten shows
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(m.dynamic_shared.get() + bytes, rounded - bytes);
#endif
}

template <class Body>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Body body) {
  Machine& m = machine();
  m.grid = grid;
  m.block_dim = block;
  m.num_threads = static_cast<int>(block.x * block.y * block.z);
  m.body = body;
  while (static_cast<int>(m.fibers.size()) < m.num_threads) m.fibers.push_back(std::make_unique<Fiber>());
  if (const char* seed = std::getenv("GPU_EMU_SEED")) m.seed = m.seed != 0 ? m.seed : static_cast<unsigned>(atoi(seed));
  const unsigned num_blocks = grid.x * grid.y * grid.z;
  const unsigned shift = m.seed != 0 && num_blocks > 0 ? m.random() % num_blocks : 0;
  for (unsigned i = 0; i < num_blocks; ++i) {
    const unsigned at = (i + shift) % num_blocks;
    m.block = dim3(at % grid.x, at / grid.x % grid.y, at / (grid.x * grid.y));
    fill_dynamic_shared(shared_bytes);
    run_block();
  }
}

inline const Fiber* lane_of(int lane) {
  Machine& m = machine();
  const int i = m.current->index / kLanes * kLanes + lane;
  return lane < 0 || lane >= kLanes || i >= m.num_threads ? nullptr : m.fibers[static_cast<std::size_t>(i)].get();
}

// Posts a value, waits for the warp, reads what lane `from` posted.
template <class T>
T exchange(T value, int from, const char* what) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Fiber* self = machine().current;
  const int round = self->parity;
  self->parity ^= 1;
  ++self->exchanges;
  std::memcpy(&self->slot[round], &value, sizeof(T));
  wait_in(State::kAtCollective, what);
  const Fiber* other = lane_of(from);
  if (other == nullptr) return value;
  if (other->state == State::kDone && other->exchanges < self->exchanges)
    stuck("a shuffle reads a lane that has exited");
  std::memcpy(&value, &other->slot[round], sizeof(T));
  return value;
}

inline std::uint64_t ballot(bool predicate) {
  Fiber* self = machine().current;
  const int round = self->parity;
  self->parity ^= 1;
  self->slot[round] = predicate ? 1 : 0;
  wait_in(State::kAtCollective, "ballot");
  std::uint64_t mask = 0;
  for (int i = 0; i < kLanes; ++i) {
    const Fiber* f = lane_of(i);
    if (f != nullptr && f->state != State::kDone && (f->slot[round] & 1) != 0) mask |= std::uint64_t{1} << i;
  }
  return mask;
}

// Posts a structure (a fragment, an address), waits for the warp; then read(lane) gives what another lane posted.
template <class T>
class WarpPost {
 public:
  WarpPost(const T& value, const char* what) : round_(machine().current->parity) {
    static_assert(sizeof(T) <= sizeof(Fiber::payload[0]));
    Fiber* self = machine().current;
    self->parity ^= 1;
    std::memcpy(self->payload[round_], &value, sizeof(T));
    wait_in(State::kAtCollective, what);
  }
  T read(int lane) const {
    T value;
    std::memcpy(&value, lane_of(lane)->payload[round_], sizeof(T));
    return value;
  }

 private:
  int round_;
};

inline int lane() { return machine().current->index % kLanes; }

}  // namespace gpu_emu
