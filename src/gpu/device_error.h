// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>

namespace paged::gpu {

// What the vendor's runtime reported: out of memory, a failed launch, no driver.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace paged::gpu
