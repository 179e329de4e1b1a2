// One counter.
#include "base/allocation_counter.h"

#include <atomic>

namespace nibble {
namespace {
std::atomic<int64_t> counter{0};
}  // namespace

void count_allocation() {
  counter.fetch_add(1, std::memory_order_relaxed);
}

int64_t num_allocations() {
  return counter.load(std::memory_order_relaxed);
}

}  // namespace nibble
