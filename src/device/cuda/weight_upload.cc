// A ring of pinned pieces.
#include "device/cuda/weight_upload.h"

#include <algorithm>
#include <cstring>

#include "base/host_limits.h"

namespace nibble::cuda {
namespace {

constexpr int kMostThreads = 8;             // more do not copy faster
constexpr size_t kGrain = size_t{1} << 20;  // below, waking a thread costs more than the copy

}  // namespace

void WeightUpload::begin() {
  threads_ = std::make_unique<ThreadPool>(std::min(usable_threads(), kMostThreads));
  for (Slot& slot : slots_) {
    NB_CUDA(cudaMallocHost(&slot.memory, kPiece));
    slot.sent = Event::create();
    slot.sent.record(stream_);
  }
}

void WeightUpload::copy(void* to, const void* from, size_t bytes) {
  if (threads_ == nullptr) begin();
  for (size_t done = 0; done < bytes;) {
    const size_t piece = std::min(kPiece, bytes - done);
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    NB_CUDA(cudaEventSynchronize(slot.sent.get()));
    const auto* source = static_cast<const std::byte*>(from) + done;
    auto* staged = static_cast<std::byte*>(slot.memory);
    threads_->parallel_for(piece, kGrain, [&](size_t begin, size_t end) {
      std::memcpy(staged + begin, source + begin, end - begin);
    });
    NB_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, staged, piece,
                            cudaMemcpyHostToDevice, stream_));
    slot.sent.record(stream_);
    done += piece;
  }
}

void WeightUpload::end() {
  if (threads_ == nullptr) return;
  NB_CUDA(cudaStreamSynchronize(stream_));
  for (Slot& slot : slots_) {
    NB_CUDA(cudaFreeHost(slot.memory));
    slot = Slot{};
  }
  threads_.reset();
}

}  // namespace nibble::cuda
