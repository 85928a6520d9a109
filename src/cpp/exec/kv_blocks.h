// SPDX-License-Identifier: Apache-2.0
// A KV pool's blocks as bytes: what moves them to the host's memory and back. The order of the bytes is the backend's
// own; layout() names it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>

#include "gpu/runtime.h"

namespace paged {

// Any thread may call, while steps run: whoever calls sees to it that no step in flight writes the block, nor reads one
// that is written here.
class KvBlocks {
 public:
  virtual ~KvBlocks() = default;

  virtual std::int64_t block_bytes() const = 0;  // all layers
  virtual std::string_view layout() const = 0;
  // Memory that copies are fast from and to.
  virtual std::shared_ptr<std::byte> allocate_host(std::int64_t num_bytes) const = 0;
  // Both return when the copy is done.
  virtual void read(std::int32_t block, std::byte* to) = 0;
  virtual void write(std::int32_t block, const std::byte* from) = 0;
};

// Layer after layer, and in each block after block.
struct KvPoolSpan {
  std::byte* data = nullptr;
  std::int64_t layer_bytes = 0;
  std::int64_t piece_bytes = 0;  // of a block in one layer
  std::int32_t num_layers = 0;

  std::byte* piece(std::int32_t layer, std::int32_t block) const {
    return data + layer * layer_bytes + block * piece_bytes;
  }
};

class HostKvBlocks final : public KvBlocks {
 public:
  explicit HostKvBlocks(const KvPoolSpan& pool) : pool_(pool) {}
  std::int64_t block_bytes() const override { return pool_.piece_bytes * pool_.num_layers; }
  std::string_view layout() const override { return "cpu"; }
  std::shared_ptr<std::byte> allocate_host(std::int64_t num_bytes) const override;
  void read(std::int32_t block, std::byte* to) override;
  void write(std::int32_t block, const std::byte* from) override;

 private:
  KvPoolSpan pool_;
};

// Copies on a stream of its own, so that they wait for no step.
class GpuKvBlocks final : public KvBlocks {
 public:
  GpuKvBlocks(const KvPoolSpan& pool, int device) : pool_(pool), device_(device) {}
  std::int64_t block_bytes() const override { return pool_.piece_bytes * pool_.num_layers; }
  std::string_view layout() const override { return "gpu"; }
  std::shared_ptr<std::byte> allocate_host(std::int64_t num_bytes) const override;
  void read(std::int32_t block, std::byte* to) override;
  void write(std::int32_t block, const std::byte* from) override;

 private:
  KvPoolSpan pool_;
  int device_;
  std::mutex mutex_;
  gpu::OwnedStream stream_;
};

}  // namespace paged
