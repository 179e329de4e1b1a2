// Between the tensors of a LinearWeight and the launchers' view of it.
#pragma once

#include "device/cuda/linear.h"
#include "tensor/linear_weight.h"

namespace nibble::cuda {

// A prepared weight as the kernels see it; the layout is told by the rank of `packed`.
Weight weight_of(const LinearWeight& weight);

}  // namespace nibble::cuda
