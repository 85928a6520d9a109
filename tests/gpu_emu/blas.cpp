// SPDX-License-Identifier: Apache-2.0
// The emulator has no vendor's library.
#include "gpu/blas.h"

namespace paged::gpu {

struct Blas::Implementation {};

Blas::Blas(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::load(std::span<const std::string>, std::string* reason) {
  if (reason != nullptr) *reason = "the emulator has none";
  return nullptr;
}

bool Blas::gemm(const GpuContext&, const MatrixView&, const void*, const MatrixView&, bool) { return false; }

}  // namespace paged::gpu
