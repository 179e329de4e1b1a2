// Causal convolution with SiLU, and the gates of the delta rule: bound by reading x once.
//
// A thread owns one channel of a run of tokens and slides over them with the window in registers;
// neighbouring threads own neighbouring channels, so accesses coalesce. Short steps: one run per
// sequence, whose thread also writes the state back. Long steps: runs of kRun tokens side by side;
// the first run of a sequence reads the old state, so the states are written by a second kernel.
#include "device/cuda/gated_delta_net.h"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kRun = 64;       // tokens
constexpr int kThreads = 128;  // channels per block
constexpr int kMostTaps = 8;

__device__ inline float load_as_float(const void* values, Scalar type, int64_t at) {
  switch (type) {
    case Scalar::kF32: return static_cast<const float*>(values)[at];
    case Scalar::kF16: return to_float(static_cast<const Half*>(values)[at]);
    default: return to_float(static_cast<const BFloat*>(values)[at]);
  }
}

// Grid (channel blocks, runs). kWhole: a run is a whole sequence, and the state is written too.
template <class T, bool kWhole>
__global__ void conv_kernel(ConvLaunch conv, DeviceBatch batch) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int item = static_cast<int>(blockIdx.y);
  const TilePlace place =
      kWhole ? TilePlace{item, 0} : find_tile({batch.query_start, batch.num_seqs, kRun}, item);
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (place.seq < 0 || channel >= conv.channels) return;
  const int32_t seq_begin = batch.query_start[place.seq];
  const int32_t begin = seq_begin + place.tile * kRun;
  const int32_t seq_end = batch.query_start[place.seq + 1];
  const int32_t end = kWhole ? seq_end : min(seq_end, begin + kRun);
  if (begin >= end && !(kWhole && batch.state_is_fresh[place.seq] != 0)) return;
  const int history = conv.kernel - 1;
  const auto* x = static_cast<const T*>(conv.x);
  T* state =
      static_cast<T*>(conv.state) +
      (static_cast<int64_t>(batch.state_slot[place.seq]) * conv.channels + channel) * history;

  // The window ends at the newest token; taps beyond the kernel's weigh nothing.
  float weight[kMostTaps] = {};
  float window[kMostTaps] = {};
#pragma unroll
  for (int i = 0; i < kMostTaps; ++i) {
    const int tap = i - (kMostTaps - conv.kernel);
    if (tap >= 0)
      weight[i] = load_as_float(conv.weight, conv.weight_type,
                                static_cast<int64_t>(channel) * conv.kernel + tap);
  }
#pragma unroll
  for (int i = 0; i < kMostTaps - 1; ++i) {
    // window[i + 1] shifts into place i when the first token enters.
    const int back = kMostTaps - 1 - i;  // tokens before `begin`
    if (back > history) continue;
    const int32_t token = begin - back;
    if (token >= seq_begin) {
      window[i + 1] = to_float(x[static_cast<int64_t>(token) * conv.channels + channel]);
    } else if (batch.state_is_fresh[place.seq] == 0) {
      window[i + 1] = to_float(state[history - (seq_begin - token)]);
    }
  }
  const int part = channel < conv.end[0] ? 0 : channel < conv.end[1] ? 1 : 2;
  const int32_t first = part == 0 ? 0 : conv.end[part - 1];
  const int64_t width = (part == 2 ? conv.channels : conv.end[part]) - first;
  T* out = static_cast<T*>(part == 0   ? conv.out[0]
                           : part == 1 ? conv.out[1]
                                       : conv.out[2]) +
           (channel - first);
  for (int32_t token = begin; token < end; ++token) {
    const int64_t at = static_cast<int64_t>(token) * conv.channels + channel;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostTaps - 1; ++i) window[i] = window[i + 1];
    window[kMostTaps - 1] = to_float(x[at]);
#pragma unroll
    for (int i = 0; i < kMostTaps; ++i) sum += window[i] * weight[i];
    const float convolved = rounded<T>(sum);
    out[token * width] = Round<T>::of(convolved * sigmoid(convolved));
  }
  if (kWhole) {
#pragma unroll
    for (int i = 0; i < kMostTaps; ++i) {
      const int slot = i - (kMostTaps - history);
      if (slot >= 0) state[slot] = Round<T>::of(window[i]);
    }
  }
}

// The newest inputs of each sequence into its state. Grid (channel blocks, num_seqs).
template <class T>
__global__ void conv_state_kernel(ConvLaunch conv, DeviceBatch batch) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int seq = static_cast<int>(blockIdx.y);
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (channel >= conv.channels) return;
  const int32_t begin = batch.query_start[seq];
  const int32_t end = batch.query_start[seq + 1];
  const bool fresh = batch.state_is_fresh[seq] != 0;
  if (begin == end && !fresh) return;
  const int history = conv.kernel - 1;
  T* state = static_cast<T*>(conv.state) +
             (static_cast<int64_t>(batch.state_slot[seq]) * conv.channels + channel) * history;
  for (int i = 0; i < history; ++i) {  // upwards: only older entries are still to be read
    const int32_t token = end - history + i;
    if (token >= begin) {
      state[i] =
          static_cast<const T*>(conv.x)[static_cast<int64_t>(token) * conv.channels + channel];
    } else {
      state[i] = fresh ? Round<T>::of(0.0f) : state[history - (begin - token)];
    }
  }
}

template <class T>
__global__ void gates_kernel(DeltaGatesLaunch gates) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(gates.num_tokens) * gates.num_heads) return;
  const int64_t head = i % gates.num_heads;
  const float x = to_float(static_cast<const T*>(gates.a)[i]) +
                  load_as_float(gates.dt_bias, gates.dt_bias_type, head);
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  gates.log_decay[i] = -expf(load_as_float(gates.a_log, gates.a_log_type, head)) * softplus;
  gates.beta[i] = rounded<T>(sigmoid(to_float(static_cast<const T*>(gates.b)[i])));
}

}  // namespace

void launch_causal_conv1d(const ConvLaunch& conv, const DeviceBatch& batch,
                          const Workspace& workspace, cudaStream_t stream) {
  if (batch.num_tokens == 0 || batch.num_seqs == 0) return;
  const auto blocks = static_cast<unsigned>((conv.channels + kThreads - 1) / kThreads);
  const auto seqs = static_cast<unsigned>(batch.num_seqs);
  with_type(conv.type, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](void (*kernel)(ConvLaunch, DeviceBatch), unsigned items) {
      launch_overlapped(kernel, dim3(blocks, items), kThreads, 0, stream,
                        workspace.compute_capability, conv, batch);
    };
    if (batch.num_tokens <= 8 * batch.num_seqs) return run(conv_kernel<T, true>, seqs);
    run(conv_kernel<T, false>, static_cast<unsigned>(batch.num_tokens / kRun + batch.num_seqs));
    run(conv_state_kernel<T>, seqs);
  });
}

void launch_delta_gates(const DeltaGatesLaunch& gates, const Workspace& workspace,
                        cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(gates.num_tokens) * gates.num_heads;
  if (count == 0) return;
  with_type(gates.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_overlapped(gates_kernel<T>, static_cast<unsigned>((count + 255) / 256), 256, 0, stream,
                      workspace.compute_capability, gates);
  });
}

}  // namespace nibble::cuda
