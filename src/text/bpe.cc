// Short words merge by scanning, long ones through a heap of candidate pairs over a linked list.
#include "text/bpe.h"

#include <algorithm>
#include <queue>

namespace nibble {
namespace {

constexpr size_t kScanLimit = 32;  // symbols; below this a scan per merge beats a heap

struct Symbol {
  int32_t id;
  int32_t previous;  // -1 at the ends
  int32_t next;
};

struct Candidate {
  int32_t rank;
  int32_t left;               // position of the left symbol
  int32_t left_id, right_id;  // stale when the symbols have changed since
  // The heap's top is the lowest rank, then the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

}  // namespace

void Bpe::encode(std::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty()) return;
  if (word.size() <= kScanLimit) {
    int32_t symbols[kScanLimit];
    size_t count = 0;
    for (const char c : word) symbols[count++] = byte_ids_[static_cast<unsigned char>(c)];
    while (count > 1) {
      const Merge* best = nullptr;
      size_t where = 0;
      for (size_t i = 0; i + 1 < count; ++i) {
        const Merge* merge = find(symbols[i], symbols[i + 1]);
        if (merge == nullptr || (best != nullptr && merge->rank >= best->rank)) continue;
        best = merge;
        where = i;
      }
      if (best == nullptr) break;
      symbols[where] = best->result;
      std::copy(symbols + where + 2, symbols + count, symbols + where + 1);
      --count;
    }
    ids->insert(ids->end(), symbols, symbols + count);
    return;
  }

  std::vector<Symbol> symbols(word.size());
  for (size_t i = 0; i < word.size(); ++i) {
    const auto at = static_cast<int32_t>(i);
    symbols[i] = {byte_ids_[static_cast<unsigned char>(word[i])], at - 1,
                  i + 1 < word.size() ? at + 1 : -1};
  }
  std::priority_queue<Candidate> heap;
  const auto push = [&](int32_t left) {
    if (left < 0 || symbols[static_cast<size_t>(left)].next < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const Symbol& b = symbols[static_cast<size_t>(a.next)];
    if (const Merge* merge = find(a.id, b.id)) heap.push({merge->rank, left, a.id, b.id});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) push(i);
  while (!heap.empty()) {
    const Candidate candidate = heap.top();
    heap.pop();
    Symbol& left = symbols[static_cast<size_t>(candidate.left)];
    if (left.id != candidate.left_id || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != candidate.right_id) continue;
    left.id = find(candidate.left_id, candidate.right_id)->result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = candidate.left;
    push(left.previous);
    push(candidate.left);
  }
  for (int32_t at = 0; at >= 0; at = symbols[static_cast<size_t>(at)].next)
    ids->push_back(symbols[static_cast<size_t>(at)].id);
}

}  // namespace nibble
