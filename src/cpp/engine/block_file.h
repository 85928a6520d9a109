// SPDX-License-Identifier: Apache-2.0
// The disk's tier: a file of blocks that only this process can reach. It has no name from the moment it is made, so
// that the system takes it back however the process ends, and all of its bytes are reserved at once, so that they are
// there when they are needed. A checksum of each block is kept in memory: what comes back is what was written, or an
// error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace paged {

class BlockFileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One thread at a time.
class BlockFile {
 public:
  // Throws std::invalid_argument if the folder cannot be written to or has no room for it.
  BlockFile(const std::string& folder, std::int32_t num_blocks, std::int64_t block_bytes);
  ~BlockFile();  // gives the bytes back, whoever inherited the open file
  BlockFile(const BlockFile&) = delete;
  BlockFile& operator=(const BlockFile&) = delete;

  // Both throw BlockFileError. What a failed write leaves cannot be read.
  void write(std::int32_t index, const std::byte* from);
  void read(std::int32_t index, std::byte* to) const;

 private:
  int file_ = -1;
  std::int64_t block_bytes_;
  std::vector<std::uint64_t> checksums_;  // [num_blocks]
};

}  // namespace paged
