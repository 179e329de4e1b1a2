// Reads the layout off the tensors.
#include "device/cuda/linear_weight.h"

#include "device/cuda/cuda_ops.h"

namespace nibble::cuda {

Weight weight_of(const LinearWeight& weight) {
  Weight view{};
  view.out_features = weight.out_features;
  view.in_features = weight.in_features;
  if (weight.compacted()) {
    view.layout = Layout::kCompact;
    view.type = Scalar::kBF16;
    view.values = weight.compact.words.data;
    view.rows = static_cast<const CompactRow*>(weight.compact.rows.data);
    view.rest = static_cast<const uint32_t*>(weight.compact.rest.data);
    return view;
  }
  if (!weight.quantized()) {
    view.layout = Layout::kDense;
    view.type = scalar_of(weight.dense.dtype);
    view.values = weight.dense.data;
    return view;
  }
  view.layout = weight.packed.shape.rank() == 4 ? Layout::kTiled : Layout::kPlain;
  view.type = scalar_of(weight.scale.dtype);
  view.values = weight.packed.data;
  view.scale = weight.scale.data;
  view.zero_point = static_cast<const int8_t*>(weight.zero_point.data);
  view.num_bits = weight.format.num_bits;
  view.num_groups = weight.scale.shape[1];
  return view;
}

}  // namespace nibble::cuda
