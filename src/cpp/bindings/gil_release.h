// SPDX-License-Identifier: Apache-2.0
// Lets other threads have the GIL while this one waits.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace paged {

// Before Python 3.14, a daemon thread that wants the GIL back while the interpreter is torn down is ended by an
// unwinding that turns into std::terminate at the first destructor. Here it sleeps until the process is gone, as 3.14
// does.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace paged
