// The dialects beside chat, against an engine that says what the test tells it to: shapes, order of
// events, and streams that add up to the whole answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "support/scripted_api.h"

namespace nibble {
namespace {

using test::RecordedReply;
using testing::ElementsAre;
using testing::HasSubstr;
using Dialects = test::ScriptedApi;

constexpr std::string_view kCall =
    "I look.\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "</function>\n</tool_call>";

// The data of a stream's events; a name, where there is one, must equal the data's type.
std::vector<Json> events_of(const RecordedReply& reply) {
  std::vector<Json> out;
  for (const std::string& event : reply.events()) {
    const size_t at = event.find("data: ") + 6;
    const std::string data = event.substr(at, event.size() - at - 2);
    if (data == "[DONE]") continue;
    out.push_back(parse_json(data, "event").value());
    if (event.starts_with("event: ")) {
      EXPECT_EQ(event.substr(7, event.find('\n') - 7), out.back()["type"]);
    }
  }
  return out;
}

TEST_F(Dialects, ACompletionTakesEveryFormOfPrompt) {
  say("five six");
  struct Row {
    const char* prompt;
    size_t num_choices;
  };
  for (const Row& row : {Row{R"("a b")", 1}, Row{R"(["a", "b"])", 2}, Row{"[5, 6]", 1},
                         Row{"[[5], [6, 7], [8]]", 3}}) {
    SCOPED_TRACE(row.prompt);
    const RecordedReply reply = post_to(
        "/v1/completions", {{"prompt", parse_json(row.prompt, "prompt").value()}, {"n", 2}});
    ASSERT_EQ(reply.answer.status, 200) << reply.answer.body;
    const Json choices = parsed(reply)["choices"];
    ASSERT_EQ(choices.size(), row.num_choices * 2);
    for (size_t i = 0; i < choices.size(); ++i) {
      EXPECT_EQ(choices[i]["index"], i);
      EXPECT_EQ(choices[i]["text"], "five six");
    }
  }
  EXPECT_EQ(engine_->last_request.max_tokens, 16);
}

TEST_F(Dialects, PromptsThatAreNoneAreRefused) {
  say("x");
  const std::string many_texts = "[" + std::string(40'000, ' ') + "\"\"" + [] {
    std::string more;
    for (int i = 0; i < 100'000; ++i) more += ",\"\"";
    return more;
  }() + "]";
  const std::vector<std::string> prompts = {"null",
                                            "[]",
                                            "\"\"",
                                            "[\"a\", 5]",
                                            "[5, \"a\"]",
                                            "[[5], \"a\"]",
                                            "[-1]",
                                            "[4096]",  // the vocabulary's size
                                            "[99999]",
                                            "[1099511627776]",
                                            "[18446744073709551615]",
                                            "[1.5]",
                                            "[[]]",
                                            "[true]",
                                            "{}",
                                            "7",
                                            many_texts};
  for (const std::string& prompt : prompts) {
    SCOPED_TRACE(prompt.substr(0, 40));
    const RecordedReply reply = send("POST", "/v1/completions", "{\"prompt\": " + prompt + "}");
    EXPECT_EQ(reply.answer.status, 400) << reply.answer.body;
    EXPECT_LT(reply.answer.body.size(), 1000u);
    EXPECT_EQ(parsed(reply)["error"]["param"], "prompt");
  }
}

TEST_F(Dialects, ANullLimitIsAsManyTokensAsFit) {
  say("five six seven");
  Json body = {{"prompt", std::vector<int32_t>(test::kMaxModelLen - 2, 7)},
               {"max_tokens", nullptr}};
  const RecordedReply fits = post_to("/v1/completions", body);
  ASSERT_EQ(fits.answer.status, 200) << fits.answer.body;
  EXPECT_EQ(parsed(fits)["usage"]["completion_tokens"], 2);
  body.erase("max_tokens");  // nothing means 16
  EXPECT_EQ(post_to("/v1/completions", body).answer.status, 400);
}

TEST_F(Dialects, NumbersOutOfRangeNameTheirField) {
  say("x");
  for (const char* field : {"n", "best_of", "logprobs", "max_tokens"})
    for (const char* value : {"-1", "1000000000", "9223372036854775808", "1.5", "\"5\"", "{}"}) {
      if (field == std::string_view("best_of") && value == std::string_view("1000000000")) continue;
      SCOPED_TRACE(std::string(field) + " = " + value);
      const RecordedReply reply =
          send("POST", "/v1/completions",
               "{\"prompt\": \"a\", \"" + std::string(field) + "\": " + value + "}");
      EXPECT_EQ(reply.answer.status, 400) << reply.answer.body;
      EXPECT_EQ(parsed(reply)["error"]["param"], field);
    }
  EXPECT_EQ(send("POST", "/v1/completions", R"({"prompt": "a", "n": NaN})").answer.status, 400);
  EXPECT_EQ(
      send("POST", "/v1/completions", R"({"prompt": "a", "n": null, "logprobs": 0})").answer.status,
      200);
}

TEST_F(Dialects, APromptAtTheLimitIsWholeAndALongerOneIsRefused) {
  say("x");
  using test::kMaxModelLen;
  const auto ask = [&](size_t num_ids, int max_tokens) {
    return post_to("/v1/completions",
                   {{"prompt", std::vector<int32_t>(num_ids, 7)}, {"max_tokens", max_tokens}});
  };
  for (const int max_tokens : {1, 2, 100}) {
    const size_t num_ids = kMaxModelLen - static_cast<size_t>(max_tokens);
    EXPECT_EQ(ask(num_ids, max_tokens).answer.status, 200);
    EXPECT_EQ(engine_->last_request.prompt, std::vector<int32_t>(num_ids, 7));
    EXPECT_EQ(engine_->last_request.max_tokens, max_tokens);
  }
  engine_->last_request = {};
  const auto expect_refused = [&](const RecordedReply& reply) {
    EXPECT_EQ(reply.answer.status, 400);
    EXPECT_THAT(parsed(reply)["error"]["message"].get<std::string>(),
                HasSubstr("This model's maximum context length is 4096 tokens"));
  };
  expect_refused(ask(kMaxModelLen - 1, 2));
  expect_refused(ask(kMaxModelLen, 1));
  expect_refused(ask(kMaxModelLen + 1, 1));
  expect_refused(ask(10 * kMaxModelLen, 1));
  std::string words;
  for (int i = 0; i < 2 * kMaxModelLen; ++i) words += "word ";
  expect_refused(post(user(words)));
  EXPECT_TRUE(engine_->last_request.prompt.empty());  // none reached the engine
}

TEST_F(Dialects, EchoWithoutTokensIsThePromptAlone) {
  say("five six");
  const Json choice = parsed(post_to(
      "/v1/completions",
      {{"prompt", "a b c"}, {"echo", true}, {"max_tokens", 0}, {"logprobs", 1}}))["choices"][0];
  EXPECT_EQ(choice["text"], "a b c");
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), model_->tokenizer.encode("a b c").size());
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["text_offset"][1], 1);
}

