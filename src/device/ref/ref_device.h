// The reference backend as a Device: host memory, weights stay in their disk layout.
#pragma once

#include <memory>

#include "device/device.h"

namespace nibble::ref {

std::unique_ptr<Device> open();

}  // namespace nibble::ref
