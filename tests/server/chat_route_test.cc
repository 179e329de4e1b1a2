// POST /v1/chat/completions against an engine that says what the test tells it to: shapes, checks,
// and streamed answers that add up to the whole ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_api.h"

namespace nibble {
namespace {

using test::kMaxModelLen;
using test::RecordedReply;
using ChatRoute = test::ScriptedApi;

constexpr std::string_view kTwoCalls =
    "I should look.\n</think>\n\nLet me see.\n<tool_call>\n<function=weather>\n<parameter=city>\n"
    "Łódź\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
    "</tool_call>";

TEST_F(ChatRoute, SplitsReasoningContentAndToolCalls) {
  say(kTwoCalls);
  Json body = user("Weather?");
  body["tools"] = weather_tools();
  const RecordedReply reply = post(body);
  ASSERT_EQ(reply.answer.status, 200) << reply.answer.body;
  const Json answer = parsed(reply);
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "demo");
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["reasoning"], "I should look.\n");
  EXPECT_EQ(choice["message"]["reasoning_content"], choice["message"]["reasoning"]);
  const Json& calls = choice["message"]["tool_calls"];
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0]["type"], "function");
  EXPECT_EQ(calls[0]["function"]["name"], "weather");
  EXPECT_EQ(parse_json(calls[0]["function"]["arguments"].get<std::string>(), "").value(),
            Json({{"city", "Łódź"}, {"days", 3}}));
  EXPECT_NE(calls[0]["id"], calls[1]["id"]);
  EXPECT_EQ(answer["usage"]["completion_tokens"], engine_->script.size());
  EXPECT_EQ(answer["usage"]["total_tokens"].get<int>(),
            answer["usage"]["prompt_tokens"].get<int>() +
                answer["usage"]["completion_tokens"].get<int>());
}

// Puts the chunks of choice 0 together as a client does.
Json reassemble(const RecordedReply& reply, Json* finish) {
  Json message = {{"content", ""}, {"reasoning", ""}, {"calls", Json::array()}};
  const std::vector<std::string> pieces = reply.events();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const std::string& piece = pieces[i];
    EXPECT_TRUE(piece.starts_with("data: ") && piece.ends_with("\n\n")) << piece;
    const std::string data = piece.substr(6, piece.size() - 8);
    if (i + 1 == pieces.size()) {
      EXPECT_EQ(data, "[DONE]");
      break;
    }
    const Json chunk = parse_json(data, "chunk").value();
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    if (chunk["choices"].empty()) continue;
    const Json& delta = chunk["choices"][0]["delta"];
    if (i == 0) {
      EXPECT_EQ(delta, Json({{"role", "assistant"}, {"content", ""}}));
    }
    if (delta.contains("content"))
      message["content"].get_ref<std::string&>() += delta["content"].get<std::string>();
    if (delta.contains("reasoning"))
      message["reasoning"].get_ref<std::string&>() += delta["reasoning"].get<std::string>();
    if (delta.contains("tool_calls")) {
      const Json& call = delta["tool_calls"][0];
      if (call.contains("id")) {
        EXPECT_EQ(call["index"], message["calls"].size());
        message["calls"].push_back({{"name", call["function"]["name"]}, {"arguments", ""}});
      }
      message["calls"].back()["arguments"].get_ref<std::string&>() +=
          call["function"]["arguments"].get<std::string>();
    }
    if (!chunk["choices"][0]["finish_reason"].is_null())
      *finish = chunk["choices"][0]["finish_reason"];
  }
  return message;
}

TEST_F(ChatRoute, AStreamAddsUpToTheWholeAnswer) {
  for (const std::string_view text :
       {kTwoCalls, std::string_view("Hm.\n</think>\n\nPlain <meta> text, 😀 and <tool_cal."),
        std::string_view("never stops thinking")}) {
    SCOPED_TRACE(text);
    say(text);
    Json body = user("Weather?");
    body["tools"] = weather_tools();
    const Json whole = parsed(post(body))["choices"][0];
    body["stream"] = true;
    const RecordedReply reply = post(body);
    EXPECT_TRUE(reply.ended);
    EXPECT_EQ(reply.answer.content_type, "text/event-stream; charset=utf-8");
    Json finish;
    const Json message = reassemble(reply, &finish);
    EXPECT_EQ(finish, whole["finish_reason"]);
    const auto or_empty = [](const Json& value) { return value.is_null() ? Json("") : value; };
    EXPECT_EQ(message["reasoning"], or_empty(whole["message"]["reasoning"]));
    if (whole["message"]["tool_calls"].empty()) {
      EXPECT_EQ(message["content"], or_empty(whole["message"]["content"]));
    }
    ASSERT_EQ(message["calls"].size(), whole["message"]["tool_calls"].size());
    for (size_t i = 0; i < message["calls"].size(); ++i)
      EXPECT_EQ(message["calls"][i]["arguments"],
                whole["message"]["tool_calls"][i]["function"]["arguments"]);
  }
}

