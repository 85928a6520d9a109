// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/kernels.h"
#include "cpu/isa/tiles.h"

#define PAGED_STRING_OF(x) #x
#define PAGED_STRING(x) PAGED_STRING_OF(x)

namespace paged::cpu::PAGED_ISA_NAMESPACE {

extern const KernelTable kTable;
const KernelTable kTable = {
    .isa = PAGED_STRING(PAGED_ISA_NAMESPACE),
    .linear_rows = kHasTiles ? 64 : 48,
    .linear = linear,
    .attention = attention,
    .attention_merge = attention_merge,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .add = add,
    .rope = rope,
    .store_kv = store_kv,
    .rope_store_kv = rope_store_kv,
    .gated_activation = gated_activation,
    .softcap = softcap,
    .row_max = row_max,
    .exp_row = exp_row,
    .collect = collect,
};

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
