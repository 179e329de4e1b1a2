// Names of dtypes on the command line.
#include "engine/options.h"

#include "base/format.h"

namespace nibble {

Result<DType> parse_activation_dtype(const std::string& name) {
  if (name == "auto" || name == "float32" || name == "float") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16" || name == "half") return DType::kF16;
  return make_error(ErrorCode::kInvalidArgument,
                    "--dtype {}: unknown; use auto, float32, bfloat16 or float16", name);
}

Result<DType> parse_kv_cache_dtype(const std::string& name, DType activation) {
  if (name == "auto") return activation;
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "fp8" || name == "fp8_e4m3") return DType::kF8E4M3;
  if (name == "fp8_e5m2") return DType::kF8E5M2;
  return make_error(ErrorCode::kInvalidArgument,
                    "--kv-cache-dtype {}: unknown; use auto, float32, bfloat16, float16, fp8 (= "
                    "fp8_e4m3) or fp8_e5m2",
                    name);
}

}  // namespace nibble
