// A device: its memory, its operations, and the layout it wants weights in.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/allocation_counter.h"
#include "base/result.h"
#include "device/ops.h"
#include "tensor/arena.h"

namespace nibble {

class QuantOps;

// Owns one allocation of device memory; move-only.
class DeviceMemory {
 public:
  using Deleter = void (*)(void*, size_t);
  DeviceMemory() = default;
  DeviceMemory(void* data, size_t size, Deleter deleter)
      : data_(data), size_(size), deleter_(deleter) {
    if (data != nullptr) count_allocation();
  }
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(deleter_, other.deleter_);
    return *this;
  }
  ~DeviceMemory() {
    if (data_ != nullptr) deleter_(data_, size_);
  }
  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  Deleter deleter_ = nullptr;
};

// Bytes of the memory that allocate() takes from.
struct DeviceMemoryInfo {
  size_t total = 0;
  size_t free = 0;  // may be taken now; other processes' memory is not in it
  // The host's own memory: weights stay in mapped files, and other programs come and go.
  bool is_host = false;
  // `total` is what a container or service manager allows this process, less than there is.
  bool is_limit = false;
  // What this process held of it before the first allocate(): driver context, code, and the
  // workspace that the device keeps for its operations. Not part of `free`.
  size_t held = 0;
};

// Operations enqueued once and kept, to be enqueued again as one. Pointers and shapes are those of
// the recording; what the memory holds is read anew each time.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

// One engine thread uses a device; only memory() may be called from others.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu"
  // For people, one line: "NVIDIA H100 80GB HBM3, 132 multiprocessors".
  virtual std::string description() const { return name(); }
  // What `--dtype auto` computes in here.
  virtual DType natural_dtype() const { return DType::kF32; }
  virtual Ops& ops() = 0;
  // Null where the quantizer's own (quant/host_quant_ops.h) reach this device's memory.
  virtual QuantOps* quant_ops() { return nullptr; }
  virtual DeviceMemoryInfo memory() const = 0;
  // Every operation computes a row in the same order whatever rows are beside it, so that a
  // sequence's greedy tokens do not depend on the batch.
  virtual bool batch_invariant() const { return false; }
  // Who else holds this memory, for the message when something does not fit: "python3 (pid 4711)
  // 12.0 GiB, ..."; "" when nobody does or it cannot be known.
  virtual std::string memory_holders() const { return ""; }
  // Memory that the operations themselves need at a context of `max_context` tokens, beyond what
  // the model takes from its arenas; 0 where they need none or hold it already.
  virtual size_t operation_scratch_bytes(int32_t /*num_heads_per_kv_head*/, int32_t /*head_dim*/,
                                         int32_t /*max_context*/) const {
    return 0;
  }
  // What allocate() and the rest of this process hold of the device's memory now, as the driver
  // sees it; 0 where it cannot be known.
  virtual size_t held_by_this_process() const { return 0; }
  // Zeroed memory, or kOutOfMemory naming `who` and the size.
  virtual Result<DeviceMemory> allocate(size_t bytes, const char* who) = 0;
  // Zeroed host memory that upload() and download() reach at full speed (pinned on CUDA).
  virtual Result<DeviceMemory> allocate_host(size_t bytes, const char* who) = 0;

  // Copies, enqueued on the compute stream in order with the operations. Host memory must come from
  // allocate_host() and stay untouched until synchronize(). On a CPU they are done on return.
  virtual void upload(void* to_device, const void* from_host, size_t bytes) = 0;
  virtual void download(void* to_host, const void* from_device, size_t bytes) = 0;
  virtual void copy(void* to_device, const void* from_device, size_t bytes) = 0;
  // Returns when everything enqueued so far is done.
  virtual void synchronize() = 0;
  // Reads device memory as fast as this device can and does nothing with it: what operations that
  // are bound by memory are measured against. Enqueued. `data` and `bytes` are multiples of 64.
  virtual void read(const void* data, size_t bytes) = 0;

  // Records what `enqueue` enqueues instead of running it; run the same operations once before, so
  // that what they set up on first use is there. Null where the device cannot. Before readiness
  // only: it takes memory, about recording_bytes() for `num_operations` calls of Ops.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*enqueue*/) {
    return nullptr;
  }
  virtual bool can_record() const { return false; }
  virtual size_t recording_bytes(int64_t /*num_operations*/) const { return 0; }

  // A tensor of the checkpoint (host memory, possibly a mapped file) where operations can read it:
  // itself on a CPU, elsewhere a copy in the arena, which `on_disk` need not outlive. Null pointers
  // with a counting arena.
  virtual Tensor prepare_tensor(const Tensor& on_disk, Arena& arena) = 0;
  // Bytes that the prepared form of `weight` (a disk-layout weight) takes in the arena, and the
  // prepared weight itself; with a counting arena the pointers of the result are null.
  // The CPU keeps the disk layout and returns weights that point into the mapped file.
  virtual LinearWeight prepare_linear(const LinearWeight& on_disk, Arena& arena) = 0;
  // The same for a weight that may be held in fewer bits without loss; where the device has no such
  // form for it, or its values have none, as prepare_linear(). In the latter case, which counting
  // cannot foresee, its memory is not of the arena; kOutOfMemory if there is none.
  virtual Result<LinearWeight> prepare_compact(const LinearWeight& on_disk, Arena& arena) {
    return prepare_linear(on_disk, arena);
  }
  // Up to how many sequences decode faster with weights prepared so than with plain ones.
  virtual int compact_seqs() const { return 0; }
  // Whether prepare_linear() leaves 16- and 32-bit weights as prepare_tensor() does: then a head
  // that is the embedding needs no second copy.
  virtual bool dense_weights_are_plain() const { return true; }
  // All weights are prepared: waits for them and lets go of what only loading needed.
  virtual void end_loading() {}
};

enum class Backend { kAuto, kReference, kCpu, kCuda };

// auto, cpu, cuda, reference; kInvalidArgument lists them.
Result<Backend> parse_backend(const std::string& name);

// `num_threads` 0: usable_threads(); ignored by a GPU. kAuto is the GPU where there is a usable
// one, else the CPU; the log says which, and what keeps a present GPU from being used. kCuda
// without a usable GPU, driver or CUDA in this build is kUnsupported with what to do about it. The
// only place that names a backend.
Result<std::unique_ptr<Device>> open_device(Backend backend, int num_threads = 0);

}  // namespace nibble