TEST_F(Dialects, StreamedCompletionsAddUpChoiceByChoice) {
  say("five six seven");
  const RecordedReply reply = post_to(
      "/v1/completions", {{"prompt", {"a", "b"}}, {"n", 2}, {"stream", true}, {"logprobs", 0}});
  std::map<int, std::string> texts;
  std::map<int, int> tokens;
  std::vector<int> order;
  for (const Json& chunk : events_of(reply)) {
    EXPECT_EQ(chunk["object"], "text_completion");
    const Json& choice = chunk["choices"][0];
    order.push_back(choice["index"]);
    texts[choice["index"]] += choice["text"].get<std::string>();
    tokens[choice["index"]] += static_cast<int>(choice["logprobs"]["tokens"].size());
  }
  ASSERT_EQ(texts.size(), 4u);
  for (const auto& [index, text] : texts) EXPECT_EQ(text, "five six seven");
  for (const auto& [index, count] : tokens) EXPECT_EQ(count, engine_->script.size());
  // Interleaved: the first pieces are of different choices.
  EXPECT_THAT(std::vector<int>(order.begin(), order.begin() + 4), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(reply.events().back(), "data: [DONE]\n\n");
}

TEST_F(Dialects, StreamedChoicesOfAChatAreInterleavedAndEndOneByOne) {
  say("Hm.\n</think>\n\nfive six");
  Json body = user("Hello");
  body["n"] = 3;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
  std::map<int, std::string> texts;
  std::set<int> ended;
  std::vector<int> order;
  for (const Json& chunk : events_of(post(body))) {
    EXPECT_TRUE(chunk.contains("usage"));
    if (chunk["choices"].empty()) continue;
    const Json& choice = chunk["choices"][0];
    order.push_back(choice["index"]);
    texts[choice["index"]] += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) ended.insert(choice["index"].get<int>());
  }
  EXPECT_THAT(std::vector<int>(order.begin(), order.begin() + 6), ElementsAre(0, 1, 2, 0, 1, 2));
  EXPECT_EQ(ended.size(), 3u);
  for (const auto& [index, text] : texts) EXPECT_EQ(text, "\n\nfive six");
}

