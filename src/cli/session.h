// A loaded model with everything that turns messages into text in this process: for `run` and
// `chat`.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "server/served_model.h"

namespace nibble::cli {

struct GenerateOptions {
  int max_tokens = 1024;
  float temperature = 0.0f;
  float top_p = 1.0f;
  int top_k = 0;
  int seed = -1;  // -1: none
  bool thinking = true;

  template <class V>
  void visit(V& v) {
    v.option("max-tokens", &max_tokens, "tokens to generate at most");
    v.option("temperature", &temperature, "0 picks the most likely token");
    v.option("top-p", &top_p, "nucleus sampling");
    v.option("top-k", &top_k, "candidates kept, 0 for all");
    v.option("seed", &seed, "of the random draws, -1 for none");
    v.option("thinking", &thinking, "let the model reason before it answers");
  }
};

struct Reply {
  std::string reasoning;
  std::string content;
  Json tool_calls = Json::array();  // [{"name", "arguments"}]
  int num_prompt_tokens = 0;
  int num_tokens = 0;
  double seconds = 0;
  bool cut = false;  // ended by max_tokens
};

class Session {
 public:
  static Result<std::unique_ptr<Session>> open(const std::string& model, EngineOptions options);

  // Renders `messages` (and `tools`, may be empty) and generates; `on_event` sees each piece as it
  // comes and may return false to stop.
  Result<Reply> chat(const Json& messages, const Json& tools, const GenerateOptions& options,
                     const std::function<bool(const ReplyEvent&)>& on_event);

 private:
  explicit Session(std::unique_ptr<ServedModel> model) : model_(std::move(model)) {}

  std::unique_ptr<ServedModel> model_;
};

}  // namespace nibble::cli
