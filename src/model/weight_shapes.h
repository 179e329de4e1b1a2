// The weights of a checkpoint that is not there: dtypes and shapes as config.json implies them, no
// memory. What `nibble plan` binds, so that planning needs no weights.
#pragma once

#include <optional>

#include "model/weights.h"

namespace nibble {

class WeightShapes final : public WeightSource {
 public:
  // `quantization` decides which Linears are packed, by module name and class, as
  // compressed-tensors does: a module is quantized when a target matches it and no ignore entry
  // does. kInvalidArgument names a pattern that does not compile.
  static Result<WeightShapes> make(const ModelSpec& spec,
                                   const std::optional<QuantizationConfig>& quantization);
  WeightShapes(WeightShapes&&) noexcept;
  ~WeightShapes() override;

  bool has(std::string_view name) const override;
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const override;
  // kUnsupported when a group does not divide the (sharded) input.
  Result<LinearWeight> linear(std::string_view name, int64_t out_features,
                              int64_t in_features) const override;

 private:
  struct Rules;
  WeightShapes();
  DType dtype_ = DType::kBF16;
  std::unique_ptr<Rules> rules_;
};

}  // namespace nibble
