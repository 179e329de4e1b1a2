// Tensors to launches: everything but sequence mixing and experts.
#include "device/cuda/cuda_ops.h"

#include <algorithm>

#include "device/cuda/elementwise.h"
#include "device/cuda/linear.h"
#include "device/cuda/linear_weight.h"
#include "device/cuda/sampling.h"

namespace nibble::cuda {
namespace {

int64_t rows_of(const Tensor& x) {
  return x.num_elements() == 0 ? 0 : x.shape[0];
}

}  // namespace

void CudaOps::embed(const Tensor& table, const int32_t* ids, const Tensor& out) {
  launch_gather({table.data, scalar_of(table.dtype), ids, out.data, scalar_of(out.dtype),
                 rows_of(out), table.shape[1]},
                writing());
}

void CudaOps::gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) {
  const Scalar type = scalar_of(x.dtype);
  launch_gather({x.data, type, rows, out.data, type, rows_of(out), out.shape[1]}, writing());
}

void CudaOps::expect_packed(int64_t in_features, int64_t group_size) {
  auto known = std::ranges::find(packed_inputs_, in_features, &PackedInputs::in_features);
  if (known == packed_inputs_.end()) known = packed_inputs_.insert(known, {in_features, false});
  known->small_groups = known->small_groups || group_size < kFixedGroup;
}

FixedRows CudaOps::room_for(const Tensor& out, int64_t in_features) const {
  const auto expected = std::ranges::find(packed_inputs_, in_features, &PackedInputs::in_features);
  if (dtype_size(out.dtype) != 2 || expected == packed_inputs_.end()) return {};
  return fixed_rows_of(out.num_elements() / in_features, in_features, expected->small_groups,
                       workspace_);
}

LinearLaunch CudaOps::launch_of(const Tensor& x, const LinearWeight& weight,
                                const Tensor& out) const {
  LinearLaunch launch{x.data,   scalar_of(x.dtype),   weight_of(weight),
                      out.data, scalar_of(out.dtype), x.num_elements() / weight.in_features};
  if (x.data == fixed_.x && launch.num_tokens == fixed_.rows.num_tokens &&
      weight.in_features == fixed_.rows.in_features)
    launch.fixed = fixed_.rows;
  return launch;
}

void CudaOps::written_by_linear(const Tensor& out) {
  const auto* begin = static_cast<const std::byte*>(out.data);
  const auto* x = static_cast<const std::byte*>(fixed_.x);
  const auto x_bytes = fixed_.rows.num_tokens * fixed_.rows.in_features * 2;
  if (begin < x + x_bytes && x < begin + out.num_bytes()) fixed_ = {};
}

void CudaOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                       const Tensor& out) {
  const int64_t n = weight.num_elements();
  const FixedRows fixed = room_for(out, n);
  launch_norm({x.data, nullptr, weight.data, out.data, scalar_of(x.dtype), scalar_of(weight.dtype),
               x.num_elements() / n, n, eps, weight_offset, nullptr, fixed},
              workspace_, writing());
  fixed_ = {out.data, fixed};
}

void CudaOps::gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                             const Tensor& out) {
  const int64_t n = weight.num_elements();
  launch_norm({x.data, gate.data, weight.data, out.data, scalar_of(x.dtype),
               scalar_of(weight.dtype), x.num_elements() / n, n, eps, 0.0f},
              workspace_, writing());
}

void CudaOps::linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) {
  launch_linear(launch_of(x, weight, out), workspace_, stream_);
  written_by_linear(out);
}

void CudaOps::add_rms_norm(const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                           float weight_offset, const Tensor& out) {
  const int64_t n = weight.num_elements();
  const FixedRows fixed = room_for(out, n);
  launch_norm({x.data, nullptr, weight.data, out.data, scalar_of(x.dtype), scalar_of(weight.dtype),
               x.num_elements() / n, n, eps, weight_offset, y.data, fixed},
              workspace_, writing());
  fixed_ = {out.data, fixed};
}

