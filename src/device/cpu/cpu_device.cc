// Host memory, weights stay in the mapped files.
#include "device/cpu/cpu_device.h"

#include <algorithm>

#include "device/cpu/cpu_ops.h"
#include "device/host_memory.h"

namespace nibble::cpu {
namespace {

class CpuDevice final : public HostDevice {
 public:
  explicit CpuDevice(int num_threads) : ops_(num_threads) {}
  std::string name() const override { return "cpu"; }
  Ops& ops() override { return ops_; }
  size_t operation_scratch_bytes(int32_t num_heads_per_kv_head, int32_t head_dim,
                                 int32_t max_context) const override {
    return ops_.attention_scratch_bytes(num_heads_per_kv_head, head_dim, max_context);
  }
  void read(const void* data, size_t bytes) override {
    constexpr size_t kPiece = size_t{1} << 20;
    const auto* const begin = static_cast<const std::byte*>(data);
    ops_.pool().parallel_for((bytes + kPiece - 1) / kPiece, 4, [&](size_t first, size_t last) {
      const size_t end = std::min(last * kPiece, bytes);
      HostDevice::read(begin + first * kPiece, end - first * kPiece);
    });
  }

 private:
  CpuOps ops_;
};

}  // namespace

std::unique_ptr<Device> open(int num_threads) {
  return std::make_unique<CpuDevice>(num_threads);
}

}  // namespace nibble::cpu
