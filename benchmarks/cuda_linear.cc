// Linears of a 40B hybrid on this GPU: how near to the memory's read bandwidth with few tokens, how
// near to the matrix peak with many. Both limits are measured in the same run. Each figure is the
// median of replayed graphs that walk over copies of the weight larger than the L2 cache together,
// launch gaps included.
//
//   build/release/benchmarks/bench_cuda_linear [few|many|paths|pre80]...
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_timing.h"
#include "device/cuda/linear.h"

namespace nibble {
namespace {

using cuda::FixedRows;
using cuda::Layout;
using cuda::LinearLaunch;
using cuda::LinearPath;
using cuda::Scalar;
using cuda::Weight;

constexpr int64_t kMaxTokens = 8192;
constexpr size_t kRotateBytes = size_t{400} << 20;  // several times any L2

struct Shape {
  const char* name;
  int64_t out;
  int64_t in;
  int group;  // 0: 16 bits, -1: 16 bits held in 12
};
constexpr Shape kShapes[] = {{"mlp gate and up, W4 g128", 34816, 5120, 128},
                             {"mlp gate or up, W4 g128", 17408, 5120, 128},
                             {"mlp down, W4 g128", 5120, 17408, 128},
                             {"mlp down, W4 g32", 5120, 17408, 32},
                             {"q and gate, W4 g128", 12288, 5120, 128},
                             {"q, gate, k and v, W4 g128", 14336, 5120, 128},
                             {"o, W4 g128", 5120, 6144, 128},
                             {"k or v, W4 g128", 1024, 5120, 128},
                             {"delta-rule qkv, bf16", 10240, 5120, 0},
                             {"delta-rule out, bf16", 5120, 6144, 0},
                             {"head, bf16", 248320, 5120, 0},
                             {"delta-rule qkv, 12 bits", 10240, 5120, -1},
                             {"delta-rule out, 12 bits", 5120, 6144, -1},
                             {"head, 12 bits", 248320, 5120, -1}};

size_t weight_bytes(const Shape& shape) {
  const auto count = static_cast<size_t>(shape.out * shape.in);
  if (shape.group < 0)
    return count * 3 / 2 + static_cast<size_t>(shape.out) * sizeof(cuda::CompactRow);
  return shape.group == 0 ? count * 2 : count / 2 + count / static_cast<size_t>(shape.group) * 4;
}

// In 12 bits, from random ones; those in the list as in trained weights about one in 10,000.
void make_compact(Weight* weight) {
  const int64_t count = weight->out_features * weight->in_features;
  const uint16_t* values = bench::random_bf16(count, 0.02f);
  const auto capacity = static_cast<uint32_t>(count / 256);
  cuda::CompactWeight to{};
  to.words = static_cast<uint32_t*>(bench::device_bytes(static_cast<size_t>(count) * 3 / 2));
  to.rows = static_cast<cuda::CompactRow*>(
      bench::device_bytes(static_cast<size_t>(weight->out_features) * sizeof(cuda::CompactRow)));
  to.rest = static_cast<uint32_t*>(bench::device_bytes((size_t{capacity} + 1) * 4));
  to.rest_capacity = capacity;
  to.out_features = weight->out_features;
  to.in_features = weight->in_features;
  NB_CUDA(cudaMemset(to.rest + capacity, 0, 4));
  cuda::launch_compact(values, 0, weight->out_features, to, to.rest + capacity, nullptr);
  NB_CUDA(cudaDeviceSynchronize());
  NB_CUDA(cudaFree(const_cast<uint16_t*>(values)));
  weight->values = to.words;
  weight->rows = to.rows;
  weight->rest = to.rest;
}

// Copies of a random weight, enough of them to leave the L2 cache between two uses of one.
std::vector<Weight> make_weights(const Shape& shape) {
  std::vector<Weight> weights;
  const size_t copies = std::max<size_t>(1, kRotateBytes / weight_bytes(shape));
  for (size_t i = 0; i < copies; ++i) {
    Weight weight{};
    weight.layout = shape.group == 0  ? Layout::kDense
                    : shape.group < 0 ? Layout::kCompact
                                      : Layout::kTiled;
    weight.type = Scalar::kBF16;
    weight.out_features = shape.out;
    weight.in_features = shape.in;
    const int64_t count = shape.out * shape.in;
    if (shape.group == 0) {
      weight.values = bench::random_bf16(count, 0.02f);
    } else if (shape.group < 0) {
      make_compact(&weight);
    } else {
      weight.num_bits = 4;
      weight.num_groups = shape.in / shape.group;
      weight.values = bench::random_device<uint32_t>(static_cast<size_t>(count) / 2,
                                                     [] { return bench::random()(); });
      // Scale and zero beside each other; 128 + 8 + 0 in bf16 for the zero.
      bool zero = true;
      weight.scale = bench::random_device<uint16_t>(
          static_cast<size_t>(count / shape.group) * 4, [&]() -> uint16_t {
            zero = !zero;
            return zero ? 0x4308 : static_cast<uint16_t>(0x3c00 + bench::random()() % 128);
          });
    }
    weights.push_back(weight);
  }
  return weights;
}

void free_weights(const std::vector<Weight>& weights) {
  for (const Weight& weight : weights) {
    NB_CUDA(cudaFree(const_cast<void*>(weight.values)));
    NB_CUDA(cudaFree(const_cast<void*>(weight.scale)));
    NB_CUDA(cudaFree(const_cast<cuda::CompactRow*>(weight.rows)));
    NB_CUDA(cudaFree(const_cast<uint32_t*>(weight.rest)));
  }
}

// Median seconds of launch(weight, stream), of all weights after one another.
template <class W, class Launch>
double seconds_each(const std::vector<W>& weights, Launch launch) {
  const double ms = bench::median_ms([&](cudaStream_t stream) {
    for (const W& weight : weights) launch(weight, stream);
  });
  return ms * 1e-3 / static_cast<double>(weights.size());
}

struct Bench {
  cuda::Workspace workspace = bench::make_workspace(size_t{96} << 20);
  void* x = bench::random_bf16(kMaxTokens * 17408);
  void* out = bench::device_bytes(size_t{1} << 30);
  double read_bandwidth = 0;
  double peak_flops = 0;

