// Server-sent events -> reply events.
#include "cli/remote_session.h"

#include <chrono>

#include "base/format.h"

namespace nibble::cli {
namespace {

// The message of an error object, or the text itself.
std::string error_text(const std::string& body) {
  const Result<Json> parsed = parse_json(body, "answer");
  if (!parsed || !parsed->is_object()) return body.substr(0, 200);
  const Json error = parsed->value("error", Json());
  if (error.is_string()) return error.get<std::string>();
  const Json message = error.is_object() ? error.value("message", Json()) : Json();
  return message.is_string() ? message.get<std::string>() : body.substr(0, 200);
}

Error refused(const HttpAnswer& answer, const std::string& body) {
  return make_error(ErrorCode::kIo, "the server answered {}: {}", answer.status, error_text(body));
}

std::string text_of(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

}  // namespace

RemoteSession::RemoteSession(const HttpUrl& url, const std::string& key_header)
    : client_(url.host, url.port, std::chrono::minutes(10)), path_(url.path) {
  while (path_.ends_with('/')) path_.pop_back();
  if (!path_.ends_with("/v1")) path_ += "/v1";
  headers_ = "Content-Type: application/json\r\n" + key_header;
}

Result<std::unique_ptr<RemoteSession>> RemoteSession::open(const std::string& url,
                                                           std::string key) {
  NB_TRY(const HttpUrl parsed, parse_http_url(url));
  NB_TRY(const std::string key_header, bearer_header(key));
  auto session = std::unique_ptr<RemoteSession>(new RemoteSession(parsed, key_header));
  NB_TRY(const HttpAnswer answer,
         session->client_.request("GET", session->path_ + "/models", session->headers_, ""));
  if (answer.status != 200) return refused(answer, answer.body);
  NB_TRY(const Json models, parse_json(answer.body, url + "/models"));
  const Json data = models.is_object() ? models.value("data", Json()) : Json();
  if (!data.is_array() || data.empty() || !data[0].is_object())
    return make_error(ErrorCode::kIo, "{}: its list of models is empty", url);
  session->model_ = text_of(data[0], "id");
  return session;
}

Result<Reply> RemoteSession::chat(const Json& messages, const GenerateOptions& options,
                                  const std::function<bool(const ReplyEvent&)>& on_event) {
  Json body = {{"model", model_},
               {"messages", messages},
               {"stream", true},
               {"max_tokens", options.max_tokens},
               {"temperature", options.temperature},
               {"top_p", options.top_p},
               {"chat_template_kwargs", {{"enable_thinking", options.thinking}}}};
  if (options.top_k > 0) body["top_k"] = options.top_k;
  if (options.seed >= 0) body["seed"] = options.seed;

  Reply reply;
  std::string error;
  bool wanted = true;
  const auto emit = [&](ReplyEvent::Kind kind, const std::string& text, std::string* whole) {
    if (text.empty()) return;
    *whole += text;
    ReplyEvent event;
    event.kind = kind;
    event.text = text;
    wanted = wanted && on_event(event);
  };
  const auto take = [&](std::string_view data) {
    const Result<Json> chunk = parse_json(data, "event");
    if (!chunk || !chunk->is_object()) return;
    if (chunk->contains("error")) error = error_text(std::string(data));
    const Json choices = chunk->value("choices", Json());
    if (!choices.is_array() || choices.empty() || !choices[0].is_object()) return;
    reply.cut = reply.cut || text_of(choices[0], "finish_reason") == "length";
    const Json delta = choices[0].value("delta", Json());
    if (!delta.is_object()) return;
    std::string reasoning = text_of(delta, "reasoning");
    if (reasoning.empty()) reasoning = text_of(delta, "reasoning_content");
    emit(ReplyEvent::Kind::kReasoning, reasoning, &reply.reasoning);
    emit(ReplyEvent::Kind::kContent, text_of(delta, "content"), &reply.content);
  };

  const auto start = std::chrono::steady_clock::now();
  std::string in;
  const auto on_data = [&](std::string_view piece) {
    in += piece;
    size_t end;
    while (wanted && (end = in.find("\n\n")) != std::string::npos) {
      if (in.starts_with("data: ")) take(std::string_view(in).substr(6, end - 6));
      in.erase(0, end + 2);
    }
    return wanted;
  };
  NB_TRY(const HttpAnswer answer,
         client_.request("POST", path_ + "/chat/completions", headers_, dump_json(body), on_data));
  if (answer.status != 200) return refused(answer, answer.body);
  if (!error.empty()) return make_error(ErrorCode::kIo, "the server said: {}", error);
  reply.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return reply;
}

}  // namespace nibble::cli
