// Causal convolution with SiLU, and the gates of the delta rule: bound by reading x once.
//
// A thread owns one channel of a run of tokens and slides over them with the window in registers;
// neighbouring threads own neighbouring channels, so accesses coalesce. Short steps: one run per
// sequence, whose thread also writes the state back. Long steps: runs of kRun tokens side by side;
// the first run of a sequence reads the old state, so the states are written by a second kernel.
#include "device/cuda/gated_delta_net.h"
#include "device/cuda/launch.h"
#include "device/cuda/load_float.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kRun = 64;       // tokens
constexpr int kThreads = 128;  // channels per block
constexpr int kMostTaps = 8;

// Gate i of [num_tokens, num_heads].
template <class T>
__device__ __forceinline__ void write_gate(const DeltaGatesLaunch& gates, int64_t i) {
  const int64_t head = i % gates.num_heads;
  const float x = to_float(static_cast<const T*>(gates.a)[i]) +
                  load_as_float(gates.dt_bias, gates.dt_bias_type, head);
  const float softplus = x > 20.0f ? x : log1pf(expf(x));
  gates.log_decay[i] = -expf(load_as_float(gates.a_log, gates.a_log_type, head)) * softplus;
  gates.beta[i] = rounded<T>(sigmoid(to_float(static_cast<const T*>(gates.b)[i])));
}

// Those of tokens [begin, end), by a block.
template <class T>
__device__ __forceinline__ void write_gates(const DeltaGatesLaunch& gates, int32_t begin,
                                            int32_t end) {
  const int64_t heads = gates.num_heads;
  for (int64_t i = begin * heads + threadIdx.x; i < end * heads; i += kThreads)
    write_gate<T>(gates, i);
}

// Where a channel goes.
template <class T>
struct OutputOf {
  T* first;
  int64_t width;  // from one token to the next

  __device__ __forceinline__ OutputOf(const ConvLaunch& conv, int channel) {
    const int part = channel < conv.end[0] ? 0 : channel < conv.end[1] ? 1 : 2;
    const int32_t begin = part == 0 ? 0 : conv.end[part - 1];
    width = (part == 2 ? conv.channels : conv.end[part]) - begin;
    void* out = part == 0 ? conv.out[0] : part == 1 ? conv.out[1] : conv.out[2];
    first = static_cast<T*>(out) + (channel - begin);
  }
  __device__ __forceinline__ T* at(int32_t token) const { return first + token * width; }
};

