// Where recurrent states are kept: the whole policy. States are big and exist only at the position
// a sequence is at, so a prefix can be resumed only where a step ended and a copy was made.
//
//   prompt of turn k                                    answer
//   |--------|--------|--------|--------|--------|-----|-------->
//            stride             branch     tail  last    rolling
//
// - last: the largest block boundary below the prompt's end. The same prompt again, or the next
// turn
//   of a conversation, resumes there. The chunk planner ends a chunk there.
// - tail: one block earlier, when `last` lies within the chat template's closing words
// ("assistant",
//   "think"): templates drop those of earlier turns, so the next turn may differ just there.
// - branch: where the prompt leaves a prefix whose KV blocks are kept but no state was: the second
//   request with a common system prompt marks its end, the third resumes there.
// - stride: block boundaries where chunks of a long prompt happen to end, at most four per prompt.
// - rolling: the last block boundary that generation passed; one slot per sequence, moved along.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/sequence.h"

namespace nibble {

// A closing like "<|im_end|>\n<|im_start|>assistant\n<think>\n" has about this many tokens.
inline constexpr int32_t kTemplateTailTokens = 8;
inline constexpr int32_t kStridesPerPrompt = 4;

enum class SnapshotKind { kNone, kCut, kStride, kRolling };

inline int32_t last_boundary(const Sequence& sequence, int32_t block_size) {
  return (static_cast<int32_t>(sequence.tokens.size()) - 1) / block_size * block_size;
}

// The first position behind num_computed where a chunk should end, or `end`.
inline int32_t next_cut(const Sequence& sequence, int32_t block_size, int32_t end) {
  const auto size = static_cast<int32_t>(sequence.tokens.size());
  int32_t cut = end;
  const auto consider = [&](int32_t position) {
    if (position > sequence.num_computed && position < cut) cut = position;
  };
  const int32_t last = last_boundary(sequence, block_size);
  consider(last);
  if (size - 1 - last < kTemplateTailTokens) consider(last - block_size);
  consider(sequence.branch);
  // A chunk that ends for want of budget ends on a boundary when it reaches one.
  if (cut == end && end < size && end / block_size * block_size > sequence.num_computed)
    cut = end / block_size * block_size;
  return cut;
}

// Whether the state that `sequence` has now, at num_computed, is kept. Called after a step, before
// its token is appended.
inline SnapshotKind snapshot_kind(const Sequence& sequence, int32_t block_size) {
  const int32_t position = sequence.num_computed;
  if (position == 0 || position % block_size != 0) return SnapshotKind::kNone;
  const auto size = static_cast<int32_t>(sequence.tokens.size());
  if (position >= sequence.num_prompt() && position == size) return SnapshotKind::kRolling;
  const int32_t last = last_boundary(sequence, block_size);
  if (position == last || position == sequence.branch) return SnapshotKind::kCut;
  if (size - 1 - last < kTemplateTailTokens && position == last - block_size)
    return SnapshotKind::kCut;
  const int32_t stride = std::max(4 * block_size, size / kStridesPerPrompt);
  return position - sequence.last_snapshot >= stride ? SnapshotKind::kStride : SnapshotKind::kNone;
}

}  // namespace nibble
