// Messages -> prompt -> tokens -> text -> events.
#include "cli/session.h"

#include <algorithm>
#include <chrono>

#include "text/detokenizer.h"

namespace nibble::cli {
namespace {

// Generation ends with any id that the config, generation_config.json or the tokenizer names.
std::vector<int32_t> stop_tokens(const ModelDir& dir, const Tokenizer& tokenizer,
                                 const ModelSpec& spec) {
  std::vector<int32_t> ids = spec.eos_token_ids;
  const auto it = dir.generation_config().find("eos_token_id");
  if (it != dir.generation_config().end()) {
    for (const Json& id : it->is_array() ? *it : Json::array({*it}))
      if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  }
  if (tokenizer.eos_token_id()) ids.push_back(*tokenizer.eos_token_id());
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

Result<std::unique_ptr<Session>> Session::open(const std::string& model, EngineOptions options) {
  NB_TRY(ModelDir dir, ModelDir::open(model));
  NB_TRY(const std::string tokenizer_json, dir.side_file("tokenizer.json"));
  const Result<std::string> tokenizer_config = dir.side_file("tokenizer_config.json");
  NB_TRY(
      Tokenizer tokenizer,
      Tokenizer::load(tokenizer_json, tokenizer_config ? std::string_view(*tokenizer_config) : "",
                      "tokenizer.json"));
  NB_TRY(const std::string template_text, dir.chat_template());
  NB_TRY(ChatTemplate chat_template, ChatTemplate::parse(template_text, "chat_template.jinja"));
  std::unique_ptr<Session> session(
      new Session(std::move(dir), std::move(tokenizer), std::move(chat_template)));
  session->template_thinks_ = template_text.find("</think>") != std::string::npos;
  NB_TRY(session->engine_, Engine::start(session->dir_, options));
  session->stop_token_ids_ =
      stop_tokens(session->dir_, session->tokenizer_, session->engine_->spec());
  return session;
}

Result<Reply> Session::chat(const Json& messages, const Json& tools, const GenerateOptions& options,
                            const std::function<bool(const ReplyEvent&)>& on_event) {
  Json variables = {{"messages", messages},
                    {"add_generation_prompt", true},
                    {"enable_thinking", options.thinking}};
  if (!tools.empty()) variables["tools"] = tools;
  NB_TRY(const std::string prompt, template_.render(variables));

  Request request;
  request.prompt = tokenizer_.encode(prompt);
  request.stop_token_ids = stop_token_ids_;
  request.sampling.temperature = options.temperature;
  request.sampling.top_p = options.top_p;
  request.sampling.top_k = options.top_k;
  if (options.seed >= 0) request.sampling.seed = options.seed;
  const auto num_prompt = static_cast<int>(request.prompt.size());
  request.max_tokens = std::min(options.max_tokens, engine_->max_model_len() - num_prompt);

  ReplyParserOptions parsing;
  parsing.reasoning_parser = template_thinks_ ? "qwen3" : "";
  parsing.tool_parser = tools.empty() ? "" : "qwen3_coder";
  parsing.tools = tools;
  parsing.prompt_tail = prompt;
  NB_TRY(const std::unique_ptr<ReplyParser> parser, make_reply_parser(parsing));

  Reply reply;
  reply.num_prompt_tokens = num_prompt;
  const auto start = std::chrono::steady_clock::now();
  NB_TRY(const std::unique_ptr<RequestHandle> handle, engine_->submit(std::move(request)));
  bool wanted = true;
  const auto take = [&](const std::vector<ReplyEvent>& events) {
    for (const ReplyEvent& event : events) {
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning: reply.reasoning += event.text; break;
        case ReplyEvent::Kind::kContent: reply.content += event.text; break;
        case ReplyEvent::Kind::kToolCallBegin:
          reply.tool_calls.push_back({{"name", event.name}, {"arguments", ""}});
          break;
        case ReplyEvent::Kind::kToolCallArguments:
          reply.tool_calls.back()["arguments"].get_ref<std::string&>() += event.text;
          break;
        case ReplyEvent::Kind::kToolCallEnd: break;
      }
      if (on_event && wanted) wanted = on_event(event);
    }
    if (!wanted) handle->cancel();
  };
  Detokenizer detokenizer(tokenizer_);
  for (bool open = true; open;) {
    const TokenEvent event = handle->next();
    open = event.finish == FinishReason::kNone;
    if (event.finish == FinishReason::kError) return Error{ErrorCode::kIo, event.error};
    if (event.token >= 0) ++reply.num_tokens;
    if (event.token >= 0 && !event.stop_token) take(parser->push(detokenizer.push(event.token)));
    reply.cut = event.finish == FinishReason::kLength;
  }
  take(parser->push(detokenizer.flush()));
  take(parser->finish());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  reply.seconds = elapsed.count();
  return reply;
}

}  // namespace nibble::cli
