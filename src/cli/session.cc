// Messages -> prompt -> tokens -> text -> events.
#include "cli/session.h"

#include <algorithm>
#include <chrono>

#include "base/format.h"
#include "server/prompt_builder.h"
#include "server/reply_stream.h"

namespace nibble::cli {

Result<std::unique_ptr<Session>> Session::open(const std::string& model, EngineOptions options) {
  NB_TRY(std::unique_ptr<ServedModel> served, ServedModel::read(model));
  if (!served->chat_template)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: neither chat_template.jinja nor a chat_template in "
                      "tokenizer_config.json: it does not chat; nibble serve completes text with "
                      "it",
                      model);
  NB_TRY(served->engine, Engine::start(served->dir, options));
  return std::unique_ptr<Session>(new Session(std::move(served)));
}

Result<Reply> Session::chat(const Json& messages, const Json& tools, const GenerateOptions& options,
                            const std::function<bool(const ReplyEvent&)>& on_event) {
  ChatRequest chat;
  chat.messages = messages;
  chat.tools = tools;
  chat.template_kwargs = {{"enable_thinking", options.thinking}};
  NB_TRY(const std::string prompt, build_prompt(*model_, chat));

  Request request;
  request.prompt = model_->tokenizer.encode(prompt);
  request.stop_token_ids = model_->stop_token_ids;
  request.sampling.temperature = options.temperature;
  request.sampling.top_p = options.top_p;
  request.sampling.top_k = options.top_k;
  if (options.seed >= 0) request.sampling.seed = options.seed;
  const auto num_prompt = static_cast<int>(request.prompt.size());
  request.max_tokens = std::min(options.max_tokens, model_->engine->max_model_len() - num_prompt);

  ReplyParserOptions parsing;
  parsing.reasoning_parser = model_->reasoning_parser;
  parsing.tool_parser = tools.empty() ? "" : model_->tool_parser;
  parsing.tools = tools;
  parsing.prompt_tail = prompt;
  NB_TRY(std::unique_ptr<ReplyParser> parser, make_reply_parser(parsing));

  Reply reply;
  reply.num_prompt_tokens = num_prompt;
  const auto start = std::chrono::steady_clock::now();
  NB_TRY(const std::unique_ptr<RequestHandle> handle, model_->engine->submit(std::move(request)));
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
  ReplyStream stream(model_->tokenizer, std::move(parser), {});
  while (!stream.done()) {
    const TokenEvent event = handle->next();
    if (event.finish == FinishReason::kError) return Error{ErrorCode::kIo, event.error};
    take(stream.push(event));
  }
  reply.num_tokens = stream.num_tokens();
  reply.cut = stream.finish() == FinishReason::kLength;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  reply.seconds = elapsed.count();
  return reply;
}

}  // namespace nibble::cli
