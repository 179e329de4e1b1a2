// Conversations from a file as token ids: for calibration, and for judging what was lost.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "checkpoint/model_dir.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {

struct CalibrationOptions {
  int num_samples = 256;      // the first ones after shuffling; fewer when the file holds fewer
  int skip_samples = 0;       // passed over first, so that two uses of one file do not meet
  int max_seq_length = 2048;  // tokens; longer samples are cut
  bool shuffle = false;       // false: in file order
  uint64_t seed = 42;         // of the shuffle
  bool skip_bad_samples = false;
};

struct CalibrationSet {
  std::vector<std::vector<int32_t>> samples;
  std::vector<std::string> skipped;  // one line per sample that could not be rendered
  size_t num_tokens = 0;
};

// Reads JSON (a list), JSONL, or plain text (one sample per blank-line-separated paragraph). A
// record is a Hermes conversation ({"conversations": [{"from", "value"}]}, human and gpt become
// user and assistant), an OpenAI one ({"messages": [...], "tools": [...]}), or {"text": "..."};
// conversations are rendered by `chat_template` without a generation prompt. A bad sample is an
// error that names its index, unless skip_bad_samples.
Result<CalibrationSet> load_calibration_set(const fs::path& path, const Tokenizer& tokenizer,
                                            const ChatTemplate* chat_template,
                                            const CalibrationOptions& options);

// The same with the tokenizer and the chat template of a model.
Result<CalibrationSet> load_conversations(const ModelDir& dir, const fs::path& path,
                                          const CalibrationOptions& options);

}  // namespace nibble
