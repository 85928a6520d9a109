// SPDX-License-Identifier: Apache-2.0
#include "exec/kv_blocks.h"

#include <cstring>

#include "base/aligned_buffer.h"

namespace paged {

std::shared_ptr<std::byte> HostKvBlocks::allocate_host(std::int64_t num_bytes) const {
  auto buffer = std::make_shared<AlignedBuffer>(num_bytes);
  return {buffer, buffer->data()};
}

std::shared_ptr<std::byte> GpuKvBlocks::allocate_host(std::int64_t num_bytes) const {
  const gpu::UseDevice scope(device_);
  auto buffer = std::make_shared<gpu::PinnedBuffer>(num_bytes);
  return {buffer, buffer->data()};
}

void HostKvBlocks::read(std::int32_t block, std::byte* to) {
  for (std::int32_t layer = 0; layer < pool_.num_layers; ++layer)
    std::memcpy(to + layer * pool_.piece_bytes, pool_.piece(layer, block), static_cast<std::size_t>(pool_.piece_bytes));
}

void HostKvBlocks::write(std::int32_t block, const std::byte* from) {
  for (std::int32_t layer = 0; layer < pool_.num_layers; ++layer)
    std::memcpy(pool_.piece(layer, block), from + layer * pool_.piece_bytes,
                static_cast<std::size_t>(pool_.piece_bytes));
}

void GpuKvBlocks::read(std::int32_t block, std::byte* to) {
  const std::lock_guard lock(mutex_);
  const gpu::UseDevice scope(device_);
  for (std::int32_t layer = 0; layer < pool_.num_layers; ++layer)
    gpu::copy_to_host(to + layer * pool_.piece_bytes, pool_.piece(layer, block), pool_.piece_bytes, stream_.handle());
  stream_.synchronize();
}

void GpuKvBlocks::write(std::int32_t block, const std::byte* from) {
  const std::lock_guard lock(mutex_);
  const gpu::UseDevice scope(device_);
  for (std::int32_t layer = 0; layer < pool_.num_layers; ++layer)
    gpu::copy_to_device(pool_.piece(layer, block), from + layer * pool_.piece_bytes, pool_.piece_bytes,
                        stream_.handle());
  stream_.synchronize();
}

}  // namespace paged
