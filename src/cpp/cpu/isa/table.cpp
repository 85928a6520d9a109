// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa/kernels.h"
#include "cpu/isa/tiles.h"
#include "cpu/isa/vec.h"

#define PAGED_STRING_OF(x) #x
#define PAGED_STRING(x) PAGED_STRING_OF(x)

namespace paged::cpu::PAGED_ISA_NAMESPACE {

extern const KernelTable kTable;
const KernelTable kTable = {
    .isa = PAGED_STRING(PAGED_ISA_NAMESPACE),
    .linear_tile = {kHasTiles ? 64 : 48, kMaxLinearTile.panels, 1},
    .bfloat16_tile =
        kHasTiles ? kMaxBFloat16Tile : LinearTileSize{48, kDotBf16 ? kPairPanels : kMaxLinearTile.panels, 1},
    .integer_tile = kMaxLinearTile,
    .code_tile = kMaxCodeTile,
    .fine_tile_rows = kHasTiles ? 9 : 0,
    .coarse_tile_rows = kHasTiles ? 40 : 0,
    .query_rows = kDotBf16 ? kMaxQueryRows : 32,
    .linear = PAGED_ISA_OF_LINEAR::linear,
    .quantise_rows = PAGED_ISA_OF_QUANTISE_ROWS::quantise_rows,
    .attention = PAGED_ISA_OF_ATTENTION::attention,
    .attention_merge = PAGED_ISA_OF_ATTENTION::attention_merge,
    .rms_norm = PAGED_ISA_OF_NORM::rms_norm,
    .add_rms_norm = PAGED_ISA_OF_NORM::add_rms_norm,
    .add = PAGED_ISA_OF_NORM::add,
    .rope = PAGED_ISA_OF_ROPE_STORE::rope,
    .store_kv = PAGED_ISA_OF_ROPE_STORE::store_kv,
    .rope_store_kv = PAGED_ISA_OF_ROPE_STORE::rope_store_kv,
    .gated_activation = PAGED_ISA_OF_ACTIVATION::gated_activation,
    .softcap = PAGED_ISA_OF_ACTIVATION::softcap,
    .row_max = PAGED_ISA_OF_SAMPLE::row_max,
    .exp_row = PAGED_ISA_OF_SAMPLE::exp_row,
    .collect = PAGED_ISA_OF_SAMPLE::collect,
};

}  // namespace paged::cpu::PAGED_ISA_NAMESPACE
