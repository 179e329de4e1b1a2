// Whole steps of a checkpoint on a GPU, through the engine's own runner: decode as bytes that must
// move over the read bandwidth, prefill as FLOP/s over cuBLASLt's rate for one large product.
//   bench_cuda_step DIR [--kv DTYPE] [--decode BATCHxCONTEXT ...] [--prefill CHUNKxCONTEXT ...]
#include <cuda_profiler_api.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "cuda_timing.h"
#include "device/cuda/linear.h"
#include "engine/model_runner.h"

namespace nibble {
namespace {

struct Shape2 {
  int32_t tokens = 0;  // decode: sequences of one; prefill: tokens of one sequence
  int32_t context = 0;
};

// cuBLASLt's bf16 FLOP/s for 8192^3, the median of 20.
double matrix_peak() {
  constexpr int64_t kSide = 8192;
  cuda::Workspace workspace = bench::make_workspace(size_t{96} << 20);
  cuda::LinearLaunch launch{};
  launch.x = bench::random_bf16(kSide * kSide);
  launch.x_type = launch.out_type = cuda::Scalar::kBF16;
  launch.weight.layout = cuda::Layout::kDense;
  launch.weight.type = cuda::Scalar::kBF16;
  launch.weight.out_features = launch.weight.in_features = kSide;
  launch.weight.values = bench::random_bf16(kSide * kSide);
  launch.out = bench::device_bytes(kSide * kSide * 2);
  launch.num_tokens = kSide;
  launch.path = cuda::LinearPath::kDense;
  const cuda::Stream stream = cuda::Stream::create();
  launch_linear(launch, workspace, stream.get());
  NB_CUDA(cudaStreamSynchronize(stream.get()));
  const double ms = bench::median_ms([&](cudaStream_t s) { launch_linear(launch, workspace, s); });
  for (const void* memory : {launch.x, launch.weight.values, static_cast<const void*>(launch.out),
                             static_cast<const void*>(workspace.scratch)})
    NB_CUDA(cudaFree(const_cast<void*>(memory)));
  return 2.0 * kSide * kSide * kSide / (ms * 1e-3);
}

class Bench {
 public:
  Bench(const char* folder, const std::string& kv, const std::vector<Shape2>& decode,
        const std::vector<Shape2>& prefill)
      : bandwidth_(bench::read_bandwidth()), peak_(matrix_peak()) {
    bench::print_card(bandwidth_);
    std::printf("matrix peak %.0f TFLOP/s\n", peak_ / 1e12);
    const auto begin = std::chrono::steady_clock::now();
    dir_ = std::make_unique<ModelDir>(ModelDir::open(folder).value());
    device_ = open_device(Backend::kCuda).value();
    const DeviceMemoryInfo before = device_->memory();
    model_ = std::make_unique<Model>(Model::load(*dir_, *device_, DType::kBF16).value());
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("loaded %.2f GB in %.2f s\n", static_cast<double>(model_->arena_bytes()) / 1e9,
                seconds);
    EngineOptions options;
    options.kv_cache_dtype = kv;
    options.max_num_seqs = 1;
    options.num_state_snapshots = 0;
    options.gpu_memory_utilization = 0.97f;
    int64_t most_blocks = 0;
    for (const Shape2& s : decode) {
      options.max_num_seqs = std::max(options.max_num_seqs, s.tokens);
      options.max_model_len = std::max(options.max_model_len, s.context + 1);
      most_blocks = std::max<int64_t>(most_blocks, int64_t{s.tokens} * (s.context / 16 + 1));
    }
    for (const Shape2& s : prefill) {
      options.max_num_batched_tokens = std::max(options.max_num_batched_tokens, s.tokens);
      options.max_model_len = std::max(options.max_model_len, s.context + s.tokens);
    }
    options.num_gpu_blocks_override =
        static_cast<int>(std::max<int64_t>(most_blocks, options.max_model_len / 16 + 1));
    plan_ = plan_memory(*model_, options, memory_target(*device_, before)).value();
    runner_ = std::make_unique<ModelRunner>(ModelRunner::create(*model_, *device_, plan_).value());
    std::vector<int> sizes;
    for (const Shape2& s : decode) sizes.push_back(s.tokens);
    std::sort(sizes.begin(), sizes.end());
    runner_->record(sizes);
  }

