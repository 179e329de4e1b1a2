// Notices when a model repeats itself: cycles at the end of the output, and output that goes on
// with hardly any new tokens. Pure; one object per sequence, fed each generated token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/request.h"

namespace nibble {

enum class LoopGuardMode { kOff, kStop, kPenalize };
Result<LoopGuardMode> parse_loop_guard_mode(const std::string& name);  // off, stop, penalize

// What the engine should do after a token.
enum class LoopVerdict {
  kNone,
  kPenalize,  // take repetition_penalty() from now on
  kStop,      // finish with FinishReason::kRepetition
};

class LoopGuard {
 public:
  // `detection` is the request's own rule and always stops; `mode` the server's. `base_penalty` is
  // the request's repetition penalty. Allocates here only. Memory: 8 bytes per token of the longest
  // pattern watched (64, or detection.max_pattern_size up to 4096), plus 5 KiB.
  LoopGuard(LoopGuardMode mode, const RepetitionDetection& detection, float base_penalty);

  // Time proportional to the longest pattern, whatever the length of the output.
  LoopVerdict push(int32_t token);

  // The request's penalty, raised to 1.05 after the first loop and to 1.10 after the second; a
  // third one stops.
  float repetition_penalty() const { return penalty_; }
  // Nothing to do: off and no detection. The engine may then keep no guard.
  static bool idle(LoopGuardMode mode, const RepetitionDetection& detection) {
    return mode == LoopGuardMode::kOff && detection.max_pattern_size <= 0;
  }

 private:
  bool update_runs(int32_t token);
  bool update_window(int32_t token);
  void count(int32_t token, int change);
  void rebuild();

  LoopGuardMode mode_;
  RepetitionDetection detection_;
  float penalty_;
  int num_raised_ = 0;
  int longest_;                  // pattern watched
  std::vector<int32_t> recent_;  // the newest `longest_` tokens, twice over: always contiguous
  int newest_ = 0;               // where the next token goes
  std::vector<int32_t> run_;     // [p - 1]: newest tokens that equal the one p before them
  int64_t since_restart_ = 0;    // tokens since the penalty was last raised
  std::vector<int32_t> window_;
  int64_t num_tokens_ = 0;
  std::vector<int32_t> slot_tokens_;  // hash table of the window's tokens
  std::vector<int32_t> slot_counts_;
  int num_slots_used_ = 0;
  int num_distinct_ = 0;
};

}  // namespace nibble