// Grid (channel blocks, runs). kWhole: a run is a whole sequence, and the state is written too; a
// block past the channels makes the sequence's gates.
template <class T, bool kWhole>
__global__ void conv_kernel(ConvLaunch conv, DeviceBatch batch, DeltaGatesLaunch gates) {
  let_next_kernel_start();
  const int item = static_cast<int>(blockIdx.y);
  if (kWhole && static_cast<int>(blockIdx.x) * kThreads >= conv.channels) {
    wait_for_previous_kernel();
    write_gates<T>(gates, batch.query_start[item], batch.query_start[item + 1]);
    return;
  }
  const TilePlace place =
      kWhole ? TilePlace{item, 0} : find_tile({batch.query_start, batch.num_seqs, kRun}, item);
  const int channel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const bool outside = place.seq < 0 || channel >= conv.channels;
  const int seq = outside ? 0 : place.seq;
  const int32_t seq_begin = batch.query_start[seq];
  const int32_t begin = seq_begin + place.tile * kRun;
  const int32_t seq_end = batch.query_start[seq + 1];
  const int32_t end = kWhole ? seq_end : min(seq_end, begin + kRun);
  const bool fresh = batch.state_is_fresh[seq] != 0;
  const int64_t slot = batch.state_slot[seq];
  const int history = conv.kernel - 1;
  // Taps beyond the kernel's weigh nothing.
  float weight[kMostTaps] = {};
#pragma unroll
  for (int i = 0; i < kMostTaps; ++i) {
    const int tap = i - (kMostTaps - conv.kernel);
    if (tap >= 0 && !outside)
      weight[i] = load_as_float(conv.weight, conv.weight_type,
                                static_cast<int64_t>(channel) * conv.kernel + tap);
  }
  wait_for_previous_kernel();
  if (outside || (begin >= end && !(kWhole && fresh))) return;
  const auto* x = static_cast<const T*>(conv.x);
  T* state = static_cast<T*>(conv.state) + (slot * conv.channels + channel) * history;

  // The window ends at the newest token.
  float window[kMostTaps] = {};
#pragma unroll
  for (int i = 0; i < kMostTaps - 1; ++i) {
    // window[i + 1] shifts into place i when the first token enters.
    const int back = kMostTaps - 1 - i;  // tokens before `begin`
    if (back > history) continue;
    const int32_t token = begin - back;
    if (token >= seq_begin) {
      window[i + 1] = to_float(x[static_cast<int64_t>(token) * conv.channels + channel]);
    } else if (!fresh) {
      window[i + 1] = to_float(state[history - (seq_begin - token)]);
    }
  }
  const OutputOf<T> out(conv, channel);
  for (int32_t token = begin; token < end; ++token) {
    const int64_t at = static_cast<int64_t>(token) * conv.channels + channel;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostTaps - 1; ++i) window[i] = window[i + 1];
    window[kMostTaps - 1] = to_float(x[at]);
#pragma unroll
    for (int i = 0; i < kMostTaps; ++i) sum += window[i] * weight[i];
    const float convolved = rounded<T>(sum);
    *out.at(token) = Round<T>::of(convolved * sigmoid(convolved));
  }
  if (kWhole) {
#pragma unroll
    for (int i = 0; i < kMostTaps; ++i) {
      const int slot = i - (kMostTaps - history);
      if (slot >= 0) state[slot] = Round<T>::of(window[i]);
    }
  }
}

// The same for sequences of few tokens and the convolution that models have: a thread owns 4
// neighbouring channels, so that each of its loads is of 8 or 16 bytes, and its state arrives while
// x is being made. Grid (channel blocks, num_seqs), gates as above.
constexpr int kTaps = 4;
constexpr int kChannels = 4;  // of a thread

template <class T>
__global__ void __launch_bounds__(kThreads)
    short_conv_kernel(ConvLaunch conv, DeviceBatch batch, DeltaGatesLaunch gates) {
  let_next_kernel_start();
  const auto seq = static_cast<int>(blockIdx.y);
  const int32_t begin = batch.query_start[seq];
  const int32_t end = batch.query_start[seq + 1];
  const bool fresh = batch.state_is_fresh[seq] != 0;
  const int64_t slot = batch.state_slot[seq];
  const int block_channels = kThreads * kChannels;
  if (static_cast<int>(blockIdx.x) * block_channels >= conv.channels) {
    wait_for_previous_kernel();
    write_gates<T>(gates, begin, end);
    return;
  }
  const int channel =
      static_cast<int>(blockIdx.x) * block_channels + static_cast<int>(threadIdx.x) * kChannels;
  const bool idle = channel >= conv.channels || (begin == end && !fresh);
  auto* state = reinterpret_cast<uint2*>(static_cast<T*>(conv.state) +
                                         (slot * conv.channels + channel) * (kTaps - 1));
  struct alignas(16) Weights {
    T of[kChannels][kTaps];
  };
  struct alignas(8) Window {
    T of[kChannels][kTaps - 1];
  };
  struct alignas(8) Values {
    T of[kChannels];
  };
  constexpr int kWords = sizeof(Window) / sizeof(uint2);
  Weights weight;
  Window window;
  if (!idle) {
    weight = static_cast<const Weights*>(conv.weight)[channel / kChannels];
    auto* words = reinterpret_cast<uint2*>(&window);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = fresh ? make_uint2(0, 0) : state[i];
  }
  wait_for_previous_kernel();
  if (idle) return;
  const OutputOf<T> out(conv, channel);
  for (int32_t token = begin; token < end; ++token) {
    const Values x = *reinterpret_cast<const Values*>(
        static_cast<const T*>(conv.x) + static_cast<int64_t>(token) * conv.channels + channel);
    Values result;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kTaps - 1; ++i)
        sum += to_float(window.of[c][i]) * to_float(weight.of[c][i]);
      sum += to_float(x.of[c]) * to_float(weight.of[c][kTaps - 1]);
      const float convolved = rounded<T>(sum);
      result.of[c] = Round<T>::of(convolved * sigmoid(convolved));
#pragma unroll
      for (int i = 0; i < kTaps - 2; ++i) window.of[c][i] = window.of[c][i + 1];
      window.of[c][kTaps - 2] = x.of[c];
    }
    *reinterpret_cast<Values*>(out.at(token)) = result;
  }
  const auto* words = reinterpret_cast<const uint2*>(&window);
