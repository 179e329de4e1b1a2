// Checkpoints that hold all experts of a layer in one 3-D tensor are written with one Linear per
// expert, which is what quantized formats name.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/model_dir.h"
#include "model/weights.h"

namespace nibble {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// "P.experts.gate_up_proj" [E, 2I, H] and "P.experts.down_proj" [E, H, I] become
// "P.experts.0.gate_proj.weight" and so on; any other tensor stays alone.
std::vector<NamedTensor> split_experts(const std::string& name, const Tensor& tensor);

// The weight of a module, [out_features, in_features], alone or in a stack.
Result<Tensor> module_weight(const ModelDir& dir, const LinearModule& module);

}  // namespace nibble