TEST_F(Dialects, MessagesSpeakInBlocks) {
  say(kCall);
  Json body = {
      {"model", "demo"},
      {"max_tokens", 100},
      {"system", "Be brief."},
      {"messages", Json::array({{{"role", "user"}, {"content", "Weather?"}}})},
      {"tools", Json::array({{{"name", "weather"}, {"input_schema", {{"type", "object"}}}}})}};
  const Json whole = parsed(post_to("/v1/messages", body));
  EXPECT_EQ(whole["stop_reason"], "tool_use");
  ASSERT_EQ(whole["content"].size(), 2u) << dump_json(whole);
  EXPECT_EQ(whole["content"][0]["thinking"], "I look.\n");
  EXPECT_EQ(whole["content"][1]["input"], Json({{"city", "Oslo"}}));

  body["stream"] = true;
  std::vector<std::string> types;
  std::string arguments;
  for (const Json& event : events_of(post_to("/v1/messages", body))) {
    if (types.empty() || types.back() != event["type"]) types.push_back(event["type"]);
    if (event["type"] == "content_block_delta")
      arguments += event["delta"].value("partial_json", "");
  }
  EXPECT_THAT(types, ElementsAre("message_start", "content_block_start", "content_block_delta",
                                 "content_block_stop", "content_block_start", "content_block_delta",
                                 "content_block_stop", "message_delta", "message_stop"));
  EXPECT_EQ(arguments, "{\"city\": \"Oslo\"}");

  body.erase("max_tokens");
  const RecordedReply refused = post_to("/v1/messages", body);
  EXPECT_EQ(refused.answer.status, 400);
  EXPECT_EQ(parsed(refused)["error"]["type"], "invalid_request_error");
  const Json count = parsed(post_to("/v1/messages/count_tokens", body));
  EXPECT_EQ(count["input_tokens"], whole["usage"]["input_tokens"]);
}

TEST_F(Dialects, AToolResultOfAnthropicReachesTheTemplate) {
  say("</think>\n\nRain.");
  const Json body = parse_json(R"({"model": "demo", "max_tokens": 50, "messages": [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"},
      {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1",
      "content": [{"type": "text", "text": "wet"}]}]}],
    "tools": [{"name": "weather", "input_schema": {"type": "object"}}]})",
                               "body")
                        .value();
  ASSERT_EQ(post_to("/v1/messages", body).answer.status, 200);
  const std::string prompt = model_->tokenizer.decode(engine_->last_request.prompt);
  EXPECT_THAT(prompt, HasSubstr("<function=weather>"));
  EXPECT_THAT(prompt, HasSubstr("<tool_response>\nwet\n</tool_response>"));
}

TEST_F(Dialects, ResponsesAreItemsAndCanBeContinued) {
  say(kCall);
  Json body = {
      {"input", "Weather?"},
      {"tools",
       Json::array(
           {{{"type", "function"}, {"name", "weather"}, {"parameters", {{"type", "object"}}}}})},
      {"stream", true}};
  const std::vector<Json> events = events_of(post_to("/v1/responses", body));
  ASSERT_GE(events.size(), 4u);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i]["sequence_number"], i);
  EXPECT_EQ(events.front()["type"], "response.created");
  EXPECT_EQ(events.back()["type"], "response.completed");
  const Json& response = events.back()["response"];
  ASSERT_EQ(response["output"].size(), 2u);
  EXPECT_EQ(response["output"][0]["type"], "reasoning");
  EXPECT_EQ(response["output"][1]["arguments"], "{\"city\": \"Oslo\"}");

  const auto id = response["id"].get<std::string>();
  EXPECT_EQ(parsed(send("GET", "/v1/responses/" + id)), response);
  EXPECT_EQ(send("GET", "/v1/responses/nothing").answer.status, 404);
  EXPECT_EQ(send("POST", "/v1/responses/" + id + "/cancel").answer.status, 400);

  say("</think>\n\nRain.");
  const Json next = parsed(post_to(
      "/v1/responses", {{"previous_response_id", id},
                        {"input", Json::array({{{"type", "function_call_output"},
                                                {"call_id", response["output"][1]["call_id"]},
                                                {"output", "wet"}}})}}));
  EXPECT_EQ(next["output"].back()["content"][0]["text"], "\n\nRain.");
  const std::string prompt = model_->tokenizer.decode(engine_->last_request.prompt);
  EXPECT_THAT(prompt, HasSubstr("Weather?"));
  EXPECT_THAT(prompt, HasSubstr("<tool_response>\nwet\n</tool_response>"));
}

