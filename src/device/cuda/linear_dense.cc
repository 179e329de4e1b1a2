// y = x W' for many tokens: weights become 16 bits in pieces that fit the scratch (dense ones are
// used where they lie), and cuBLASLt multiplies. The library is looked for at run time; without it
// the caller takes another path.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "base/check.h"
#include "device/cuda/cuda_check.h"
#include "device/cuda/linear.h"

namespace nibble::cuda {
namespace {

constexpr size_t kLibraryScratch = size_t{32} << 20;

// The functions of cuBLASLt that we call, of whichever version is installed.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  cublasLtHandle_t handle = nullptr;

  Library() {
    void* found = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"})
      if (found == nullptr) found = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (found == nullptr) return;
    const auto bind = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(found, name));
      return function != nullptr;
    };
    if (!bind(create, "cublasLtCreate") || !bind(matmul, "cublasLtMatmul") ||
        !bind(desc_create, "cublasLtMatmulDescCreate") ||
        !bind(desc_set, "cublasLtMatmulDescSetAttribute") ||
        !bind(layout_create, "cublasLtMatrixLayoutCreate") ||
        !bind(preference_create, "cublasLtMatmulPreferenceCreate") ||
        !bind(preference_set, "cublasLtMatmulPreferenceSetAttribute") ||
        !bind(heuristic, "cublasLtMatmulAlgoGetHeuristic"))
      return;
    if (create(&handle) != CUBLAS_STATUS_SUCCESS) handle = nullptr;
  }
};

void check(cublasStatus_t status, const char* call) {
  NB_CHECK(status == CUBLAS_STATUS_SUCCESS, "%s: status %d", call, static_cast<int>(status));
}

// A product of one shape: what the library wants to know, and the algorithm it chose.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool usable = false;
};

using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, Scalar, Scalar>;

cudaDataType_t library_type(Scalar scalar) {
  return scalar == Scalar::kF32 ? CUDA_R_32F : scalar == Scalar::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// Row-major y[m, n] = x[m, k] W[n, k]' is column-major y'[n, m] = W x'; `pitch` is the out_features
// of the whole y when W is a piece.
Plan make_plan(const Library& library, const Key& key) {
  const auto [m, n, k, pitch, type, out_type] = key;
  Plan plan;
  check(library.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
  const cublasOperation_t transpose = CUBLAS_OP_T;
  check(library.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)),
        "MatmulDescSetAttribute");
  const auto um = static_cast<uint64_t>(m);
  const auto un = static_cast<uint64_t>(n);
  const auto uk = static_cast<uint64_t>(k);
  check(library.layout_create(&plan.weight, library_type(type), uk, un, k), "MatrixLayoutCreate");
  check(library.layout_create(&plan.x, library_type(type), uk, um, k), "MatrixLayoutCreate");
  check(library.layout_create(&plan.out, library_type(out_type), un, um, pitch),
        "MatrixLayoutCreate");
  cublasLtMatmulPreference_t preference = nullptr;
  check(library.preference_create(&preference), "MatmulPreferenceCreate");
  check(library.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                               &kLibraryScratch, sizeof(kLibraryScratch)),
        "MatmulPreferenceSetAttribute");
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  plan.usable =
      library.heuristic(library.handle, plan.desc, plan.weight, plan.x, plan.out, plan.out,
                        preference, 1, &result, &count) == CUBLAS_STATUS_SUCCESS &&
      count > 0;
  plan.algorithm = result.algo;
  return plan;  // lives as long as the process: one per shape that the server uses
}

const Library& library() {
  static const Library instance;
  return instance;
}

const Plan& plan_for(const Key& key) {
  static std::map<Key, Plan> plans;  // one engine thread uses a device
  const auto found = plans.find(key);
  return found != plans.end() ? found->second
                              : plans.emplace(key, make_plan(library(), key)).first->second;
}

}  // namespace

void load_linear_library() {
  library();
}

bool launch_linear_dense(const LinearLaunch& args, const Workspace& workspace,
                         cudaStream_t stream) {
  const Weight& weight = args.weight;
  const int64_t n = weight.out_features;
  const int64_t k = weight.in_features;
  const bool in_place = weight.layout == Layout::kDense && weight.type == args.x_type;
  // Other combinations round weights to a type that is not theirs.
  if (library().handle == nullptr || weight.type != args.x_type || scalar_size(args.x_type) != 2 ||
      k % 8 != 0 || n % 8 != 0)
    return false;
  const auto row_bytes = static_cast<size_t>(k) * 2;
  const auto rows_that_fit =
      static_cast<int64_t>((workspace.scratch_size - kLibraryScratch) / row_bytes) / 256 * 256;
  if (!in_place && rows_that_fit == 0) return false;
  // Pieces of equal size, so that the last is no sliver.
  const int64_t num_pieces = in_place ? 1 : (n + rows_that_fit - 1) / rows_that_fit;
  const int64_t piece = in_place ? n : ((n + num_pieces - 1) / num_pieces + 255) / 256 * 256;
  if (!plan_for({args.num_tokens, std::min(piece, n), k, n, args.x_type, args.out_type}).usable)
    return false;
  auto* dequantized = static_cast<std::byte*>(workspace.scratch) + kLibraryScratch;
  const float one = 1;
  const float zero = 0;
  for (int64_t begin = 0; begin < n; begin += piece) {
    const int64_t end = std::min(begin + piece, n);
    const void* values = weight.values;
    if (!in_place) {
      launch_dequantize(weight, begin, end, dequantized, args.x_type, stream);
      values = dequantized;
    }
    auto* out =
        static_cast<std::byte*>(args.out) + static_cast<size_t>(begin) * scalar_size(args.out_type);
    const Plan& plan = plan_for({args.num_tokens, end - begin, k, n, args.x_type, args.out_type});
    NB_CHECK(plan.usable, "cuBLASLt takes %lld rows but not the last %lld",
             static_cast<long long>(piece), static_cast<long long>(end - begin));
    check(library().matmul(library().handle, plan.desc, &one, values, plan.weight, args.x, plan.x,
                           &zero, out, plan.out, out, plan.out, &plan.algorithm, workspace.scratch,
                           kLibraryScratch, stream),
          "cublasLtMatmul");
  }
  return true;
}

}  // namespace nibble::cuda