  Bench() {
    workspace.num_counters = 1 << 18;
    workspace.counters = static_cast<uint32_t*>(bench::device_bytes(size_t{4} << 18));
    NB_CUDA(cudaMemset(workspace.counters, 0, size_t{4} << 18));
    workspace.fixed_rows_size = size_t{2} << 20;
    workspace.fixed_rows = bench::device_bytes(workspace.fixed_rows_size);
    constexpr size_t kBytes = size_t{4} << 30;
    const uint16_t* data = bench::random_bf16(kBytes / 2);
    const double ms = bench::median_ms(
        [&](cudaStream_t stream) { cuda::enqueue_read(data, kBytes, workspace, stream); });
    read_bandwidth = kBytes / (ms * 1e-3);
    NB_CUDA(cudaFree(const_cast<uint16_t*>(data)));
    const Shape square{"", 8192, 8192, 0};
    peak_flops = 2.0 * 8192 * 8192 * 8192 / seconds(make_weights(square), 8192, LinearPath::kDense);
    std::printf("read bandwidth %.2f TB/s, bf16 matrix peak %.0f TFLOP/s (8192^3 by cuBLASLt)\n",
                read_bandwidth / 1e12, peak_flops / 1e12);
  }

  // Of one product, its activations in fixed point beside them where few-token products use that:
  // in the engine the operation before leaves them so.
  double seconds(const std::vector<Weight>& weights, int64_t num_tokens, LinearPath path) const {
    FixedRows fixed;
    if (weights[0].layout == Layout::kTiled)
      fixed = fixed_rows_of(num_tokens, weights[0].in_features,
                            weights[0].in_features / weights[0].num_groups < cuda::kFixedGroup,
                            workspace);
    const Scalar type = weights[0].type;
    if (fixed.digits != nullptr) launch_fix_rows(x, type, fixed, workspace, nullptr);
    const auto launch = [&](const Weight& weight, cudaStream_t stream) {
      launch_linear({x, type, weight, out, type, num_tokens, path, fixed}, workspace, stream);
    };
    launch(weights[0], nullptr);  // algorithms are chosen outside the capture
    NB_CUDA(cudaDeviceSynchronize());
    return seconds_each(weights, launch);
  }
};

// Of a kernel that only reads as many bytes as such a weight has, one launch after the other's end.
double read_seconds(const Bench& bench, const Shape& shape) {
  const size_t bytes =
      shape.group < 0 ? static_cast<size_t>(shape.out * shape.in) * 3 / 2 : weight_bytes(shape);
  std::vector<void*> parts(std::max<size_t>(1, kRotateBytes / bytes));
  for (void*& part : parts) part = bench::device_bytes(bytes);
  const double seconds = seconds_each(parts, [&](const void* part, cudaStream_t stream) {
    cuda::enqueue_read(part, bytes, bench.workspace, stream);
  });
  for (void* part : parts) NB_CUDA(cudaFree(part));
  return seconds;
}

void few_tokens(const Bench& bench) {
  std::printf("\nfew tokens: microseconds and %% of the read bandwidth (weights once)\n%-26s%12s",
              "", "only read");
  constexpr int kTokens[] = {1, 2, 4, 8, 9, 16, 32, 64};
  for (const int m : kTokens) std::printf("       M=%-3d", m);
  std::printf("\n");
  for (const Shape& shape : kShapes) {
    const std::vector<Weight> weights = make_weights(shape);
    const auto print = [&](double s) {
      std::printf(" %7.1f%4.0f", s * 1e6,
                  100 * static_cast<double>(weight_bytes(shape)) / s / bench.read_bandwidth);
    };
    std::printf("%-26s", shape.name);
    print(read_seconds(bench, shape));
    for (const int m : kTokens) print(bench.seconds(weights, m, LinearPath::kSkinny));
    std::printf("\n");
    free_weights(weights);
  }
}

void many_tokens(const Bench& bench, bool all_paths) {
  std::printf("\n%s: TFLOP/s and %% of the matrix peak\n%-26s",
              all_paths ? "streamed | tiles | dequantized" : "many tokens", "");
  const std::vector<int> tokens = all_paths ? std::vector{16, 32, 48, 64, 96, 128, 256, 512, 1024}
                                            : std::vector{256, 512, 1024, 2048, 4096, 8192};
  for (const int m : tokens) std::printf(all_paths ? "         M=%-4d" : "    M=%-4d", m);
  std::printf("\n");
  // 16-bit weights have but one path for many tokens.
  const std::vector<size_t> shapes =
      all_paths ? std::vector<size_t>{0, 2, 11} : std::vector<size_t>{0, 1, 8, 11};
  for (const size_t s : shapes) {
    const Shape& shape = kShapes[s];
    const std::vector<Weight> weights = make_weights(shape);
    std::printf("%-26s", shape.name);
    for (const int m : tokens) {
      const auto flops = [&](LinearPath path) {
        return 2.0 * m * static_cast<double>(shape.out * shape.in) /
               bench.seconds(weights, m, path);
      };
      if (all_paths) {
        std::printf(" %4.0f|%4.0f|%4.0f", flops(LinearPath::kSkinny) / 1e12,
                    flops(LinearPath::kTiles) / 1e12, flops(LinearPath::kDense) / 1e12);
      } else {
        const double rate = flops(LinearPath::kAuto);
        std::printf("  %4.0f%4.0f", rate / 1e12, 100 * rate / bench.peak_flops);
      }
    }
    std::printf("\n");
    free_weights(weights);
  }
}

// What GPUs before sm_80 do, in f16, on the card at hand. The instructions of sm_70 need a build
// for 75; without, the second column repeats the first.
void old_gpus(const Bench& bench) {
  std::printf("\nf16, before sm_80 | sm_70 | written out, cuBLASLt: microseconds\n%-26s", "");
  constexpr int kTokens[] = {1, 2, 4, 8, 16, 32, 64};
  for (const int m : kTokens) std::printf("               M=%-3d", m);
  std::printf("\n");
  for (const size_t s : {size_t{1}, size_t{2}, size_t{3}, size_t{8}}) {
    std::vector<Weight> weights = make_weights(kShapes[s]);
    for (Weight& weight : weights) weight.type = Scalar::kF16;
    std::printf("%-26s", kShapes[s].name);
    for (const int m : kTokens) {
      if (weights[0].layout == Layout::kDense && m > 8) continue;  // cuBLASLt's
      std::printf(" %6.1f|%6.1f|%6.1f", bench.seconds(weights, m, LinearPath::kPre80) * 1e6,
                  bench.seconds(weights, m, LinearPath::kQuads) * 1e6,
                  bench.seconds(weights, m, LinearPath::kDense) * 1e6);
    }
    std::printf("\n");
    free_weights(weights);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing measured\n");
    return 0;
  }
  nibble::bench::print_card(nibble::bench::read_bandwidth());
  const nibble::Bench bench;
  const auto wanted = [&](const char* part) {
    for (int i = 1; i < argc; ++i)
      if (std::strcmp(argv[i], part) == 0) return true;
    return argc == 1;
  };
  if (wanted("few")) nibble::few_tokens(bench);
  if (wanted("many")) nibble::many_tokens(bench, false);
  if (wanted("paths")) nibble::many_tokens(bench, true);
  if (wanted("pre80")) nibble::old_gpus(bench);
  return 0;
}
