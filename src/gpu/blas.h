// SPDX-License-Identifier: Apache-2.0
// The vendor's matrix product, loaded at run time: cuBLASLt on NVIDIA. It is what PyTorch brings, so there is nothing
// to link and nothing to ship; without it the engine's own kernels do all the work.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "ops/ops.h"

namespace paged::gpu {

class Blas {
 public:
  // Looks in the folders, then wherever the loader looks. Null when there is none; reason then says why.
  static std::unique_ptr<Blas> load(std::span<const std::string> folders, std::string* reason);
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  ~Blas();

  // out = x @ weight.T, or out += x @ weight.T; weight is row-major [out.cols, x.cols] in x's dtype, sums are float32.
  // The algorithm of a shape is chosen when the shape is first seen; for large ones by trying a few, but never while
  // the stream is being captured. False where the library has no algorithm for the shape.
  bool gemm(const GpuContext& gpu, const MatrixView& x, const void* weight, const MatrixView& out, bool add_to_out);

  struct Implementation;

 private:
  explicit Blas(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace paged::gpu
