// SPDX-License-Identifier: Apache-2.0
// gpu/blas.h by cuBLASLt.
#include "gpu/blas.h"

#include <dlfcn.h>

#include <array>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include "cublaslt_abi.h"
#include "gpu/runtime.h"

namespace paged::gpu {
namespace {

using namespace cublaslt;

constexpr std::int64_t kWorkspaceBytes = 32 << 20;
constexpr int kMaxCandidates = 6;
constexpr std::int64_t kTimedRows = 512;  // from here on a wrong guess of the heuristic costs more than trying

struct Library {
  explicit Library(void* loaded) : handle(loaded) {}
  ~Library() { dlclose(handle); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  void* handle;
};

std::unique_ptr<Library> open_library(std::span<const std::string> folders, std::string* reason) {
  std::vector<std::string> paths;
  for (const std::string& folder : folders)
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) paths.push_back(folder + "/" + name);
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) paths.emplace_back(name);
  for (const std::string& path : paths)
    if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return std::make_unique<Library>(handle);
  const char* error = dlerror();
  if (reason != nullptr) *reason = error != nullptr ? error : "libcublasLt not found";
  return nullptr;
}

bool find_functions(void* library, Functions& functions, std::string* reason) {
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && reason != nullptr) *reason = std::string("libcublasLt has no ") + name;
    return function != nullptr;
  };
  return find("cublasLtCreate", functions.create) && find("cublasLtDestroy", functions.destroy) &&
         find("cublasLtGetStatusName", functions.status_name) &&
         find("cublasLtMatmulDescCreate", functions.desc_create) &&
         find("cublasLtMatmulDescDestroy", functions.desc_destroy) &&
         find("cublasLtMatmulDescSetAttribute", functions.desc_set) &&
         find("cublasLtMatrixLayoutCreate", functions.layout_create) &&
         find("cublasLtMatrixLayoutDestroy", functions.layout_destroy) &&
         find("cublasLtMatmulPreferenceCreate", functions.preference_create) &&
         find("cublasLtMatmulPreferenceDestroy", functions.preference_destroy) &&
         find("cublasLtMatmulPreferenceSetAttribute", functions.preference_set) &&
         find("cublasLtMatmulAlgoGetHeuristic", functions.heuristic) &&
         find("cublasLtMatmulAlgoCheck", functions.check) && find("cublasLtMatmul", functions.matmul);
}

cudaDataType type_of(DType dtype) {
  return dtype == DType::kFloat32 ? CUDA_R_32F : dtype == DType::kBFloat16 ? CUDA_R_16BF : CUDA_R_16F;
}

// Shapes that share an algorithm: rows exactly while few, then by powers of two.
struct PlanKey {
  std::int64_t rows, cols, depth;
  DType in, out;
  auto operator<=>(const PlanKey&) const = default;
};
std::int64_t rows_bucket(std::int64_t rows) {
  if (rows < kTimedRows) return rows;
  std::int64_t bucket = kTimedRows;
  while (2 * bucket <= rows) bucket *= 2;
  return bucket;
}

struct Plan {
  Algorithm algorithm;
  bool timed;
};

}  // namespace

struct Blas::Implementation {
  Implementation(std::unique_ptr<Library> opened, const Functions& found) : library(std::move(opened)), lt(found) {}
  ~Implementation() {
    if (preference != nullptr) lt.preference_destroy(preference);
    if (desc != nullptr) lt.desc_destroy(desc);
    if (handle != nullptr) lt.destroy(handle);
  }

  void verify(Status status, const char* what) const {
    if (status != kSuccess) throw DeviceError(std::string("cuBLASLt: ") + what + ": " + lt.status_name(status));
  }
  void open();
  std::optional<Plan> choose(const struct Product& product, bool may_time) const;
  bool takes(const struct Product& product, const Algorithm& algorithm) const;

  std::unique_ptr<Library> library;
  Functions lt;
  Handle handle = nullptr;
  MatmulDesc desc = nullptr;
  Preference preference = nullptr;
  std::map<PlanKey, Plan> plans;
};

void Blas::Implementation::open() {
  verify(lt.create(&handle), "create");
  verify(lt.desc_create(&desc, kComputeFloat32, CUDA_R_32F), "matmul description");
  verify(lt.desc_set(desc, kMatmulDescTransA, &kTransposed, sizeof(kTransposed)), "transposed weights");
  verify(lt.preference_create(&preference), "preference");
  const std::size_t bytes = kWorkspaceBytes;
  verify(lt.preference_set(preference, kPreferenceMaxWorkspaceBytes, &bytes, sizeof(bytes)), "workspace");
  const std::uint32_t alignment = 16;
  for (int attribute : {kPreferenceMinAlignmentB, kPreferenceMinAlignmentC, kPreferenceMinAlignmentD})
    verify(lt.preference_set(preference, attribute, &alignment, sizeof(alignment)), "alignment");
}

