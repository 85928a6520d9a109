// SPDX-License-Identifier: Apache-2.0
#include "prefill_attention_sm90.cuh"
