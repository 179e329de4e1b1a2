// Cycles: for each length p, how many of the newest tokens equal the one p before them. A pattern
// of p tokens stands there n times when that run is at least p * (n - 1). Stalls: the distinct
// tokens of a sliding window, counted in a small hash table.
#include "engine/loop_guard.h"

#include <algorithm>

#include "base/format.h"

namespace nibble {
namespace {

constexpr int kGuardPattern = 64;      // longest cycle the server's guard looks for
constexpr int kGuardRepeats = 4;       // a pattern must stand there so often
constexpr int kGuardTokens = 96;       // and fill so many tokens: rulers and tables are shorter
constexpr int kLongestPattern = 4096;  // of a request's own rule
constexpr int kWindow = 256;           // of stalls
constexpr int kFewDistinct = 6;        // a window with no more is stalled
constexpr int kSlots = 512;            // power of two, twice the window
constexpr float kPenalties[] = {1.05f, 1.10f};

}  // namespace

Result<LoopGuardMode> parse_loop_guard_mode(const std::string& name) {
  if (name == "off") return LoopGuardMode::kOff;
  if (name == "stop") return LoopGuardMode::kStop;
  if (name == "penalize") return LoopGuardMode::kPenalize;
  return make_error(ErrorCode::kInvalidArgument,
                    "--loop-guard {}: unknown; use off, stop or penalize", name);
}

LoopGuard::LoopGuard(LoopGuardMode mode, const RepetitionDetection& detection, float base_penalty)
    : mode_(mode), detection_(detection), penalty_(base_penalty) {
  detection_.max_pattern_size = std::clamp(detection.max_pattern_size, 0, kLongestPattern);
  detection_.min_pattern_size = std::max(1, detection.min_pattern_size);
  detection_.min_count = std::max(2, detection.min_count);
  longest_ =
      std::max(mode_ == LoopGuardMode::kOff ? 0 : kGuardPattern, detection_.max_pattern_size);
  recent_.assign(static_cast<size_t>(2 * longest_), -1);
  run_.assign(static_cast<size_t>(longest_), 0);
  if (mode_ == LoopGuardMode::kOff) return;
  window_.assign(kWindow, -1);
  slot_tokens_.assign(kSlots, -1);
  slot_counts_.assign(kSlots, 0);
}

LoopVerdict LoopGuard::push(int32_t token) {
  const bool asked = update_runs(token);
  if (asked) return LoopVerdict::kStop;
  if (mode_ == LoopGuardMode::kOff) return LoopVerdict::kNone;
  const bool stalled = update_window(token);
  ++since_restart_;
  bool looping = stalled;
  for (int p = 1; p <= kGuardPattern && !looping; ++p) {
    // Tokens of before the last restart do not count again.
    const int64_t run = std::min<int64_t>(run_[static_cast<size_t>(p - 1)], since_restart_ - p);
    looping = run >= std::max<int64_t>(int64_t{p} * (kGuardRepeats - 1), kGuardTokens - p);
  }
  if (!looping) return LoopVerdict::kNone;
  if (mode_ == LoopGuardMode::kStop) return LoopVerdict::kStop;
  // A request that asked for more than a step already has it skipped.
  while (num_raised_ < 2 && kPenalties[num_raised_] <= penalty_) ++num_raised_;
  if (num_raised_ == 2) return LoopVerdict::kStop;
  penalty_ = kPenalties[num_raised_++];
  since_restart_ = 0;
  return LoopVerdict::kPenalize;
}

// True when the request's own rule applies.
bool LoopGuard::update_runs(int32_t token) {
  if (longest_ == 0) return false;
  // The token p before the new one is last[-p].
  const auto size = static_cast<size_t>(longest_);
  const int32_t* last = recent_.data() + newest_ + size;
  for (size_t p = 1; p <= size; ++p) {
    const int32_t earlier = *(last - p);
    run_[p - 1] = earlier == token ? run_[p - 1] + 1 : 0;
  }
  recent_[static_cast<size_t>(newest_)] = token;
  recent_[static_cast<size_t>(newest_) + size] = token;
  newest_ = (newest_ + 1) % longest_;
  for (int p = detection_.min_pattern_size; p <= detection_.max_pattern_size; ++p)
    if (run_[static_cast<size_t>(p - 1)] >= int64_t{p} * (detection_.min_count - 1)) return true;
  return false;
}

// True while a full window since the last restart holds hardly any distinct tokens.
bool LoopGuard::update_window(int32_t token) {
  const auto at = static_cast<size_t>(num_tokens_ % kWindow);
  if (num_tokens_ >= kWindow) count(window_[at], -1);
  window_[at] = token;
  count(token, 1);
  ++num_tokens_;
  return since_restart_ + 1 >= kWindow && num_distinct_ <= kFewDistinct;
}

// Linear probing; a token that leaves keeps its slot until the table is rebuilt.
void LoopGuard::count(int32_t token, int change) {
  size_t slot = static_cast<uint32_t>(token) * 2654435761u % kSlots;
  while (slot_tokens_[slot] != token && slot_tokens_[slot] != -1) slot = (slot + 1) % kSlots;
  if (slot_tokens_[slot] == -1) {
    if (num_slots_used_ >= kSlots * 3 / 4) {
      rebuild();
      return;  // the window already holds the token
    }
    slot_tokens_[slot] = token;
    ++num_slots_used_;
  }
  num_distinct_ +=
      (slot_counts_[slot] == 0 && change > 0) - (slot_counts_[slot] == 1 && change < 0);
  slot_counts_[slot] += change;
}

void LoopGuard::rebuild() {
  std::ranges::fill(slot_tokens_, -1);
  std::ranges::fill(slot_counts_, 0);
  num_slots_used_ = 0;
  num_distinct_ = 0;
  for (const int32_t token : window_)
    if (token >= 0) count(token, 1);
}

}  // namespace nibble
