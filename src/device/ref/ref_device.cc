// One thread, no preparation.
#include "device/ref/ref_device.h"

#include "device/host_memory.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

class RefDevice final : public HostDevice {
 public:
  std::string name() const override { return "reference"; }
  Ops& ops() override { return ops_; }

 private:
  RefOps ops_;
};

}  // namespace

std::unique_ptr<Device> open() {
  return std::make_unique<RefDevice>();
}

}  // namespace nibble::ref
