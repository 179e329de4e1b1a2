// One plan per product for the life of the process: they are the shapes of a model.
#include "device/cuda/matrix_product.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <type_traits>

#include "base/check.h"

namespace nibble::cuda {
namespace {

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

// What the library wants to know of a product, and the algorithm it chose.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr;
  cublasLtMatrixLayout_t b = nullptr;
  cublasLtMatrixLayout_t c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool usable = false;
};

cudaDataType_t library_type(Scalar scalar) {
  return scalar == Scalar::kF32 ? CUDA_R_32F : scalar == Scalar::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

const Library& library() {
  static const Library instance;
  return instance;
}

Plan make_plan(const MatrixProduct& product) {
  const Library& lt = library();
  Plan plan;
  const cublasComputeType_t compute =
      product.type == Scalar::kF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check(lt.desc_create(&plan.desc, compute, CUDA_R_32F), "MatmulDescCreate");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(lt.desc_set(plan.desc, attribute, &operation, sizeof(operation)),
          "MatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, product.a_transposed);
  set(CUBLASLT_MATMUL_DESC_TRANSB, product.b_transposed);
  const auto layout = [&](cublasLtMatrixLayout_t* to, Scalar type, int64_t rows, int64_t columns,
                          int64_t pitch) {
    check(lt.layout_create(to, library_type(type), static_cast<uint64_t>(rows),
                           static_cast<uint64_t>(columns), pitch),
          "MatrixLayoutCreate");
  };
  const auto& [m, n, k, a_transposed, b_transposed, a_pitch, b_pitch, c_pitch, type, c_type,
               accumulate] = product;
  layout(&plan.a, type, a_transposed ? k : m, a_transposed ? m : k, a_pitch);
  layout(&plan.b, type, b_transposed ? n : k, b_transposed ? k : n, b_pitch);
  layout(&plan.c, c_type, m, n, c_pitch);
  cublasLtMatmulPreference_t preference = nullptr;
  check(lt.preference_create(&preference), "MatmulPreferenceCreate");
  check(lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kLibraryScratch,
                          sizeof(kLibraryScratch)),
        "MatmulPreferenceSetAttribute");
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  plan.usable = lt.heuristic(lt.handle, plan.desc, plan.a, plan.b, plan.c, plan.c, preference, 1,
                             &result, &count) == CUBLAS_STATUS_SUCCESS &&
                count > 0;
  plan.algorithm = result.algo;
  return plan;
}

const Plan& plan_for(const MatrixProduct& product) {
  static std::map<MatrixProduct, Plan> plans;  // one engine thread uses a device
  const auto found = plans.find(product);
  return found != plans.end() ? found->second
                              : plans.emplace(product, make_plan(product)).first->second;
}

}  // namespace

void load_matrix_library() {
  library();
}

bool can_multiply(const MatrixProduct& product) {
  return library().handle != nullptr && plan_for(product).usable;
}

void multiply(const MatrixProduct& product, const void* a, const void* b, void* c,
              const Workspace& workspace, cudaStream_t stream) {
  const Plan& plan = plan_for(product);
  const float one = 1;
  const float beta = product.accumulate ? 1.0f : 0.0f;
  check(library().matmul(library().handle, plan.desc, &one, a, plan.a, b, plan.b, &beta, c, plan.c,
                         c, plan.c, &plan.algorithm, workspace.scratch, kLibraryScratch, stream),
        "cublasLtMatmul");
}

}  // namespace nibble::cuda
