// A loaded model with everything that turns messages into text: what `serve`, `run` and `chat`
// share.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/model_dir.h"
#include "engine/engine.h"
#include "text/chat_template.h"
#include "text/reply_parser.h"
#include "text/tokenizer.h"

namespace nibble {

class GrammarCache;  // server/constraint.h

struct ServedModel {
  ModelDir dir;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;  // none: it completes text, and does not chat
  bool template_takes_parts = false;          // it iterates over a message's content
  std::string reasoning_parser = {};          // that fits the template; "" for none
  std::string tool_parser = {};               // that fits the template; "" for none
  std::vector<int32_t> stop_token_ids = {};   // of the configs and the tokenizer; sorted
  std::shared_ptr<GrammarCache> grammars = nullptr;
  std::unique_ptr<Engine> engine = nullptr;  // last: it reads weights that `dir` maps

  // `template_text` overrides the checkpoint's chat template, and stands in for a missing one. Does
  // not start the engine.
  static Result<std::unique_ptr<ServedModel>> read(const std::string& path,
                                                   const std::string& template_text = {});
  // read() and Engine::start().
  static Result<std::unique_ptr<ServedModel>> open(const std::string& path,
                                                   const EngineOptions& options,
                                                   const std::string& template_text = {});
};

}  // namespace nibble
