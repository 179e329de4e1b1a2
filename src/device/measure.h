// What this machine's device can do, measured through the seam: the denominators of benchmarks.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "device/device.h"

namespace nibble {

// Median seconds of `run`, which waits for what it starts, over `repeats` runs (at least one).
double median_seconds(int repeats, const std::function<void()>& run);

// Median seconds of what `enqueue` enqueues, the device idle before and after, over `repeats` runs
// (at least one) after one that does not count. A device that can record replays a recording, so
// that what is timed is the device and not the calls.
double median_seconds(Device& device, int repeats, const std::function<void()>& enqueue);

// Normal values of a floating `dtype`, always the same ones.
void fill_normal(DType dtype, std::span<std::byte> out);
// Device memory of `count` random values of a floating `dtype`, about normal, a pattern of 8 MiB
// over and over: hardware runs faster on zeros than on anything real.
Result<DeviceMemory> random_memory(Device& device, DType dtype, int64_t count);

struct DeviceRates {
  double read_bytes_per_second = 0;    // reading far more than any cache holds
  double matrix_flops_per_second = 0;  // a large square product of two dense matrices
};
// Takes up to 1 GiB of device memory for a moment. On a CPU the product is this program's own, on a
// GPU cuBLASLt's.
Result<DeviceRates> measure_rates(Device& device, DType dtype);

}  // namespace nibble
