// Counting only.
#include "device/planning_device.h"

#include "base/format.h"
#include "device/compact_layout.h"

namespace nibble {
namespace {

Error not_here(const std::string& name, const char* who) {
  return make_error(ErrorCode::kUnsupported, "{}: {} is planned for, not present", who, name);
}

}  // namespace

Result<DeviceMemory> PlanningDevice::allocate(size_t, const char* who) {
  return not_here(name_, who);
}
Result<DeviceMemory> PlanningDevice::allocate_host(size_t, const char* who) {
  return not_here(name_, who);
}
void PlanningDevice::upload(void*, const void*, size_t) {
  NB_CHECK(false, "%s is planned for, not present", name_.c_str());
}
void PlanningDevice::download(void*, const void*, size_t) {
  NB_CHECK(false, "%s is planned for, not present", name_.c_str());
}
void PlanningDevice::copy(void*, const void*, size_t) {
  NB_CHECK(false, "%s is planned for, not present", name_.c_str());
}
void PlanningDevice::read(const void*, size_t) {
  NB_CHECK(false, "%s is planned for, not present", name_.c_str());
}

Tensor PlanningDevice::prepare_tensor(const Tensor& on_disk, Arena& arena) {
  return arena.tensor(on_disk.dtype, on_disk.shape, "weights");
}

int PlanningDevice::compact_seqs() const {
  return compact_seqs_of(compute_capability_);
}

Result<LinearWeight> PlanningDevice::prepare_compact(const LinearWeight& on_disk, Arena& arena) {
  if (!compact_fits(on_disk)) return prepare_linear(on_disk, arena);
  return place_compact(on_disk, arena);
}

LinearWeight PlanningDevice::prepare_linear(const LinearWeight& on_disk, Arena& arena) {
  LinearWeight weight = on_disk;
  if (on_disk.quantized() && on_disk.format.num_bits == 4 && on_disk.in_features % 64 == 0) {
    const int64_t rows = (on_disk.out_features + 15) / 16 * 16;
    weight.packed.shape = {rows, on_disk.packed.shape[1]};
    weight.scale.shape = {rows, on_disk.scale.shape[1], 2};
    weight.zero_point = {};
  }
  for (Tensor* part : {&weight.dense, &weight.packed, &weight.scale, &weight.zero_point})
    if (part->shape.rank() > 0) *part = prepare_tensor(*part, arena);
  return weight;
}

}  // namespace nibble
