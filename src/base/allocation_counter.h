// Counts allocations of device memory in the whole process, so that "none after ready" is a number
// one can read instead of a promise. Every backend's memory passes DeviceMemory, which counts.
// Threads: any.
#pragma once

#include <cstdint>

namespace nibble {

void count_allocation();
// Since the process began.
int64_t num_allocations();

}  // namespace nibble
