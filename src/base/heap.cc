// glibc's mallopt and malloc_trim; elsewhere the allocator's own ways must do.
#include "base/heap.h"

#include <malloc.h>

namespace nibble {

void keep_heap_lean() {
  // Setting one of the first two ends their automatic growth.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
  mallopt(M_ARENA_MAX, 2);
}

void return_free_memory() {
  malloc_trim(0);
}

}  // namespace nibble
