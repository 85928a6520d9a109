// SPDX-License-Identifier: Apache-2.0
// No library of AMD's is used yet: the shared kernels do all matrix products.
#include "gpu/blas.h"

namespace paged::gpu {

struct Blas::Implementation {};

Blas::Blas(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::load(std::span<const std::string>, std::string* reason) {
  if (reason != nullptr) *reason = "the HIP build uses none yet";
  return nullptr;
}

bool Blas::gemm(const GpuContext&, const MatrixView&, const void*, const MatrixView&, bool) { return false; }

}  // namespace paged::gpu
