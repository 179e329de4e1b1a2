// y = x W' for up to 8 tokens: a thread block per row tile, its warps taking turns along the row,
// their sums joined in shared memory. Many short blocks keep the memory busy without any hand-over
// between them; every warp reads other activations, which is why it is not for more tokens.
//
// kWide: two units at a time under one scale, in groups of 128 or more: the instructions around the
// dequantization are what limits packed weights here, and this halves them.
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

template <Kind kind, bool kWide>
constexpr int kVectorValueBytes = kind == Kind::kDense ? 2048
                                  : kWide              ? 1024
                                                       : 512;
template <Kind kind, bool kWide>
constexpr int kVectorStageBytes = kVectorValueBytes<kind, kWide> + (kind == Kind::kDense ? 0
                                                                    : kind == Kind::kW4  ? 64
                                                                                         : 128);
template <Kind kind, bool kWide>
constexpr int kVectorStages = kind == Kind::kDense ? 4
                              : kWide              ? 6
                                                   : 8;

template <class T, Kind kind, bool kWide>
__global__ void __launch_bounds__(kWarps * 32, 3) vector_kernel(const SkinnyArgs args) {
#if NB_SKINNY_CODE
  constexpr int kUnits = kWide ? 2 : 1;  // in a stage
  constexpr int kDepth = kVectorStages<kind, kWide>;
  constexpr int kStage = kVectorStageBytes<kind, kWide>;
  extern __shared__ __align__(16) char shared[];
  __shared__ __align__(16) float parts[kWarps][128];
  let_next_kernel_start();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int row_tile = static_cast<int>(blockIdx.x);
  char* ring = shared + warp * kDepth * kStage;
  const int count = (args.units_per_row / kUnits - warp + kWarps - 1) / kWarps;

  const char* values[2];
  const char* scale = nullptr;
  if constexpr (kind == Kind::kDense) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = min(int64_t{row_tile} * 16 + lane / 4 + 8 * half, args.out_features - 1);
      values[half] = static_cast<const char*>(args.values) +
                     (row * args.in_features + warp * kUnit + lane % 4 * 8) * 2;
    }
  } else {
    values[0] = static_cast<const char*>(args.values) +
                (int64_t{row_tile} * args.units_per_row + warp * kUnits) * 512 + lane * 16;
    scale = static_cast<const char*>(args.scale) + row_tile * args.num_groups * 64 + lane * 8;
  }
  int fetched = 0;
  char* fetch_stage = ring;
  const auto fetch_next = [&] {
    if (fetched < count) {
      if constexpr (kind == Kind::kDense) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j)
            copy_async_16(fetch_stage + (half * 2 + j) * 512 + lane * 16, values[half] + j * 64);
          values[half] += kWarps * kUnit * 2;
        }
      } else {
#pragma unroll
        for (int u = 0; u < kUnits; ++u)
          copy_async_16(fetch_stage + u * 512 + lane * 16, values[0] + u * 512);
        values[0] += kWarps * kUnits * 512;
        const int unit = (fetched * kWarps + warp) * kUnits;
        const int group = kind == Kind::kW4 ? unit >> args.group_shift : 2 * unit;
        if (lane < (kind == Kind::kW4 ? 8 : 16))
          copy_async_8(fetch_stage + kVectorValueBytes<kind, kWide> + lane * 8, scale + group * 64);
      }
      ++fetched;
      fetch_stage += kStage;
      if (fetch_stage == ring + kDepth * kStage) fetch_stage = ring;
    }
    commit_async();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) fetch_next();
  wait_for_previous_kernel();

  const bool present = lane / 4 < args.num_tokens;
  const char* x_at = static_cast<const char*>(args.x) +
                     (lane / 4 * args.in_features + warp * kUnits * kUnit + lane % 4 * 8) * 2;
  Activations ahead[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) ahead[u].read(x_at + u * kUnit * 2, present && count > 0);
  Sums<T, 1, 1> sums[2];
  sums[0].clear();
  sums[1].clear();
  const char* stage = ring;
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    Activations x[kUnits];
    x_at += kWarps * kUnits * kUnit * 2;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      x[u] = ahead[u];
      ahead[u].read(x_at + u * kUnit * 2, present && i + 1 < count);
    }
    wait_async<kDepth - 2>();
    __syncwarp();
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      Operand<T, kind> weights;
      weights.read(stage + u * 512, stage + kVectorValueBytes<kind, kWide>, 0, lane);
      uint32_t a[4][4];
      weights.template step<0>(a[0]);
      weights.template step<1>(a[1]);
      weights.template step<2>(a[2]);
      weights.template step<3>(a[3]);
      Pair<T>::mma(sums[0].c[0][0], a[0], x[u].x[0].x, x[u].x[0].y);
      Pair<T>::mma(sums[1].c[0][0], a[1], x[u].x[0].z, x[u].x[0].w);
      Pair<T>::mma(sums[0].c[0][0], a[2], x[u].x[1].x, x[u].x[1].y);
      Pair<T>::mma(sums[1].c[0][0], a[3], x[u].x[1].z, x[u].x[1].w);
    }
    fetch_next();
    stage += kStage;
    if (stage == ring + kDepth * kStage) stage = ring;
  }
  sums[0].add(sums[1]);
  sums[0].store_shared(parts[warp], lane);
  __syncthreads();
  if (warp != 0) return;
  sums[0].clear();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sums[0].add_shared(parts[w], lane);
  sums[0].store(args, row_tile, lane);
#endif
}

template <class T, Kind kind, bool kWide>
void launch_vector(const SkinnyArgs& args, const Workspace& workspace, cudaStream_t stream) {
  const auto kernel = vector_kernel<T, kind, kWide>;
  constexpr size_t kShared =
      size_t{kWarps} * kVectorStages<kind, kWide> * kVectorStageBytes<kind, kWide>;
  static const bool ready = [&] {
    NB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kShared)));
    return true;
  }();
  static_cast<void>(ready);
  launch_overlapped(kernel, static_cast<unsigned>(args.row_tiles), kWarps * 32, kShared, stream,
                    workspace.compute_capability, args);
}

template <class T>
void launch(Kind kind, const SkinnyArgs& args, const Workspace& workspace, cudaStream_t stream) {
  switch (kind) {
    case Kind::kW4:
      if (args.group_shift >= 1 && args.units_per_row % 2 == 0)
        return launch_vector<T, Kind::kW4, true>(args, workspace, stream);
      return launch_vector<T, Kind::kW4, false>(args, workspace, stream);
    case Kind::kW4Group32:
      return launch_vector<T, Kind::kW4Group32, false>(args, workspace, stream);
    case Kind::kDense: return launch_vector<T, Kind::kDense, false>(args, workspace, stream);
  }
}

}  // namespace

bool launch_linear_vector(Scalar type, Kind kind, const SkinnyArgs& args,
                          const Workspace& workspace, cudaStream_t stream) {
  if (args.num_tokens > kVectorTokens || args.group_shift < 0) return false;
  if (type == Scalar::kBF16) {
    launch<BFloat>(kind, args, workspace, stream);
  } else {
    launch<Half>(kind, args, workspace, stream);
  }
  return true;
}

}  // namespace nibble::cuda