void CudaOps::linear_group(const Tensor& x, std::initializer_list<LinearPart> parts) {
  NB_CHECK(parts.size() <= kMostLinearParts, "%zu products at once", parts.size());
  LinearLaunch launches[kMostLinearParts];
  int count = 0;
  for (const LinearPart& part : parts) launches[count++] = launch_of(x, *part.weight, part.out);
  launch_linear_group(launches, count, workspace_, stream_);
  for (const LinearPart& part : parts) written_by_linear(part.out);
}

void CudaOps::add(const Tensor& x, const Tensor& y) {
  launch_binary({Binary::kAdd, x.data, y.data, x.data, scalar_of(x.dtype), x.num_elements()},
                workspace_, writing());
}

void CudaOps::split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) {
  const int64_t bytes = first.shape[2] * static_cast<int64_t>(dtype_size(x.dtype));
  const int64_t num_heads = first.shape[0] * first.shape[1];
  const auto* from = static_cast<const std::byte*>(x.data);
  launch_copy_rows({from, first.data, num_heads, bytes, 2 * bytes, bytes}, writing());
  launch_copy_rows({from + bytes, second.data, num_heads, bytes, 2 * bytes, bytes}, writing());
}

void CudaOps::slice_columns(const Tensor& x, int64_t begin, const Tensor& out) {
  const int64_t rows = rows_of(out);
  if (rows == 0) return;
  const auto size = static_cast<int64_t>(dtype_size(x.dtype));
  const int64_t width = out.num_elements() / rows * size;
  launch_copy_rows({static_cast<const std::byte*>(x.data) + begin * size, out.data, rows, width,
                    x.num_elements() / rows * size, width},
                   writing());
}

void CudaOps::sigmoid_mul(const Tensor& x, const Tensor& gate) {
  const int64_t count = x.num_elements();
  if (count == 0) return;
  const FixedRows fixed = room_for(x, count / rows_of(x));
  launch_binary({Binary::kSigmoidMul, x.data, gate.data, x.data, scalar_of(x.dtype), count,
                 count / gate.num_elements(), fixed},
                workspace_, writing());
  fixed_ = {x.data, fixed};
}

void CudaOps::silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  const int64_t count = gate.num_elements();
  if (count == 0) return;
  const FixedRows fixed = room_for(out, count / rows_of(out));
  launch_binary(
      {Binary::kSiluMul, gate.data, up.data, out.data, scalar_of(gate.dtype), count, 1, fixed},
      workspace_, writing());
  fixed_ = {out.data, fixed};
}

RopeLaunch rope_launch(const RopeArgs& args, int64_t num_tokens) {
  RopeLaunch launch{};
  launch.positions = args.positions;
  launch.num_tokens = num_tokens;
  launch.half = args.rotary_dim / 2;
  NB_CHECK(launch.half <= RopeLaunch::kMaxFrequencies, "rotary_dim %d", args.rotary_dim);
  std::copy_n(args.mrope_section, 3, launch.mrope_section);
  launch.attention_scaling = args.attention_scaling;
  std::copy_n(args.inv_freq, launch.half, launch.inv_freq);
  return launch;
}

void CudaOps::rope(const RopeArgs& args) {
  if (args.x.num_elements() == 0) return;
  RopeLaunch launch = rope_launch(args, args.x.shape[0]);
  launch.x = args.x.data;
  launch.type = scalar_of(args.x.dtype);
  launch.num_heads = args.x.shape[1];
  launch.head_dim = args.x.shape[2];
  launch_rope(launch, writing());
}

void CudaOps::kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                        const KvCache& cache) {
  if (batch.num_tokens == 0) return;
  launch_kv_append({k.data, v.data, scalar_of(k.dtype), cache.k.data, cache.v.data,
                    scalar_of(cache.format.dtype), k.num_elements() / batch.num_tokens,
                    batch.num_tokens, batch.num_seqs, batch.query_start, batch.context_len,
                    batch.block_table, batch.max_blocks, batch.block_size},
                   writing());
}

void CudaOps::argmax(const Tensor& logits, const Tensor& ids) {
  launch_argmax({logits.as<const float>(), static_cast<int32_t>(rows_of(logits)),
                 static_cast<int32_t>(logits.shape[1]), ids.as<int32_t>(), nullptr},
                workspace_, writing());
}

}  // namespace nibble::cuda