TEST_F(Dialects, InvocationsGoByTheFormOfTheBody) {
  say("x");
  EXPECT_EQ(parsed(post_to("/invocations", user("Hello")))["object"], "chat.completion");
  EXPECT_EQ(parsed(post_to("/invocations", {{"prompt", "a"}}))["object"], "text_completion");
  EXPECT_EQ(post_to("/invocations", Json::object()).answer.status, 400);
}

TEST_F(Dialects, TokenizeTakesMessagesToo) {
  Json body = user("Hello");
  const Json plain = parsed(post_to("/tokenize", body));
  body["return_token_strs"] = true;
  const Json tokens = parsed(post_to("/tokenize", body));
  EXPECT_EQ(tokens["tokens"], plain["tokens"]);
  EXPECT_EQ(tokens["token_strs"].size(), tokens["count"]);
  EXPECT_EQ(post_to("/tokenize", Json::object()).answer.status, 400);
  EXPECT_EQ(post_to("/detokenize", {{"tokens", {1, 1 << 30}}}).answer.status, 400);
}

TEST_F(Dialects, EveryRouteIsInTheOpenApiDocument) {
  const Json document = parsed(send("GET", "/openapi.json"));
  for (const ApiServer::Route& route : ApiServer::routes())
    EXPECT_TRUE(document["paths"].contains(std::string(route.path))) << route.path;
  EXPECT_EQ(document["openapi"], "3.1.0");
}

TEST_F(Dialects, RulesAndForcedCallsReachTheEngineAsConstraints) {
  say(kCall);
  Json body = user("Weather?");
  body["response_format"] = {{"type", "json_object"}};
  ASSERT_EQ(post(body).answer.status, 200);
  EXPECT_NE(engine_->last_request.constraint, nullptr);

  body = user("Weather?");
  body["tools"] = weather_tools();
  const auto choice_of = [&](Json tool_choice) {
    body["tool_choice"] = std::move(tool_choice);
    return parsed(post(body))["choices"][0];
  };
  EXPECT_EQ(choice_of("auto")["finish_reason"], "tool_calls");
  EXPECT_EQ(engine_->last_request.constraint, nullptr);
  const Json required = choice_of("required");
  EXPECT_NE(engine_->last_request.constraint, nullptr);
  EXPECT_EQ(required["finish_reason"], "tool_calls");
  EXPECT_EQ(required["message"]["content"], "");
  const Json named = choice_of({{"type", "function"}, {"function", {{"name", "weather"}}}});
  EXPECT_NE(engine_->last_request.constraint, nullptr);
  EXPECT_EQ(named["finish_reason"], "stop");
  EXPECT_EQ(named["message"]["tool_calls"].size(), 1u);
  const Json none = choice_of("none");
  EXPECT_TRUE(none["message"]["tool_calls"].empty());
  EXPECT_THAT(none["message"]["content"].get<std::string>(), HasSubstr("<function=weather>"));
}

TEST_F(Dialects, MetricsCountEachRequestOnce) {
  say("five");
  post(user("Hello"));
  Json body = user("Hello");
  body["max_tokens"] = 1;
  post(body);
  const std::string page = send("GET", "/metrics").answer.body;
  EXPECT_THAT(page, HasSubstr("finished_reason=\"stop\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("finished_reason=\"length\"} 1\n"));
  EXPECT_THAT(
      page,
      HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"demo\",engine=\"0\"} 2\n"));
  EXPECT_THAT(
      page,
      HasSubstr("vllm:request_params_n_bucket{model_name=\"demo\",engine=\"0\",le=\"1.0\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("http_requests_total{handler=\"/v1/chat/"
                              "completions\",method=\"POST\",status=\"2xx\"} 2\n"));
}

}  // namespace
}  // namespace nibble
