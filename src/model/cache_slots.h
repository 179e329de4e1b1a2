// The caches of a model as slots of bytes, for whoever moves them without knowing what they mean.
// A slot has one piece in each of several tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/model.h"

namespace nibble {

struct CacheSlots {
  struct Part {
    std::byte* base = nullptr;  // device memory; slot s is [s * bytes, (s + 1) * bytes)
    size_t bytes = 0;
  };
  std::vector<Part> parts;
  size_t bytes_per_slot = 0;  // over all parts

  void add(const Tensor& tensor) {
    if (tensor.shape.rank() == 0 || tensor.shape[0] == 0) return;
    const size_t bytes = tensor.num_bytes() / static_cast<size_t>(tensor.shape[0]);
    parts.push_back({static_cast<std::byte*>(tensor.data), bytes});
    bytes_per_slot += bytes;
  }
};

// One slot per KV block: keys and values of all layers.
inline CacheSlots block_slots(const ModelCaches& caches) {
  CacheSlots slots;
  for (const KvCache& kv : caches.kv) {
    slots.add(kv.k);
    slots.add(kv.v);
  }
  return slots;
}

// One slot per live state, then one per snapshot: convolution and recurrent states of all layers.
inline CacheSlots state_slots(const ModelCaches& caches) {
  CacheSlots slots;
  for (const Tensor& state : caches.conv_state) slots.add(state);
  for (const Tensor& state : caches.recurrent_state) slots.add(state);
  return slots;
}

}  // namespace nibble