  void decode(const Shape2& shape) {
    std::vector<std::unique_ptr<Sequence>> sequences;
    std::vector<ScheduledSequence> step;
    int32_t block = 0;
    for (int32_t s = 0; s < shape.tokens; ++s) {
      sequences.push_back(sequence(shape.context, 1, s, &block));
      step.push_back({.sequence = sequences.back().get(), .num_tokens = 1, .wants_logits = true});
    }
    const double seconds = median_seconds(step, 30);
    const std::vector<int32_t> fresh(step.size(), 1), context(step.size(), shape.context);
    const StepCost cost = model_->step_cost(fresh, context, shape.tokens, plan_.caches.kv_dtype);
    const double rate = static_cast<double>(cost.bytes()) / seconds;
    std::printf(
        "decode batch %3d context %6d: %7.3f ms, %7.1f tok/s, %6.2f GB, %5.2f TB/s, %4.1f %%\n",
        shape.tokens, shape.context, seconds * 1e3, shape.tokens / seconds,
        static_cast<double>(cost.bytes()) / 1e9, rate / 1e12, 100 * rate / bandwidth_);
  }

  void prefill(const Shape2& shape) {
    int32_t block = 0;
    const auto one = sequence(shape.context, shape.tokens, 0, &block);
    const double seconds = median_seconds(
        {{.sequence = one.get(), .num_tokens = shape.tokens, .wants_logits = true}}, 5);
    const StepCost cost =
        model_->step_cost({&shape.tokens, 1}, {&shape.context, 1}, 1, plan_.caches.kv_dtype);
    const double rate = static_cast<double>(cost.flops()) / seconds;
    std::printf(
        "prefill %5d behind %6d: %8.2f ms, %7.0f tok/s, %6.1f TFLOP, %4.0f TFLOP/s, %4.1f %%\n",
        shape.tokens, shape.context, seconds * 1e3, shape.tokens / seconds,
        static_cast<double>(cost.flops()) / 1e12, rate / 1e12, 100 * rate / peak_);
  }

 private:
  // A sequence with blocks of its own as far as there are any; what its caches hold does not
  // matter.
  std::unique_ptr<Sequence> sequence(int32_t context, int32_t fresh, int32_t slot,
                                     int32_t* block) const {
    auto made = std::make_unique<Sequence>();
    made->tokens.assign(static_cast<size_t>(context + fresh), 17 + slot);
    made->num_computed = context;
    made->state_slot = slot;
    made->blocks.resize(static_cast<size_t>((context + fresh + 15) / 16));
    for (int32_t& b : made->blocks) b = (*block)++ % plan_.caches.num_blocks;
    return made;
  }
  double median_seconds(const std::vector<ScheduledSequence>& step, int repeats) {
    std::vector<double> times;
    for (int i = -3; i < repeats; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      runner_->launch(step, true);
      runner_->collect_greedy();
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
      if (i >= 0) times.push_back(time.count());
    }
    // One step more between profiler marks, for `ncu --profile-from-start off`.
    cudaProfilerStart();
    runner_->launch(step, true);
    runner_->collect_greedy();
    cudaProfilerStop();
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  double bandwidth_;
  double peak_;
  std::unique_ptr<ModelDir> dir_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Model> model_;
  MemoryPlan plan_;
  std::unique_ptr<ModelRunner> runner_;
};

int run(int argc, char** argv) {
  if (argc < 2) {
    std::printf(
        "usage: bench_cuda_step DIR [--kv DTYPE] [--decode BATCHxCONTEXT] [--prefill ...]\n");
    return 2;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing measured\n");
    return 0;
  }
  std::string kv = "auto";
  std::vector<Shape2> decode, prefill;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--kv") == 0) {
      kv = argv[i + 1];
      continue;
    }
    char* end = nullptr;
    const auto first = static_cast<int32_t>(std::strtol(argv[i + 1], &end, 10));
    const auto second = static_cast<int32_t>(*end == 'x' ? std::strtol(end + 1, nullptr, 10) : 0);
    (std::strcmp(argv[i], "--decode") == 0 ? decode : prefill).push_back({first, second});
  }
  Bench bench(argv[1], kv, decode, prefill);
  for (const Shape2& shape : decode) bench.decode(shape);
  for (const Shape2& shape : prefill) bench.prefill(shape);
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  return nibble::run(argc, argv);
}
