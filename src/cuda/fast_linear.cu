// SPDX-License-Identifier: Apache-2.0
#include "cuda/fast_linear.cuh"
