// What the allocator keeps of freed memory. glibc raises its own thresholds to the largest block
// ever freed (up to 64 MiB per arena), which a server that parses one large body never needs again.
#pragma once

namespace nibble {

// For a long-lived process: large blocks are mapped and unmapped one by one, free memory at the end
// of a heap goes back at once, and threads share two heaps, for each keeps the pages of its busiest
// moment. Before the first thread.
void keep_heap_lean();

// Gives the pages of free blocks back to the system; some milliseconds.
void return_free_memory();

}  // namespace nibble
