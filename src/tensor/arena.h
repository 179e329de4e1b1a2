// Arena: a bump allocator that counts without a base pointer and places with one, so that the
// plan and the placement cannot disagree. One thread. `seal()` makes a later allocation abort.
#pragma once

#include <algorithm>
#include <cstddef>

#include "tensor/tensor.h"

namespace nibble {

class Arena {
 public:
  static constexpr size_t kAlignment = 256;

  Arena() = default;  // counts only
  Arena(void* base, size_t capacity) : base_(static_cast<std::byte*>(base)), capacity_(capacity) {}

  // Bytes for `who`, aligned to 256; null when counting. Aborts, naming `who`, when the capacity
  // is exceeded or after seal().
  void* allocate(size_t bytes, const char* who) {
    NB_CHECK(!sealed_, "%s allocates %zu bytes after the arena was sealed", who, bytes);
    const size_t offset = (used_ + kAlignment - 1) / kAlignment * kAlignment;
    used_ = offset + bytes;
    peak_ = std::max(peak_, used_);
    if (base_ == nullptr) return nullptr;
    NB_CHECK(used_ <= capacity_, "%s needs %zu bytes, %zu of %zu are taken", who, bytes, offset,
             capacity_);
    return base_ + offset;
  }
  Tensor tensor(DType dtype, Shape shape, const char* who) {
    return {allocate(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype), who), dtype,
            shape};
  }

  // Scratch inside one step: release(mark()) frees what came between.
  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }

  void seal() { sealed_ = true; }
  bool counting() const { return base_ == nullptr; }
  size_t used() const { return used_; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return capacity_; }

 private:
  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
  bool sealed_ = false;
};

}  // namespace nibble
