// SPDX-License-Identifier: Apache-2.0
// Signals belong to the application: a thread of ours must never be the one that receives them. Threads inherit the
// mask of their maker, so make them inside the scope of one of these.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace paged {

class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t previous_{};
};

}  // namespace paged