TEST_F(ChatRoute, StopStringsCutTheTextWhereverTheyFall) {
  Json body = user("Count.");
  body["chat_template_kwargs"] = {{"enable_thinking", false}};
  body["stop"] = Json::array({"seven", "zzz"});
  say("five six seven eight");
  const Json choice = parsed(post(body))["choices"][0];
  EXPECT_EQ(choice["message"]["content"], "five six ");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], "seven");
  body["include_stop_str_in_output"] = true;
  EXPECT_EQ(parsed(post(body))["choices"][0]["message"]["content"], "five six seven");
}

TEST_F(ChatRoute, ALimitedAnswerSaysLength) {
  say("one two three four five six seven");
  Json body = user("Count.");
  body["max_completion_tokens"] = 3;
  const Json answer = parsed(post(body));
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 3);
}

TEST_F(ChatRoute, ADefaultLimitIsWhatFitsBehindThePrompt) {
  say("ok");
  const Json answer = parsed(post(user("Hello")));
  EXPECT_EQ(engine_->last_request.max_tokens,
            kMaxModelLen - answer["usage"]["prompt_tokens"].get<int>());
}

TEST_F(ChatRoute, UsageComesInAStreamWhenAsked) {
  say("ok");
  Json body = user("Hello");
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const RecordedReply reply = post(body);
  const std::vector<std::string> pieces = reply.events();
  ASSERT_GE(pieces.size(), 3u);
  const std::string& piece = pieces[pieces.size() - 2];
  const Json chunk = parse_json(piece.substr(6), "chunk").value();
  EXPECT_TRUE(chunk["choices"].empty());
  EXPECT_EQ(chunk["usage"]["completion_tokens"], engine_->script.size());
}

TEST_F(ChatRoute, LogprobsListTheChosenTokenFirst) {
  say("ok");
  Json body = user("Hello");
  body["logprobs"] = true;
  body["top_logprobs"] = 1;
  const Json logprobs = parsed(post(body))["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(logprobs.size(), engine_->script.size());
  EXPECT_EQ(logprobs[0]["top_logprobs"][0]["token"], logprobs[0]["token"]);
  EXPECT_FLOAT_EQ(logprobs[0]["logprob"].get<float>(), -0.5f);
}

TEST_F(ChatRoute, EveryBadRequestGetsItsStatusAndNamesTheField) {
  say("ok");
  struct Row {
    const char* change;  // merged into a good request
    int status;
    const char* param;  // "" for null
    const char* part;   // of the message
  };
  const Row rows[] = {
      {R"({"messages": null})", 400, "messages", "Field required"},
      {R"({"messages": []})", 400, "messages", "non-empty list"},
      {R"({"messages": [{"content": "x"}]})", 400, "", "role"},
      {R"({"messages": [{"role": "user", "content": 3}]})", 400, "", "content"},
      {R"({"messages": [{"role": "user", "content": [{"type": "smell"}]}]})", 400, "",
       "Unsupported chat content part type"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", 400, "",
       "text only"},
      {R"({"messages": [{"role": "judge", "content": "x"}]})", 400, "", ""},
      {R"({"model": "other"})", 404, "model", "The model `other` does not exist."},
      {R"({"model": 3})", 400, "model", "string"},
      {R"({"temperature": -1})", 400, "temperature", ">= 0"},
      {R"({"temperature": "hot"})", 400, "temperature", "number"},
      {R"({"top_p": 0})", 400, "top_p", "(0, 1]"},
      {R"({"top_k": -2})", 400, "top_k", "-1"},
      {R"({"min_p": 1.5})", 400, "min_p", "[0, 1]"},
      {R"({"presence_penalty": 3})", 400, "presence_penalty", "2"},
      {R"({"max_tokens": 0})", 400, "max_tokens", "max_tokens must be at least 1, got 0."},
      {R"({"max_tokens": 1.5})", 400, "max_tokens", "integer"},
      {R"({"max_tokens": 5000})", 400, "max_tokens", "cannot be greater than max_model_len=4096"},
      {R"({"max_tokens": 4096})", 400, "input_tokens", "maximum context length is 4096 tokens"},
      {R"({"n": 0})", 400, "n", "1"},
      {R"({"n": 2, "temperature": 0})", 400, "n", "greedy"},
      {R"({"stop": ""})", 400, "stop", "non-empty"},
      {R"({"stop_token_ids": ["a"]})", 400, "stop_token_ids", "token ids"},
      {R"({"logit_bias": {"x": 1}})", 400, "logit_bias", "token ids"},
      {R"({"logit_bias": {"99999": 1}})", 400, "logit_bias", "vocabulary"},
      {R"({"tools": []})", 400, "tools", "empty array"},
      {R"({"tools": [{"type": "function"}]})", 400, "tools", "function"},
      {R"({"tool_choice": "auto"})", 400, "tool_choice", "`tools` must be set"},
      {R"({"top_logprobs": 2})", 400, "top_logprobs", "`logprobs` must be set"},
      {R"({"stream_options": {"include_usage": true}})", 400, "stream_options", "stream"},
      {R"({"stream": "yes"})", 400, "stream", "true or false"},
      {R"({"chat_template": "{{ 1 }}"})", 400, "chat_template", "refused"},
      {R"({"chat_template_kwargs": {"tokenize": true}})", 400, "chat_template_kwargs", "tokenize"},
      {R"({"continue_final_message": true, "add_generation_prompt": true})", 400,
       "continue_final_message", "both"},
      {R"({"response_format": {"type": "json_schema"}})", 400, "response_format", "json_schema"},
      {R"({"response_format": {"type": "smoke"}})", 400, "response_format", ""},
      {R"({"structured_outputs": {"regex": "a", "choice": ["b"]}})", 400, "structured_outputs", ""},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.change);
    Json body = user("Hello");
    body.update(parse_json(row.change, "row").value());
    const RecordedReply reply = post(body);
    EXPECT_EQ(reply.answer.status, row.status) << reply.answer.body;
    const Json error = parsed(reply)["error"];
    EXPECT_EQ(error["code"], row.status);
    EXPECT_EQ(error["param"], *row.param ? Json(row.param) : Json());
    EXPECT_THAT(error["message"].get<std::string>(), testing::HasSubstr(row.part));
  }
  EXPECT_EQ(post_text("{").answer.status, 400);
  EXPECT_EQ(post_text("[]").answer.status, 400);
}