// One product in the library's column-major words: D[cols, rows] = A[depth, cols]^T B[depth, rows].
struct Product {
  Product(const Blas::Implementation& blas, const GpuContext& context, const MatrixView& x, const void* weight,
          const MatrixView& out)
      : lt(blas.lt), gpu(context), a_data(weight), b_data(x.data), d_data(out.data) {
    const auto rows = static_cast<std::uint64_t>(x.rows), depth = static_cast<std::uint64_t>(x.cols),
               cols = static_cast<std::uint64_t>(out.cols);
    blas.verify(lt.layout_create(&a, type_of(x.dtype), depth, cols, x.cols), "layout of the weight");
    blas.verify(lt.layout_create(&b, type_of(x.dtype), depth, rows, x.row_stride), "layout of x");
    blas.verify(lt.layout_create(&d, type_of(out.dtype), cols, rows, out.row_stride), "layout of out");
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    for (MatrixLayout layout : {a, b, d})
      if (layout != nullptr) lt.layout_destroy(layout);
  }

  Status run(const Blas::Implementation& blas, const Algorithm& algorithm, bool add_to_out) const {
    const float alpha = 1.0f, beta = add_to_out ? 1.0f : 0.0f;
    return lt.matmul(blas.handle, blas.desc, &alpha, a_data, a, b_data, b, &beta, d_data, d, d_data, d, &algorithm,
                     gpu.scratch, kWorkspaceBytes, static_cast<cudaStream_t>(gpu.stream));
  }

  const Functions& lt;
  const GpuContext& gpu;
  const void *a_data, *b_data;
  void* d_data;
  MatrixLayout a = nullptr, b = nullptr, d = nullptr;
};

namespace {

double seconds_of(const Blas::Implementation& blas, const Product& product, const Algorithm& algorithm) {
  constexpr int kRepeats = 3;
  Event start(true), end(true);
  if (product.run(blas, algorithm, false) != kSuccess) return std::numeric_limits<double>::infinity();
  start.record(product.gpu.stream);
  for (int i = 0; i < kRepeats; ++i)
    if (product.run(blas, algorithm, false) != kSuccess) return std::numeric_limits<double>::infinity();
  end.record(product.gpu.stream);
  end.synchronize();
  return end.seconds_since(start) / kRepeats;
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess ||
         status != cudaStreamCaptureStatusNone;
}

}  // namespace

std::optional<Plan> Blas::Implementation::choose(const Product& product, bool may_time) const {
  std::array<HeuristicResult, kMaxCandidates> results{};
  int found = 0;
  const Status status = lt.heuristic(handle, desc, product.a, product.b, product.d, product.d, preference,
                                     kMaxCandidates, results.data(), &found);
  if (status == kNotSupported || found == 0) return std::nullopt;
  verify(status, "choice of an algorithm");
  int best = 0;
  double best_seconds = std::numeric_limits<double>::infinity();
  for (int i = 0; may_time && i < found; ++i) {
    const double seconds = seconds_of(*this, product, results[static_cast<std::size_t>(i)].algorithm);
    if (seconds < best_seconds) best = i, best_seconds = seconds;
  }
  return Plan{results[static_cast<std::size_t>(best)].algorithm, may_time};
}

// An algorithm found for other rows of the same bucket.
bool Blas::Implementation::takes(const Product& product, const Algorithm& algorithm) const {
  HeuristicResult checked{};
  return lt.check(handle, desc, product.a, product.b, product.d, product.d, &algorithm, &checked) == kSuccess &&
         checked.workspace_bytes <= std::size_t{kWorkspaceBytes};
}

Blas::Blas(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Blas::~Blas() = default;

std::unique_ptr<Blas> Blas::load(std::span<const std::string> folders, std::string* reason) {
  std::unique_ptr<Library> library = open_library(folders, reason);
  Functions functions{};
  if (library == nullptr || !find_functions(library->handle, functions, reason)) return nullptr;
  auto implementation = std::make_unique<Implementation>(std::move(library), functions);
  try {
    implementation->open();
  } catch (const DeviceError& error) {
    if (reason != nullptr) *reason = error.what();
    return nullptr;
  }
  return std::unique_ptr<Blas>(new Blas(std::move(implementation)));
}

bool Blas::gemm(const GpuContext& gpu, const MatrixView& x, const void* weight, const MatrixView& out,
                bool add_to_out) {
  const auto unaligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 != 0; };
  if (unaligned(x.data) || unaligned(weight) || unaligned(out.data) || gpu.scratch_bytes < kWorkspaceBytes)
    return false;
  Implementation& blas = *implementation_;
  const Product product(blas, gpu, x, weight, out);
  const PlanKey key{rows_bucket(x.rows), out.cols, x.cols, x.dtype, out.dtype};
  const bool may_time = x.rows >= kTimedRows && !add_to_out && !is_capturing(gpu.stream);
  auto plan = blas.plans.find(key);
  if (plan == blas.plans.end() || (may_time && !plan->second.timed)) {
    const std::optional<Plan> chosen = blas.choose(product, may_time);
    if (!chosen) return false;
    plan = blas.plans.insert_or_assign(key, *chosen).first;
  }
  std::optional<Plan> usable = plan->second;
  if (!blas.takes(product, usable->algorithm)) usable = blas.choose(product, false);
  if (!usable) return false;
  blas.verify(product.run(blas, usable->algorithm, add_to_out), "matmul");
  return true;
}

}  // namespace paged::gpu
