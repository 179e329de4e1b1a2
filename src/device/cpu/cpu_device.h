// The CPU backend: vectorised and threaded where it pays, the reference operations elsewhere.
#pragma once

#include <memory>

#include "device/device.h"

namespace nibble::cpu {

// `num_threads` 0: usable_threads() of base/host_limits.h.
std::unique_ptr<Device> open(int num_threads);

}  // namespace nibble::cpu