TEST_F(ChatRoute, EngineTroubleIsReportedBeforeAndDuringAStream) {
  say("some words of an answer");
  engine_->refuse = Error{ErrorCode::kOverloaded, "256 requests are waiting already"};
  const auto refused = post(user("Hello"));
  EXPECT_EQ(refused.answer.status, 429);
  EXPECT_EQ(refused.answer.headers.at("Retry-After"), "1");
  engine_->refuse.reset();
  engine_->fail = true;
  EXPECT_EQ(post(user("Hello")).answer.status, 500);
  Json body = user("Hello");
  body["stream"] = true;
  const RecordedReply reply = post(body);
  const std::vector<std::string> pieces = reply.events();
  ASSERT_GE(pieces.size(), 2u);
  EXPECT_THAT(pieces[pieces.size() - 2], testing::HasSubstr("the device is gone"));
  EXPECT_EQ(pieces.back(), "data: [DONE]\n\n");
}

TEST_F(ChatRoute, OtherRoutesAnswerAsDocumented) {
  const auto status = [&](const char* method, const char* path, const char* body = "") {
    RecordedReply reply;
    api_->handle({.method = method,
                  .path = path,
                  .query = "",
                  .headers = {{"content-type", "application/json"}},
                  .body = body,
                  .remote_address = ""},
                 reply);
    return std::pair(reply.answer.status, reply.answer.body);
  };
  EXPECT_EQ(status("GET", "/health"), std::pair(200, std::string()));
  EXPECT_EQ(status("GET", "/nowhere"), std::pair(404, std::string(R"({"detail":"Not Found"})")));
  EXPECT_EQ(status("GET", "/v1/chat/completions").first, 405);
  const Json models = parse_json(status("GET", "/v1/models").second, "models").value();
  ASSERT_EQ(models["data"].size(), 2u);
  EXPECT_EQ(models["data"][0]["id"], "demo");
  EXPECT_EQ(models["data"][0]["max_model_len"], kMaxModelLen);
  const Json tokens =
      parse_json(status("POST", "/tokenize", R"({"prompt": "a b"})").second, "tokens").value();
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(
      parse_json(
          status("POST", "/detokenize", dump_json({{"tokens", tokens["tokens"]}}).c_str()).second,
          "text")
          .value()["prompt"],
      "a b");
  EXPECT_EQ(status("POST", "/detokenize", R"({"tokens": [-1]})").first, 400);
  EXPECT_THAT(status("GET", "/metrics").second, testing::HasSubstr("vllm:num_requests_running"));
}

}  // namespace
}  // namespace nibble
