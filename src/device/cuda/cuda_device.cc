// One GPU: plain allocations, pinned host memory, one non-blocking stream, weights repacked on the
// GPU as they arrive.
#include "device/cuda/cuda_device.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/log.h"
#include "device/compact_layout.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/cuda_quant_ops.h"
#include "device/cuda/handles.h"
#include "device/cuda/linear.h"
#include "device/cuda/linear_weight.h"
#include "device/cuda/matrix_product.h"
#include "device/cuda/read.h"
#include "device/cuda/weight_upload.h"
#include "device/nvml.h"

namespace nibble::cuda {
namespace {

// Scratch of the operations: partial sums of few-token products, dequantized pieces of weights,
// staging at load. A piece of a weight should stay in the L2 cache and still fill all
// multiprocessors with output tiles.
constexpr size_t kScratchBytes = size_t{96} << 20;
constexpr int64_t kNumCounters = int64_t{1} << 18;
constexpr size_t kFixedRowsBytes = size_t{4} << 20;  // twice 16 tokens of 60,000 inputs

Error cuda_error(cudaError_t error, const char* what) {
  return make_error(ErrorCode::kUnsupported, "{}: {} ({})", what, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

// What a recorded operation takes of device memory, its share of the graph's own blocks included;
// measured on an H100 with driver 580 (`memory` line at start) and rounded up.
constexpr size_t kRecordingBytesPerOperation = size_t{8} << 10;

class CudaRecording final : public Recording {
 public:
  CudaRecording(Graph graph, cudaStream_t stream) : graph_(std::move(graph)), stream_(stream) {}
  void replay() override { graph_.launch(stream_); }

 private:
  Graph graph_;
  cudaStream_t stream_;
};

std::string bus_id(int ordinal) {
  char text[32] = {};
  if (cudaDeviceGetPCIBusId(text, sizeof(text), ordinal) != cudaSuccess) return "";
  return text;
}

class CudaDevice final : public Device {
 public:
  // `nvml` is of the GPU, `used_before` what it said before this process had a context.
  CudaDevice(int ordinal, const cudaDeviceProp& properties, std::unique_ptr<Nvml> nvml,
             size_t used_before)
      : ordinal_(ordinal),
        description_(format("{}, {} multiprocessors, compute capability {}.{}", properties.name,
                            properties.multiProcessorCount, properties.major, properties.minor)),
        nvml_(std::move(nvml)),
        used_before_(used_before),
        stream_(Stream::create()) {
    workspace_.num_sms = properties.multiProcessorCount;
    workspace_.compute_capability = code_capability();
    workspace_.max_shared_bytes = properties.sharedMemPerBlockOptin;
  }

  Status reserve_workspace() {
    NB_TRY(scratch_, allocate(kScratchBytes, "operation scratch"));
    NB_TRY(counters_,
           allocate(static_cast<size_t>(kNumCounters) * sizeof(uint32_t), "operation counters"));
    NB_TRY(fixed_rows_, allocate(kFixedRowsBytes, "activations of few tokens"));
    workspace_.scratch = scratch_.data();
    workspace_.scratch_size = scratch_.size();
    workspace_.counters = static_cast<uint32_t*>(counters_.data());
    workspace_.num_counters = kNumCounters;
    workspace_.fixed_rows = fixed_rows_.data();
    workspace_.fixed_rows_size = fixed_rows_.size();
    load_matrix_library();
    held_at_open_ = held_by_this_process();
    if (held_at_open_ == 0) held_at_open_ = kUsualContext + kScratchBytes;
    return {};
  }

  std::string name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  DType natural_dtype() const override {
    return workspace_.compute_capability >= 80 ? DType::kBF16 : DType::kF16;
  }
  size_t operation_scratch_bytes(int32_t, int32_t, int32_t) const override {
    return scratch_.size() + counters_.size() + fixed_rows_.size();
  }
  // The driver's figure for this process; where it does not tell (containers, old drivers), what
  // the GPU holds more than before we came.
  size_t held_by_this_process() const override {
    const auto own = static_cast<unsigned>(::getpid());
    for (const GpuProcess& process : nvml_->processes())
      if (process.pid == own && process.bytes > 0) return process.bytes;
    const size_t used = nvml_->used();
    return used > used_before_ ? used - used_before_ : 0;
  }
  std::string memory_holders() const override {
    std::vector<GpuProcess> others = nvml_->processes();
    const auto own = static_cast<unsigned>(::getpid());
    std::erase_if(others, [&](const GpuProcess& process) { return process.pid == own; });
    std::sort(others.begin(), others.end(),
              [](const GpuProcess& a, const GpuProcess& b) { return a.bytes > b.bytes; });
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(others.size(), 3); ++i)
      text += format("{}pid {} {}", i == 0 ? "" : ", ", others[i].pid,
                     others[i].bytes == 0 ? "(size unknown)" : format_bytes(others[i].bytes));
    return text;
  }
  Ops& ops() override { return ops_; }
  QuantOps* quant_ops() override { return &quant_ops_; }

  DeviceMemoryInfo memory() const override {
    NB_CUDA(cudaSetDevice(ordinal_));  // any thread may ask
    DeviceMemoryInfo info;
    NB_CUDA(cudaMemGetInfo(&info.free, &info.total));
    info.held = held_at_open_;
    return info;
  }

  Result<DeviceMemory> allocate(size_t bytes, const char* who) override {
    if (bytes == 0) return DeviceMemory();
    NB_CUDA(cudaSetDevice(ordinal_));
    void* data = nullptr;
    if (cudaMalloc(&data, bytes) != cudaSuccess) {
      cudaGetLastError();  // forget it: running out is reported, not fatal
      return make_error(ErrorCode::kOutOfMemory,
                        "{}: needs {} of GPU memory, {} are free; stop other programs on this "
                        "GPU, or ask for less: --max-model-len, --max-num-seqs and "
                        "--gpu-memory-utilization to serve, --max-seq-length or --device cpu to "
                        "quantize",
                        who, format_bytes(bytes), format_bytes(memory().free));
    }
    NB_CUDA(cudaMemsetAsync(data, 0, bytes, stream_.get()));
    NB_CUDA(cudaStreamSynchronize(stream_.get()));
    return DeviceMemory(data, bytes, [](void* begin, size_t) { cudaFree(begin); });
  }

  Result<DeviceMemory> allocate_host(size_t bytes, const char* who) override {
    if (bytes == 0) return DeviceMemory();
    NB_CUDA(cudaSetDevice(ordinal_));
    void* data = nullptr;
    if (cudaMallocHost(&data, bytes) != cudaSuccess) {
      cudaGetLastError();
      return make_error(ErrorCode::kOutOfMemory, "{}: cannot pin {} of host memory", who,
                        format_bytes(bytes));
    }
    std::fill_n(static_cast<std::byte*>(data), bytes, std::byte{0});
    return DeviceMemory(data, bytes, [](void* begin, size_t) { cudaFreeHost(begin); });
  }

  void upload(void* to_device, const void* from_host, size_t bytes) override {
    ops_.memory_changed();
    NB_CUDA(cudaMemcpyAsync(to_device, from_host, bytes, cudaMemcpyHostToDevice, stream_.get()));
  }
  void download(void* to_host, const void* from_device, size_t bytes) override {
    NB_CUDA(cudaMemcpyAsync(to_host, from_device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  }
  void copy(void* to_device, const void* from_device, size_t bytes) override {
    ops_.memory_changed();
    NB_CUDA(
        cudaMemcpyAsync(to_device, from_device, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
  }
  void read(const void* data, size_t bytes) override {
    enqueue_read(data, bytes, workspace_, stream_.get());
  }
  void synchronize() override { NB_CUDA(cudaStreamSynchronize(stream_.get())); }

  bool can_record() const override { return true; }
  size_t recording_bytes(int64_t num_operations) const override {
    return static_cast<size_t>(num_operations) * kRecordingBytesPerOperation;
  }
  std::unique_ptr<Recording> record(const std::function<void()>& enqueue) override {
    count_allocation();
    // A replay must not rely on what was written before it, nor the next operation on what it
    // wrote.
    ops_.memory_changed();
    auto recording =
        std::make_unique<CudaRecording>(Graph::capture(stream_.get(), enqueue), stream_.get());
    ops_.memory_changed();
    return recording;
  }

  Tensor prepare_tensor(const Tensor& on_disk, Arena& arena) override {
    const Tensor prepared = arena.tensor(on_disk.dtype, on_disk.shape, "weight");
    if (prepared.data != nullptr) weights_.copy(prepared.data, on_disk.data, on_disk.num_bytes());
    return prepared;
  }
  void end_loading() override { weights_.end(); }

  LinearWeight prepare_linear(const LinearWeight& on_disk, Arena& arena) override {
    LinearWeight prepared = on_disk;
    if (!on_disk.quantized()) {
      prepared.dense = prepare_tensor(on_disk.dense, arena);
      return prepared;
    }
    const int64_t num_groups = on_disk.scale.shape[1];
    if (!tiles_fit(on_disk.in_features, on_disk.format.num_bits, num_groups,
                   scalar_of(on_disk.scale.dtype))) {
      prepared.packed = prepare_tensor(on_disk.packed, arena);
      prepared.scale = prepare_tensor(on_disk.scale, arena);
      if (!on_disk.zero_point.empty())
        prepared.zero_point = prepare_tensor(on_disk.zero_point, arena);
      return prepared;
    }
    const int64_t row_tiles = (on_disk.out_features + 15) / 16;
    prepared.packed =
        arena.tensor(DType::kI32, {row_tiles, on_disk.in_features / 64, 32, 4}, "packed weight");
    prepared.scale =
        arena.tensor(on_disk.scale.dtype, {row_tiles, num_groups, 8, 4}, "packed scales");
    prepared.zero_point = Tensor{};
    ops_.expect_packed(on_disk.in_features, on_disk.in_features / num_groups);
    if (!arena.counting()) repack(on_disk, prepared);
    return prepared;
  }

  int compact_seqs() const override { return compact_seqs_of(workspace_.compute_capability); }
  Result<LinearWeight> prepare_compact(const LinearWeight& on_disk, Arena& arena) override {
    if (!compact_fits(on_disk) || workspace_.compute_capability < 80)
      return prepare_linear(on_disk, arena);
    const LinearWeight prepared = place_compact(on_disk, arena);
    if (arena.counting()) return prepared;
    const int64_t outside = compact(on_disk, prepared);
    if (outside <= compact_rest_capacity(on_disk)) return prepared;
    log_warning(
        "a weight [{}, {}] stays in 16 bits, {} beyond the plan: {} of its values lie outside the "
        "usual range of exponents of their row, {} would have room",
        on_disk.out_features, on_disk.in_features, format_bytes(on_disk.num_bytes()), outside,
        compact_rest_capacity(on_disk));
    NB_TRY(DeviceMemory memory, allocate(on_disk.num_bytes(), "a weight that stays in 16 bits"));
    Arena own(memory.data(), memory.size());
    beyond_plan_.push_back(std::move(memory));
    return prepare_linear(on_disk, own);
  }

 private:
  // Uploads rows into the scratch and repacks them from there, piece by piece.
  void repack(const LinearWeight& from, const LinearWeight& to) {
    const int64_t num_groups = from.scale.shape[1];
    const int64_t words = from.packed.shape[1];
    const size_t scale_size = dtype_size(from.scale.dtype);
    const size_t row_bytes =
        static_cast<size_t>(words) * 4 + static_cast<size_t>(num_groups) * (scale_size + 1);
    const int64_t rows_at_once =
        static_cast<int64_t>((workspace_.scratch_size - 1024) / row_bytes) / 16 * 16;
    NB_CHECK(rows_at_once > 0, "a weight row of %zu bytes", row_bytes);
    for (int64_t begin = 0; begin < from.out_features; begin += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, from.out_features - begin);
      Arena staging(workspace_.scratch, workspace_.scratch_size);
      const Tensor packed = from.packed.rows(begin, begin + rows);
      const Tensor scale = from.scale.rows(begin, begin + rows);
      RepackLaunch launch{};
      launch.packed = static_cast<const uint32_t*>(prepare_tensor(packed, staging).data);
      launch.scale = prepare_tensor(scale, staging).data;
      if (!from.zero_point.empty())
        launch.zero_point = static_cast<const int8_t*>(
            prepare_tensor(from.zero_point.rows(begin, begin + rows), staging).data);
      launch.begin = begin;
      launch.end = begin + rows;
      launch.to = weight_of(to);
      launch_repack(launch, stream_.get());
    }
  }

  // Uploads rows into the scratch and packs them from there, piece by piece; returns how many
  // weights lie outside the windows.
  int64_t compact(const LinearWeight& from, const LinearWeight& to) {
    CompactWeight view = compact_of(weight_of(to));
    view.rest_capacity = static_cast<uint32_t>(compact_rest_capacity(from));
    uint32_t* used = view.rest + view.rest_capacity;
    NB_CUDA(cudaMemsetAsync(used, 0, sizeof(*used), stream_.get()));
    const auto row_bytes = static_cast<size_t>(from.in_features) * 2;
    const int64_t rows_at_once =
        static_cast<int64_t>((workspace_.scratch_size - 1024) / row_bytes) / 16 * 16;
    for (int64_t begin = 0; begin < from.out_features; begin += rows_at_once) {
      const int64_t end = std::min(begin + rows_at_once, from.out_features);
      Arena staging(workspace_.scratch, workspace_.scratch_size);
      const Tensor rows = prepare_tensor(from.dense.rows(begin, end), staging);
      launch_compact(rows.as<const uint16_t>(), begin, end, view, used, stream_.get());
    }
    uint32_t outside = 0;
    NB_CUDA(
        cudaMemcpyAsync(&outside, used, sizeof(outside), cudaMemcpyDeviceToHost, stream_.get()));
    synchronize();
    return outside;
  }

  // Where nothing tells what the context takes.
  static constexpr size_t kUsualContext = size_t{512} << 20;

  int ordinal_;
  std::string description_;
  std::unique_ptr<Nvml> nvml_;
  size_t used_before_;
  size_t held_at_open_ = 0;
  Stream stream_;
  Workspace workspace_;
  DeviceMemory scratch_;
  DeviceMemory counters_;
  DeviceMemory fixed_rows_;
  std::vector<DeviceMemory> beyond_plan_;  // weights that have no compact form
  CudaOps ops_{stream_.get(), workspace_};
  CudaQuantOps quant_ops_{stream_.get(), workspace_};
  WeightUpload weights_{stream_.get()};
};

}  // namespace

bool driver_present() {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
}

Result<std::unique_ptr<Device>> open(int ordinal) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return Error{ErrorCode::kUnsupported,
                 "cuda: no NVIDIA driver found (libcuda.so.1); install one, or use "
                 "the CPU backend"};
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess)
    return make_error(
        ErrorCode::kUnsupported,
        "cuda: {} (driver for CUDA {}.{}, this program was built with CUDA {}.{}); update the "
        "driver, or use the CPU backend",
        cudaGetErrorString(error), driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
        CUDART_VERSION % 1000 / 10);
  if (ordinal >= count)
    return make_error(ErrorCode::kUnsupported,
                      "cuda: GPU {} asked for, {} found; check CUDA_VISIBLE_DEVICES, or use the "
                      "CPU backend",
                      ordinal, count);
  // Before the context: what is in use now is not ours.
  auto nvml = std::make_unique<Nvml>(bus_id(ordinal));
  const size_t used_before = nvml->used();
  if (const cudaError_t error = cudaSetDevice(ordinal); error != cudaSuccess)
    return cuda_error(error, "cuda: cannot use the GPU");
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal); error != cudaSuccess)
    return cuda_error(error, "cuda: cannot read the GPU's properties");
  if (code_capability() == 0)
    return make_error(ErrorCode::kUnsupported,
                      "cuda: {} has compute capability {}.{}, for which this program holds no "
                      "kernels; build with -DNIBBLE_CUDA_ARCHS={}{}",
                      properties.name, properties.major, properties.minor, properties.major,
                      properties.minor);
  auto device = std::make_unique<CudaDevice>(ordinal, properties, std::move(nvml), used_before);
  NB_TRY_STATUS(device->reserve_workspace());
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace nibble::cuda
