// What GPTQ and refinement of one weight take on this CPU's cores, by their parts.
//
//   build/release/benchmarks/bench_quantize_gptq [COLUMNS ROWS]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

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

int run(int64_t columns, int64_t rows) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> h = second_moments(random, columns);
  std::vector<float> w(static_cast<size_t>(rows * columns));
  for (float& value : w) value = normal(random);
  const Tensor weight{w.data(), DType::kF32, {rows, columns}};
  const Tensor hessian{h.data(), DType::kF32, {columns, columns}};
  const QuantFormat format;
  const Observer observer = make_observer("memoryless_minmax").value();
  ThreadPool pool;
  std::printf("%lld columns, %lld rows, %d threads\n", static_cast<long long>(columns),
              static_cast<long long>(rows), pool.num_threads());

  double factor = 0;
  {
    SquareMatrix matrix(columns);
    for (int64_t i = 0; i < columns; ++i)
      for (int64_t k = 0; k < columns; ++k)
        matrix.row(i)[k] = static_cast<double>(h[static_cast<size_t>(i * columns + k)]);
    factor = seconds_of([&] { inverse_factor(matrix, pool); });
  }
  const auto size = static_cast<double>(columns);
  std::printf("inverse factor  %8.3f s  %6.1f GFLOP/s\n", factor,
              2 * size * size * size / 3 / factor / 1e9);
  QuantizedWeight quantized;
  const double loop = seconds_of(
      [&] { quantized = gptq(weight, hessian, format, observer, {}, {}, pool).value(); });
  std::printf("GPTQ            %8.3f s  with another of these\n", loop);
  RefineResult result;
  const double refined =
      seconds_of([&] { result = refine(weight, hessian, format, {}, quantized, pool); });
  std::printf("refinement      %8.3f s  error %.5g -> %.5g\n", refined, result.error_before,
              result.error_after);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const int64_t columns = argc > 1 ? std::atoll(argv[1]) : 4096;
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 256;
  if (columns <= 0 || columns % 128 != 0 || rows <= 0) {
    std::fprintf(stderr, "usage: bench_quantize_gptq [COLUMNS ROWS], columns a multiple of 128\n");
    return 2;
  }
  return nibble::run(columns, rows);
}
