// SPDX-License-Identifier: Apache-2.0
#include "gpu/row_ops.cuh"
