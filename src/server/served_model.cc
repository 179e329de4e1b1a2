// Reads a checkpoint's text side and picks the parsers its chat template asks for.
#include "server/served_model.h"

#include <algorithm>

#include "base/log.h"
#include "server/constraint.h"

namespace nibble {
namespace {

// Generation ends with any id that the configs or the tokenizer name.
std::vector<int32_t> find_stop_tokens(const ModelDir& dir, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  const auto take = [&](const Json& config) {
    const auto it = config.find("eos_token_id");
    if (it == config.end()) return;
    for (const Json& id : it->is_array() ? *it : Json::array({*it}))
      if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  };
  take(dir.config());
  if (const auto text = dir.config().find("text_config"); text != dir.config().end()) take(*text);
  take(dir.generation_config());
  if (tokenizer.eos_token_id()) ids.push_back(*tokenizer.eos_token_id());
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

Result<std::unique_ptr<ServedModel>> ServedModel::read(const std::string& path,
                                                       const std::string& template_text) {
  NB_TRY(ModelDir dir, ModelDir::open(path));
  NB_TRY(const std::string tokenizer_json, dir.tokenizer_json());
  const Result<std::string> config = dir.side_file("tokenizer_config.json");
  NB_TRY(
      Tokenizer tokenizer,
      Tokenizer::load(tokenizer_json, config ? std::string_view(*config) : "", "tokenizer.json"));
  std::string text = template_text;
  if (text.empty()) {
    NB_TRY(text, dir.chat_template());
  }
  std::optional<ChatTemplate> chat_template;
  if (text.empty()) {
    log_warning(
        "{}: no chat template, neither chat_template.jinja nor in tokenizer_config.json: it "
        "completes text, and does not chat",
        path);
  } else {
    NB_TRY(chat_template, ChatTemplate::parse(text, "chat_template.jinja"));
  }
  std::vector<int32_t> stop_token_ids = find_stop_tokens(dir, tokenizer);
  auto model = std::unique_ptr<ServedModel>(new ServedModel{
      .dir = std::move(dir),
      .tokenizer = std::move(tokenizer),
      .chat_template = std::move(chat_template),
      .stop_token_ids = std::move(stop_token_ids),
  });
  model->template_takes_parts = contains(text, "in content") ||
                                contains(text, "in message.content") ||
                                contains(text, "in message['content']");
  if (contains(text, "</think>")) model->reasoning_parser = "qwen3";
  if (contains(text, "<function="))
    model->tool_parser = "qwen3_coder";
  else if (contains(text, "<tool_call>"))
    model->tool_parser = "hermes";
  model->grammars = make_grammar_cache(model->tokenizer, model->stop_token_ids);
  return model;
}

Result<std::unique_ptr<ServedModel>> ServedModel::open(const std::string& path,
                                                       const EngineOptions& options,
                                                       const std::string& template_text) {
  NB_TRY(std::unique_ptr<ServedModel> model, read(path, template_text));
  NB_TRY(model->engine, Engine::start(model->dir, options));
  return model;
}

}  // namespace nibble
