// SPDX-License-Identifier: Apache-2.0
// The entries of one instruction set's KernelTable: kernels built for it, or a plainer one's where its additional
// instructions make no difference (PAGED_ISA_OF_<KERNEL>, see CMakeLists.txt). Sources in this folder may use no std::
// templates and call no inline function that is not PAGED_INLINE: what they emit out of line must carry the
// instruction set's namespace.
#pragma once

#include "cpu/kernel_table.h"

namespace paged::cpu {

namespace PAGED_ISA_OF_LINEAR {
void linear(const LinearTile& tile);
}
namespace PAGED_ISA_OF_ATTENTION {
void attention(const AttentionTile& tile);
void attention_merge(const AttentionParams& op, std::int64_t token, std::int32_t head, const SoftmaxStates& states,
                     std::int32_t begin, std::int32_t end);
}  // namespace PAGED_ISA_OF_ATTENTION
namespace PAGED_ISA_OF_NORM {
void rms_norm(const RmsNormParams& op, std::int64_t row_begin, std::int64_t row_end);
void add_rms_norm(const AddRmsNormParams& op, std::int64_t row_begin, std::int64_t row_end);
void add(const AddParams& op, std::int64_t row_begin, std::int64_t row_end);
}  // namespace PAGED_ISA_OF_NORM
namespace PAGED_ISA_OF_QUANTISE_ROWS {
void quantise_rows(const MatrixView& x, const QuantisedRows& to, std::int64_t row_begin, std::int64_t row_end);
}
namespace PAGED_ISA_OF_ROPE_STORE {
void rope(const RopeParams& op, std::int64_t row_begin, std::int64_t row_end);
void store_kv(const StoreKvParams& op, std::int64_t row_begin, std::int64_t row_end);
void rope_store_kv(const RopeStoreKvParams& op, std::int64_t row_begin, std::int64_t row_end);
}  // namespace PAGED_ISA_OF_ROPE_STORE
namespace PAGED_ISA_OF_ACTIVATION {
void gated_activation(const GatedActivationParams& op, std::int64_t row_begin, std::int64_t row_end);
void softcap(const SoftcapParams& op, std::int64_t row_begin, std::int64_t row_end);
}  // namespace PAGED_ISA_OF_ACTIVATION
namespace PAGED_ISA_OF_SAMPLE {
float row_max(const float* row, std::int64_t n);
void exp_row(const ExpRow& row);
std::int64_t collect(const float* row, std::int64_t n, float threshold, std::int32_t* out, std::int64_t capacity,
                     std::int64_t begin, std::int64_t* next);
}  // namespace PAGED_ISA_OF_SAMPLE

}  // namespace paged::cpu
