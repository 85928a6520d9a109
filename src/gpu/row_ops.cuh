// SPDX-License-Identifier: Apache-2.0
// Ops that compute every element on its own: out[i] = fn(a[i], b[i]), where the rows of a may be picked by a list.
#pragma once

#include "gpu/device_matrix.h"
#include "gpu/rows.h"
#include "ops/gpu_ops.h"

namespace paged::gpu {
namespace {

constexpr int kMapThreads = 256;
constexpr std::int64_t kFewVectors = 1 << 19;  // up to here a thread takes one, so that more threads share the wait

struct MapWork {
  Rows a, b, out;
  const std::int32_t* rows;  // of a, for each row of out; null: the same
  int vectors;               // of a row
};

struct Scale {
  static constexpr bool kTwo = false;
  float scale;
  __device__ float operator()(float a, float) const { return a * scale; }
};
struct Copy {
  static constexpr bool kTwo = false;
  __device__ float operator()(float a, float) const { return a; }
};
struct Add {
  static constexpr bool kTwo = true;
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Softcap {
  static constexpr bool kTwo = false;
  float cap;
  __device__ float operator()(float a, float) const { return cap * tanhf(a / cap); }
};
struct SiluGate {
  static constexpr bool kTwo = true;
  // The bound keeps the division off its slow path; below it the quotient is nothing beside any other number.
  __device__ float operator()(float gate, float up) const { return gate / (1.0f + fast_exp(fminf(-gate, 80.0f))) * up; }
};
struct GeluTanhGate {
  static constexpr bool kTwo = true;
  __device__ float operator()(float gate, float up) const {
    const float inner = gate * fmaf(gate * gate, 0.7978845608f * 0.044715f, 0.7978845608f);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
  }
};
struct GeluErfGate {
  static constexpr bool kTwo = true;
  __device__ float operator()(float gate, float up) const {
    return 0.5f * gate * (1.0f + erff(gate * 0.70710678118f)) * up;
  }
};

// Block x is a row of out, block y some of its vectors.
template <class From, class To, int kVec, int kHeld, class Fn>
__global__ void __launch_bounds__(kMapThreads) map_rows_kernel(MapWork work, Fn fn) {
  release_dependents();
  wait_for_predecessors();
  const std::int64_t row = blockIdx.x, from = work.rows != nullptr ? work.rows[row] : row;
  const From* a = work.a.row<const From>(from);
  const From* b = work.b.row<const From>(row);
  To* out = work.out.row<To>(row);
  const int first = static_cast<int>(blockIdx.y * blockDim.x) * kHeld + static_cast<int>(threadIdx.x);
  Vec<From, kVec> left[kHeld], right[Fn::kTwo ? kHeld : 1];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int at = first + h * static_cast<int>(blockDim.x);
    left[h] = at < work.vectors ? load_vec<From, kVec>(a + at * kVec) : Vec<From, kVec>{};
    if (Fn::kTwo) right[Fn::kTwo ? h : 0] = at < work.vectors ? load_vec<From, kVec>(b + at * kVec) : Vec<From, kVec>{};
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int at = first + h * static_cast<int>(blockDim.x);
    if (at >= work.vectors) continue;
    Vec<To, kVec> result;
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      result.data[i] =
          from_float<To>(fn(to_float(left[h].data[i]), Fn::kTwo ? to_float(right[Fn::kTwo ? h : 0].data[i]) : 0.0f));
    store_vec(out + at * kVec, result);
  }
}

template <class From, class To, int kVec, int kHeld, class Fn>
void launch_map(const ExecutionContext& context, const MapWork& work, std::int64_t rows, const Fn& fn) {
  const unsigned threads = block_threads(divide_up(work.vectors, kHeld), kMapThreads);
  const auto parts = static_cast<unsigned>(divide_up(work.vectors, std::int64_t{threads} * kHeld));
  launch(map_rows_kernel<From, To, kVec, kHeld, Fn>, dim3(static_cast<unsigned>(rows), parts), dim3(threads), 0,
         stream_of(context), work, fn);
}

template <class From, class To, int kVec, class Fn>
void launch_map(const ExecutionContext& context, MapWork work, const MatrixView& out, const Fn& fn) {
  work.vectors = static_cast<int>(out.cols / kVec);
  if (out.rows * work.vectors <= kFewVectors)
    launch_map<From, To, kVec, 1>(context, work, out.rows, fn);
  else
    launch_map<From, To, kVec, 2>(context, work, out.rows, fn);
}

// All operands of out's dtype.
template <class Fn>
void map_rows(const ExecutionContext& context, const MapWork& work, bool vectors, const MatrixView& out, const Fn& fn) {
  if (out.rows == 0 || out.cols == 0) return;
  with_type(out.dtype, [&](auto element) {
    using T = decltype(element);
    if (vectors && has_vectors(out))
      launch_map<T, T, kVecOf<T>>(context, work, out, fn);
    else
      launch_map<T, T, 1>(context, work, out, fn);
  });
}

template <class Fn>
void map_two(const ExecutionContext& context, const MatrixView& a, const MatrixView& b, const MatrixView& out,
             const Fn& fn) {
  map_rows(context, {rows_of(a), rows_of(b), rows_of(out), nullptr, 0}, has_vectors(a) && has_vectors(b), out, fn);
}

}  // namespace

void embedding(const ExecutionContext& context, const EmbeddingParams& params) {
  const DeviceMatrix& table = device_matrix(*params.table);
  const MatrixView view{table.data(), table.rows, table.cols, table.cols, table.dtype};
  const MapWork work{rows_of(view), {}, rows_of(params.out), params.token_ids, 0};
  const Scale scale{params.scale};
  if (table.dtype == params.out.dtype) return map_rows(context, work, has_vectors(view), params.out, scale);
  if (params.out.rows == 0) return;
  with_type(table.dtype, [&](auto from) {
    with_type(params.out.dtype,
              [&](auto to) { launch_map<decltype(from), decltype(to), 1>(context, work, params.out, scale); });
  });
}

void add(const ExecutionContext& context, const AddParams& params) {
  map_two(context, params.a, params.b, params.out, Add{});
}

void gated_activation(const ExecutionContext& context, const GatedActivationParams& params) {
  switch (params.activation) {
    case Activation::kSilu: return map_two(context, params.gate, params.up, params.out, SiluGate{});
    case Activation::kGeluTanh: return map_two(context, params.gate, params.up, params.out, GeluTanhGate{});
    case Activation::kGeluErf: return map_two(context, params.gate, params.up, params.out, GeluErfGate{});
  }
}

void gather_rows(const ExecutionContext& context, const GatherRowsParams& params) {
  map_rows(context, {rows_of(params.x), {}, rows_of(params.out), params.rows, 0}, has_vectors(params.x), params.out,
           Copy{});
}

void softcap(const ExecutionContext& context, const SoftcapParams& params) {
  map_rows(context, {rows_of(params.x), {}, rows_of(params.out), nullptr, 0}, has_vectors(params.x), params.out,
           Softcap{params.cap});
}

}  // namespace paged::gpu