#pragma unroll
  for (int i = 0; i < kWords; ++i) state[i] = words[i];
}

// Whether it serves: all addresses and widths are multiples of a thread's channels.
bool is_short_conv(const ConvLaunch& conv) {
  return conv.kernel == kTaps && conv.weight_type == conv.type && conv.channels % kChannels == 0 &&
         conv.end[0] % kChannels == 0 && conv.end[1] % kChannels == 0 && aligned(conv.x) &&
         aligned(conv.weight) && aligned(conv.state) && aligned(conv.out[0]) &&
         aligned(conv.out[1]) && aligned(conv.out[2]);
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
  if (i < static_cast<int64_t>(gates.num_tokens) * gates.num_heads) write_gate<T>(gates, i);
}

// `gates` may be null.
void launch_conv(const ConvLaunch& conv, const DeltaGatesLaunch* gates, const DeviceBatch& batch,
                 const Workspace& workspace, cudaStream_t stream) {
  if (batch.num_tokens == 0 || batch.num_seqs == 0) return;
  const auto blocks = blocks_of(conv.channels, kThreads);
  const auto seqs = static_cast<unsigned>(batch.num_seqs);
  const int capability = workspace.compute_capability;
  with_type(conv.type, [&](auto type) {
    using T = typename decltype(type)::type;
    if (batch.num_tokens <= 8 * batch.num_seqs) {
      const bool wide = is_short_conv(conv);
      const auto columns = wide ? blocks_of(conv.channels, kThreads * kChannels) : blocks;
      auto* kernel = wide ? &short_conv_kernel<T> : &conv_kernel<T, true>;
      launch_overlapped(kernel, dim3(gates == nullptr ? columns : columns + 1, seqs), kThreads, 0,
                        stream, capability, conv, batch,
                        gates == nullptr ? DeltaGatesLaunch{} : *gates);
      return;
    }
    const auto runs = static_cast<unsigned>(batch.num_tokens / kRun + batch.num_seqs);
    launch_overlapped(conv_kernel<T, false>, dim3(blocks, runs), kThreads, 0, stream, capability,
                      conv, batch, DeltaGatesLaunch{});
    launch_overlapped(conv_state_kernel<T>, dim3(blocks, seqs), kThreads, 0, stream, capability,
                      conv, batch);
    if (gates != nullptr) launch_delta_gates(*gates, workspace, stream);
  });
}

}  // namespace

void launch_causal_conv1d(const ConvLaunch& conv, const DeviceBatch& batch,
                          const Workspace& workspace, cudaStream_t stream) {
  launch_conv(conv, nullptr, batch, workspace, stream);
}

void launch_delta_inputs(const ConvLaunch& conv, const DeltaGatesLaunch& gates,
                         const DeviceBatch& batch, const Workspace& workspace,
                         cudaStream_t stream) {
  launch_conv(conv, &gates, batch, workspace, stream);
}

void launch_delta_gates(const DeltaGatesLaunch& gates, const Workspace& workspace,
                        cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(gates.num_tokens) * gates.num_heads;
  if (count == 0) return;
  with_type(gates.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_overlapped(gates_kernel<T>, blocks_of(count, 256), 256, 0, stream,
                      workspace.compute_capability, gates);
  });
}

}  // namespace nibble::cuda
