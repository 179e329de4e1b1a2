// Zeroed host memory, mapped lazily by the kernel: shared by the backends that compute on the CPU.
#pragma once

#include "device/device.h"

namespace nibble {

Result<DeviceMemory> allocate_host(size_t bytes, const char* who);

}  // namespace nibble
