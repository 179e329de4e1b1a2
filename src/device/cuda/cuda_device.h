// The CUDA backend as a Device: one GPU, one compute stream. Includes no CUDA header, so that
// device/open.cc compiles everywhere; without a driver or a GPU open() says so.
#pragma once

#include <memory>

#include "device/device.h"

namespace nibble::cuda {

// GPU `ordinal` of those that CUDA_VISIBLE_DEVICES leaves. kUnsupported, with what was found and
// what to do, when there is no driver, no GPU or no kernel for it in this binary.
Result<std::unique_ptr<Device>> open(int ordinal = 0);
// Whether this machine has an NVIDIA driver, so that open()'s error is worth telling.
bool driver_present();

}  // namespace nibble::cuda
