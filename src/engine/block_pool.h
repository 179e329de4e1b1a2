// Fixed slots handed out by index, with reference counts: KV blocks, live recurrent states and
// state snapshots are instances. Free slots queue up in the order they were released, so the one
// taken next is the one unused for longest. One thread. Knows nothing of what a slot holds.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace nibble {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_slots)
      : slots_(static_cast<size_t>(num_slots) + 1), num_free_(num_slots) {
    // slots_[num_slots] is the ring's anchor: its next is taken first, its previous last.
    for (int32_t slot = 0; slot <= num_slots; ++slot)
      slots_[static_cast<size_t>(slot)] = {0, slot == 0 ? num_slots : slot - 1,
                                           slot == num_slots ? 0 : slot + 1};
  }

  int32_t size() const { return static_cast<int32_t>(slots_.size()) - 1; }
  int32_t num_free() const { return num_free_; }

  // The free slot unused for longest, with one reference, or -1.
  int32_t take() {
    if (num_free_ == 0) return -1;
    const int32_t slot = at(size()).next;
    share(slot);
    return slot;
  }
  // One more reference; a free slot leaves the queue.
  void share(int32_t slot) {
    Slot& entry = count(slot);
    if (entry.references++ > 0) return;
    at(entry.previous).next = entry.next;
    at(entry.next).previous = entry.previous;
    --num_free_;
  }
  // One less; at zero the slot is free: taken last, or first when nobody can want its content.
  void release(int32_t slot, bool take_first = false) {
    Slot& entry = count(slot);
    NB_CHECK(entry.references > 0, "slot %d released too often", slot);
    if (--entry.references > 0) return;
    entry.previous = take_first ? size() : at(size()).previous;
    entry.next = take_first ? at(size()).next : size();
    at(entry.previous).next = slot;
    at(entry.next).previous = slot;
    ++num_free_;
  }
  int32_t references(int32_t slot) const { return slots_[static_cast<size_t>(slot)].references; }

 private:
  struct Slot {
    int32_t references = 0;
    int32_t previous = 0;  // of the free ring, while free
    int32_t next = 0;
  };
  Slot& at(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  Slot& count(int32_t slot) {
    NB_CHECK(slot >= 0 && slot < size(), "slot %d of %d", slot, size());
    return at(slot);
  }
  std::vector<Slot> slots_;
  int32_t num_free_ = 0;
};

}  // namespace nibble
