// An Engine that replays a file instead of running a model: for tests of clients, where the reply
// must be known. The file's form: docs/guide/scripted.md.
#pragma once

#include <memory>
#include <string_view>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace nibble {

struct ScriptedOptions {
  int max_model_len = 32768;
  int64_t vocab_size = 0;               // of the model that stands in; ids are below it
  std::vector<int32_t> stop_token_ids;  // the first one ends each scripted text
};

// `script` is JSON Lines; errors name the line. `tokenizer` must outlive the engine.
Result<std::unique_ptr<Engine>> make_scripted_engine(std::string_view script, std::string_view what,
                                                     const Tokenizer& tokenizer,
                                                     ScriptedOptions options);

}  // namespace nibble
