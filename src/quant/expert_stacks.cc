// Slices are views: an expert's rows are contiguous.
#include "quant/expert_stacks.h"

#include "base/format.h"

namespace nibble {
namespace {

Tensor slice(const Tensor& stack, int64_t expert, int64_t begin, int64_t end) {
  const Tensor one = stack.rows(expert, expert + 1);
  return one.reshaped({stack.shape[1], stack.shape[2]}).rows(begin, end);
}

}  // namespace

std::vector<NamedTensor> split_experts(const std::string& name, const Tensor& tensor) {
  const bool gate_up = name.ends_with(".experts.gate_up_proj");
  if ((!gate_up && !name.ends_with(".experts.down_proj")) || tensor.shape.rank() != 3)
    return {{name, tensor}};
  const std::string prefix = name.substr(0, name.rfind('.') + 1);
  const int64_t rows = tensor.shape[1];
  std::vector<NamedTensor> experts;
  for (int64_t e = 0; e < tensor.shape[0]; ++e) {
    const std::string expert = format("{}{}.", prefix, e);
    if (gate_up) {
      experts.push_back({expert + "gate_proj.weight", slice(tensor, e, 0, rows / 2)});
      experts.push_back({expert + "up_proj.weight", slice(tensor, e, rows / 2, rows)});
    } else {
      experts.push_back({expert + "down_proj.weight", slice(tensor, e, 0, rows)});
    }
  }
  return experts;
}

Result<Tensor> module_weight(const ModelDir& dir, const LinearModule& module) {
  const std::string name = module.name + ".weight";
  const size_t experts = name.rfind(".experts.");
  if (!dir.has(name) && experts != name.npos) {
    const std::string stack =
        name.substr(0, experts) +
        (name.ends_with(".down_proj.weight") ? ".experts.down_proj" : ".experts.gate_up_proj");
    if (dir.has(stack)) {
      NB_TRY(const Tensor tensor, dir.tensor(stack));
      if (tensor.shape.rank() == 3)
        for (const NamedTensor& expert : split_experts(stack, tensor))
          if (expert.name == name) return expert.tensor;
    }
  }
  return dir.tensor(name, {module.out_features, module.in_features});
}

}  // namespace nibble
