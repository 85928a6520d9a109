// SPDX-License-Identifier: Apache-2.0
#include "engine/block_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/check.h"

namespace paged {
namespace {

std::string text_of(int error) { return std::generic_category().message(error); }

// Four chains, each of which a changed word changes for good: multiplying by an odd number and turning lose nothing.
std::uint64_t checksum(const std::byte* data, std::int64_t num_bytes) {
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
  std::uint64_t chains[4] = {1, 2, 3, 4};
  const auto add = [&](int chain, std::uint64_t word) {
    chains[chain] = std::rotl((chains[chain] ^ word) * kMultiplier, 29);
  };
  std::int64_t i = 0;
  for (; i + 32 <= num_bytes; i += 32)
    for (int chain = 0; chain < 4; ++chain) {
      std::uint64_t word;
      std::memcpy(&word, data + i + 8 * chain, 8);
      add(chain, word);
    }
  for (; i < num_bytes; ++i) add(0, std::to_integer<std::uint64_t>(data[i]));
  for (int chain = 1; chain < 4; ++chain) add(0, chains[chain]);
  return chains[0];
}

int open_nameless(const std::string& folder) {
  std::string path = folder + "/paged-blocks-XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);  // of this user alone, and surely new
  PAGED_CHECK(file >= 0, "disk_cache_path='", folder, "': no file can be made there: ", text_of(errno));
  unlink(path.c_str());
  return file;
}

// 0 or an error. Asks first: some file systems take minutes to find out that there is too little.
int reserve(int file, std::int64_t num_bytes) {
  struct statvfs system;
  if (fstatvfs(file, &system) == 0 && system.f_bavail < static_cast<std::uint64_t>(num_bytes) / system.f_frsize)
    return ENOSPC;
  int failed = fallocate(file, 0, 0, num_bytes);
  if (failed != 0 && errno == EOPNOTSUPP) failed = ftruncate(file, num_bytes);
  return failed == 0 ? 0 : errno;
}

// Calls transfer(done) for what is left until all bytes are through. 0: none is left to be had; negative: errno says.
template <typename Transfer>
void move_all(std::int64_t num_bytes, const char* what, const Transfer& transfer) {
  for (std::int64_t done = 0; done < num_bytes;) {
    const ssize_t count = transfer(done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      throw BlockFileError(std::string("a block cannot be ") + what + ": " +
                           (count < 0 ? text_of(errno) : "the file has been cut off"));
    done += count;
  }
}

}  // namespace

BlockFile::BlockFile(const std::string& folder, std::int32_t num_blocks, std::int64_t block_bytes)
    : file_(open_nameless(folder)), block_bytes_(block_bytes) {
  const std::int64_t num_bytes = num_blocks * block_bytes;
  const int error = reserve(file_, num_bytes);
  if (error == 0) {
    checksums_.resize(static_cast<std::size_t>(num_blocks));
    return;
  }
  close(file_);
  PAGED_CHECK(false, "disk_cache: no room for ", num_bytes, " bytes in '", folder, "' (", text_of(error),
              "); make it smaller, or set disk_cache_path to a folder with more room");
}

BlockFile::~BlockFile() {
  // What it frees now, closing would free too: a failure is nobody's loss. (A cast to void does not satisfy every GCC.)
  [[maybe_unused]] const int error = ftruncate(file_, 0);
  close(file_);
}

void BlockFile::write(std::int32_t index, const std::byte* from) {
  const std::uint64_t sum = checksum(from, block_bytes_);
  checksums_.at(static_cast<std::size_t>(index)) = ~sum;
  move_all(block_bytes_, "written to the disk", [&](std::int64_t done) {
    return pwrite(file_, from + done, static_cast<std::size_t>(block_bytes_ - done), index * block_bytes_ + done);
  });
  checksums_[static_cast<std::size_t>(index)] = sum;
}

void BlockFile::read(std::int32_t index, std::byte* to) const {
  move_all(block_bytes_, "read from the disk", [&](std::int64_t done) {
    return pread(file_, to + done, static_cast<std::size_t>(block_bytes_ - done), index * block_bytes_ + done);
  });
  if (checksum(to, block_bytes_) != checksums_.at(static_cast<std::size_t>(index)))
    throw BlockFileError("a block cannot be read from the disk: its checksum differs");
}

}  // namespace paged
