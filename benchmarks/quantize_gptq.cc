// What GPTQ and refinement of one weight take: on this CPU's cores by their parts, on a GPU as a
// whole, without and with refinement.
//
//   build/release/benchmarks/bench_quantize_gptq [COLUMNS ROWS [cpu|cuda]]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>
#include <vector>

#include "base/format.h"
#include "device/device.h"
#include "quant/gptq.h"
#include "quant/inverse_factor.h"
#include "quant/refine.h"

namespace nibble {
namespace {

template <class Body>
double seconds_of(Body body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Second moments of inputs that have `kShared` directions in common and some noise of their own.
std::vector<float> second_moments(std::mt19937& random, int64_t n) {
  constexpr int64_t kShared = 8;
  std::normal_distribution<float> normal;
  std::vector<float> directions(static_cast<size_t>(n * kShared));
  for (float& value : directions) value = normal(random);
  std::vector<float> h(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k <= i; ++k) {
      float sum = i == k ? 8 + std::abs(normal(random)) : 0;
      for (int64_t d = 0; d < kShared; ++d)
        sum += directions[static_cast<size_t>(i * kShared + d)] *
               directions[static_cast<size_t>(k * kShared + d)];
      h[static_cast<size_t>(i * n + k)] = h[static_cast<size_t>(k * n + i)] = sum;
    }
  return h;
}

void run_on_host(const Tensor& weight, const Tensor& hessian) {
  const QuantFormat format;
  const int64_t columns = weight.shape[1];
  ThreadPool pool;
  std::printf("%d threads\n", pool.num_threads());
  double factor = 0;
  {
    SquareMatrix matrix(columns);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t k = 0; k < columns; ++k)
        matrix.row(i)[k] = static_cast<double>(hessian.as<const float>()[i * columns + k]);
    factor = seconds_of([&] { inverse_factor(matrix, pool); });
  }
  const auto size = static_cast<double>(columns);
  std::printf("inverse factor  %8.3f s  %6.1f GFLOP/s\n", factor,
              2 * size * size * size / 3 / factor / 1e9);
  QuantizedWeight quantized;
  const double loop =
      seconds_of([&] { quantized = gptq(weight, hessian, format, {}, {}, {}, pool).value(); });
  std::printf("GPTQ            %8.3f s  with another of these\n", loop);
  RefineResult result;
  const double refined =
      seconds_of([&] { result = refine(weight, hessian, format, {}, quantized, pool); });
  std::printf("refinement      %8.3f s  error %.5g -> %.5g\n", refined, result.error_before,
              result.error_after);
}

Status run_on_gpu(const Tensor& weight, const Tensor& hessian) {
  NB_TRY(const std::unique_ptr<Device> gpu, open_device(Backend::kCuda));
  QuantOps& ops = *gpu->quant_ops();
  const auto there = [&](const Tensor& host) -> Result<DeviceMemory> {
    NB_TRY(DeviceMemory memory, gpu->allocate(host.num_bytes(), "benchmark"));
    gpu->upload(memory.data(), host.data, host.num_bytes());
    return memory;
  };
  NB_TRY(const DeviceMemory gram, there(hessian));
  const QuantFormat format;
  NB_TRY(const DeviceMemory room,
         gpu->allocate(ops.compensation_bytes(weight.shape[0], weight.shape[1], format), "GPTQ"));
  std::printf("%s of the GPU's memory beside the operands\n",
              format_bytes(static_cast<double>(room.size())).c_str());
  for (const bool refined : {false, true}) {
    Compensation compensation{.room = room.data()};
    if (refined) compensation.refinement.emplace();
    NB_TRY(const DeviceMemory values, there(weight));
    gpu->synchronize();
    Status done;
    const double seconds = seconds_of([&] {
      const auto rounded =
          ops.compensate({values.data(), weight.dtype, weight.shape},
                         {gram.data(), hessian.dtype, hessian.shape}, format, {}, {}, compensation);
      if (!rounded) done = rounded.error();
    });
    NB_TRY_STATUS(done);
    std::printf("%s %8.3f s\n", refined ? "with refinement" : "GPTQ           ", seconds);
  }
  return {};
}

int run(int64_t columns, int64_t rows, bool on_gpu) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> h = second_moments(random, columns);
  std::vector<float> w(static_cast<size_t>(rows * columns));
  for (float& value : w) value = normal(random);
  const Tensor weight{w.data(), DType::kF32, {rows, columns}};
  const Tensor hessian{h.data(), DType::kF32, {columns, columns}};
  std::printf("%lld columns, %lld rows\n", static_cast<long long>(columns),
              static_cast<long long>(rows));
  if (!on_gpu) {
    run_on_host(weight, hessian);
    return 0;
  }
  const Status done = run_on_gpu(weight, hessian);
  if (!done) std::fprintf(stderr, "bench: %s\n", done.error().message.c_str());
  return done ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const int64_t columns = argc > 1 ? std::atoll(argv[1]) : 4096;
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 256;
  if (columns <= 0 || columns % 128 != 0 || rows <= 0) {
    std::fprintf(stderr,
                 "usage: bench_quantize_gptq [COLUMNS ROWS [cpu|cuda]], columns a multiple of "
                 "128\n");
    return 2;
  }
  return nibble::run(columns, rows, argc > 3 && std::string_view(argv[3]) == "cuda");
}
