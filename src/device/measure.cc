// Medians, and two loads that have nothing else to do.
#include "device/measure.h"

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#include "tensor/float8.h"

namespace nibble {
namespace {

constexpr int kRepeats = 7;

void store(DType dtype, void* to, float value) {
  switch (dtype) {
    case DType::kBF16: *static_cast<BFloat16*>(to) = BFloat16(value); break;
    case DType::kF16: *static_cast<Float16*>(to) = Float16(value); break;
    case DType::kF8E4M3: *static_cast<Float8E4M3*>(to) = Float8E4M3(value); break;
    case DType::kF8E5M2: *static_cast<Float8E5M2*>(to) = Float8E5M2(value); break;
    default:
      NB_CHECK(dtype == DType::kF32, "dtype %d", static_cast<int>(dtype));
      *static_cast<float*>(to) = value;
  }
}

}  // namespace

void fill_normal(DType dtype, std::span<std::byte> out) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const size_t size = dtype_size(dtype);
  for (size_t at = 0; at + size <= out.size(); at += size)
    store(dtype, out.data() + at, normal(random));
}

Result<DeviceMemory> random_memory(Device& device, DType dtype, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * dtype_size(dtype);
  const size_t piece = std::min<size_t>(bytes, size_t{8} << 20);
  NB_TRY(DeviceMemory memory, device.allocate(bytes, "a benchmark"));
  NB_TRY(const DeviceMemory host, device.allocate_host(piece, "a benchmark"));
  fill_normal(dtype, {static_cast<std::byte*>(host.data()), piece});
  auto* const to = static_cast<std::byte*>(memory.data());
  for (size_t at = 0; at < bytes; at += piece)
    device.upload(to + at, host.data(), std::min(piece, bytes - at));
  device.synchronize();
  return memory;
}

double median_seconds(int repeats, const std::function<void()>& run) {
  std::vector<double> times;
  for (int i = 0; i < std::max(1, repeats); ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    times.push_back(taken.count());
  }
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

double median_seconds(Device& device, int repeats, const std::function<void()>& enqueue) {
  enqueue();
  device.synchronize();
  std::unique_ptr<Recording> recording;
  if (device.can_record()) recording = device.record(enqueue);
  return median_seconds(repeats, [&] {
    if (recording) {
      recording->replay();
    } else {
      enqueue();
    }
    device.synchronize();
  });
}

Result<DeviceRates> measure_rates(Device& device, DType dtype) {
  const bool host = device.memory().is_host;
  DeviceRates rates;
  {
    const size_t bytes = host ? size_t{256} << 20 : size_t{1} << 30;
    NB_TRY(const DeviceMemory data,
           random_memory(device, DType::kBF16, static_cast<int64_t>(bytes / 2)));
    // Several passes, so that starting one is no part of the figure.
    const int passes = host ? 1 : 8;
    const double seconds = median_seconds(device, kRepeats, [&] {
      for (int pass = 0; pass < passes; ++pass) device.read(data.data(), bytes);
    });
    rates.read_bytes_per_second = passes * static_cast<double>(bytes) / seconds;
  }
  const int64_t side = host ? 512 : 8192;
  NB_TRY(const DeviceMemory x, random_memory(device, dtype, side * side));
  NB_TRY(const DeviceMemory w, random_memory(device, dtype, side * side));
  NB_TRY(const DeviceMemory out,
         device.allocate(static_cast<size_t>(side * side) * dtype_size(dtype), "a benchmark"));
  LinearWeight weight;
  weight.out_features = side;
  weight.in_features = side;
  weight.dense = {w.data(), dtype, {side, side}};
  const double seconds = median_seconds(device, kRepeats, [&] {
    device.ops().linear({x.data(), dtype, {side, side}}, weight, {out.data(), dtype, {side, side}});
  });
  rates.matrix_flops_per_second = 2.0 * static_cast<double>(side * side * side) / seconds;
  return rates;
}

}  // namespace nibble
