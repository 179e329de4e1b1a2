// An API server over an engine that says what the test tells it to, and replies that are recorded.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

#include "server/api_server.h"
#include "support/paths.h"

namespace nibble::test {

inline constexpr int kMaxModelLen = 4096;

// Answers every request with the same token ids, one event each.
class ScriptedEngine final : public Engine {
 public:
  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    last_request = request;
    if (refuse) return *refuse;
    auto handle = std::make_unique<Handle>();
    const int num_tokens = std::min<int>(request.max_tokens, static_cast<int>(script.size()));
    for (int i = 0; i < num_tokens; ++i) {
      TokenEvent event;
      event.token = script[static_cast<size_t>(i)];
      event.logprob = -0.5f;
      const bool stops =
          std::ranges::find(request.stop_token_ids, event.token) != request.stop_token_ids.end();
      if (stops) event.stop_token = event.token;
      if (stops || i + 1 == num_tokens)
        event.finish = stops ? FinishReason::kStop : FinishReason::kLength;
      handle->events.push_back(event);
      if (stops) break;
    }
    if (fail) {
      TokenEvent& event = handle->events[handle->events.size() / 2];
      event = {};
      event.finish = FinishReason::kError;
      event.error = "the device is gone";
    }
    return std::unique_ptr<RequestHandle>(std::move(handle));
  }
  EngineStats stats() const override { return {}; }
  const ModelSpec& spec() const override { return spec_; }
  int max_model_len() const override { return kMaxModelLen; }

  std::vector<int32_t> script;
  std::optional<Error> refuse;
  bool fail = false;
  Request last_request;
  ScriptedEngine() { spec_.vocab_size = 4096; }

 private:
  struct Handle final : RequestHandle {
    TokenEvent next() override {
      TokenEvent event = events.front();
      events.pop_front();
      return event;
    }
    void cancel() override {}
    std::deque<TokenEvent> events;
  };
  ModelSpec spec_;
};

struct RecordedReply final : HttpReply {
  void send(HttpResponse response) override { answer = std::move(response); }
  void begin_stream(HttpResponse head) override { answer = std::move(head); }
  bool write(std::string piece) override {
    stream += piece;
    return true;
  }
  void end_stream() override { ended = true; }
  bool client_gone() const override { return false; }
  void on_client_gone(std::function<void()>) override {}

  // The stream's events, each with its blank line.
  std::vector<std::string> events() const {
    std::vector<std::string> out;
    for (size_t at = 0; at < stream.size();) {
      const size_t end = std::min(stream.find("\n\n", at), stream.size() - 2) + 2;
      out.push_back(stream.substr(at, end - at));
      at = end;
    }
    return out;
  }

  HttpResponse answer;
  std::string stream;
  bool ended = false;
};

class ScriptedApi : public testing::Test {
 protected:
  explicit ScriptedApi(const std::string& model = test::bundled_model("nibble-demo-14m").string())
      : model_(ServedModel::read(model).value()) {
    auto engine = std::make_unique<ScriptedEngine>();
    engine_ = engine.get();
    model_->engine = std::move(engine);
    ApiOptions options;  // by statements: gcc 12 sees an uninitialized member in the braced form
    options.served_model_names = {"demo", "alias"};
    options.tool_parser = model_->tool_parser;
    options.reasoning_parser = model_->reasoning_parser;
    api_ = ApiServer::create(*model_, options).value();
  }

  void say(std::string_view text) {
    engine_->script = model_->tokenizer.encode(text);
    engine_->script.push_back(model_->stop_token_ids[0]);
  }
  RecordedReply post(const Json& body) { return post_to("/v1/chat/completions", body); }
  RecordedReply post_to(const std::string& path, const Json& body) {
    return send("POST", path, dump_json(body));
  }
  RecordedReply post_text(std::string body) {
    return send("POST", "/v1/chat/completions", std::move(body));
  }
  RecordedReply send(const std::string& method, const std::string& path, std::string body = "") {
    RecordedReply reply;
    api_->handle({.method = method,
                  .path = path,
                  .query = "",
                  .headers = {{"content-type", "application/json"}},
                  .body = std::move(body),
                  .remote_address = ""},
                 reply);
    return reply;
  }
  static Json parsed(const RecordedReply& reply) {
    return parse_json(reply.answer.body, "answer").value();
  }
  static Json user(std::string_view text) {
    return {{"messages", Json::array({{{"role", "user"}, {"content", text}}})}};
  }
  static Json weather_tools() {
    return parse_json(R"([{"type": "function", "function": {"name": "weather", "parameters": {
      "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}])",
                      "tools")
        .value();
  }

  std::unique_ptr<ServedModel> model_;
  ScriptedEngine* engine_;
  std::unique_ptr<ApiServer> api_;
};

}  // namespace nibble::test
