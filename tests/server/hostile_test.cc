// Requests that mean harm, over a socket, through the whole server but for a model: each gets a 4xx
// or a closed connection within a second, costs no lasting memory, and the next client notices
// nothing. The shapes of single fields are in chat_route_test.cc and dialects_test.cc, those of
// HTTP alone in net/http_server_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>

#include "base/heap.h"
#include "net/raw_client.h"
#include "server/api_server.h"
#include "server/scripted_engine.h"
#include "support/paths.h"
#include "support/resident_memory.h"

namespace nibble {
namespace {

using test::body_of;
using test::post_request;
using test::RawClient;
using test::resident_bytes;
using test::status_of;

constexpr size_t kMiB = size_t{1} << 20;

std::string times(size_t count, std::string_view text) {
  std::string out;
  out.reserve(count * text.size());
  for (size_t i = 0; i < count; ++i) out += text;
  return out;
}

// A JSON list of `count` times the same item.
std::string list(size_t count, const std::string& item) {
  return "[" + item + times(count - 1, "," + item) + "]";
}

std::string chat(const std::string& members) {
  return R"({"messages": [{"role": "user", "content": "Hello"}])" +
         (members.empty() ? "" : ", " + members) + "}";
}

// Whether memory is back under `bound` within some seconds.
testing::AssertionResult resident_settles_below(size_t bound) {
  if (!test::kMemoryIsOurs) return testing::AssertionSuccess();
  for (int i = 0; i < 200 && resident_bytes() >= bound; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return_free_memory();  // what this client has freed
  }
  const size_t resident = resident_bytes();
  if (resident < bound) return testing::AssertionSuccess();
  return testing::AssertionFailure() << resident / kMiB << " MiB resident, bound " << bound / kMiB;
}

class Hostile : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    keep_heap_lean();  // as nibble serve does
    model_ = ServedModel::read(test::bundled_model("nibble-demo-14m").string()).value().release();
    model_->engine = make_scripted_engine(R"({"text": "I am well."})", "script", model_->tokenizer,
                                          {.vocab_size = model_->tokenizer.vocab_size(),
                                           .stop_token_ids = model_->stop_token_ids})
                         .value();
    ApiOptions options;
    options.served_model_names = {"demo"};
    options.tool_parser = model_->tool_parser;
    options.reasoning_parser = model_->reasoning_parser;
    api_ = ApiServer::create(*model_, std::move(options)).value().release();
    HttpServerOptions http;
    http.port = 0;
    http.is_quick = ApiServer::is_quick;
    http.error_response = ApiServer::error_response;
    server_ =
        new HttpServer(HttpServer::start(http, [](const HttpRequest& request, HttpReply& reply) {
                         api_->handle(request, reply);
                       }).value());
    canary_ = canary();
  }
  static void TearDownTestSuite() {
    delete server_;
    delete api_;
    delete model_;
  }

  void TearDown() override { EXPECT_EQ(canary(), canary_); }

  // What one plain client gets, but for what changes with every answer.
  static std::string canary() {
    const std::string answer = ask("/v1/chat/completions", chat("\"temperature\": 0"));
    const size_t at = answer.find("\"choices\"");
    return at == std::string::npos ? answer : answer.substr(at);
  }

  static std::string ask(std::string_view path, const std::string& body) {
    RawClient client(server_->port());
    client.send(post_request(path, body));
    return client.receive_response();
  }

  // The answer must have that status, come quickly, be short, and be an error object.
  static void expect_refused(std::string_view path, const std::string& body, int status = 400) {
    SCOPED_TRACE(body.substr(0, 120));
    const auto start = std::chrono::steady_clock::now();
    const std::string answer = ask(path, body);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(status_of(answer), status) << answer.substr(0, 300);
    EXPECT_LT(answer.size(), 4096u);
    EXPECT_LT(taken.count(), 5.0);  // a second on a machine that does nothing else
    const Result<Json> error = parse_json(body_of(answer), "answer");
    ASSERT_TRUE(error) << answer.substr(0, 300);
    EXPECT_TRUE((*error)["error"]["message"].is_string());
  }
  static void expect_chat_refused(const std::string& members, int status = 400) {
    expect_refused("/v1/chat/completions", chat(members), status);
  }

  static ServedModel* model_;
  static ApiServer* api_;
  static HttpServer* server_;
  static std::string canary_;
};

ServedModel* Hostile::model_ = nullptr;
ApiServer* Hostile::api_ = nullptr;
HttpServer* Hostile::server_ = nullptr;
std::string Hostile::canary_;

TEST_F(Hostile, DeepJsonIsRefusedWithoutRecursion) {
  for (const size_t depth : {size_t{65}, size_t{2000}, size_t{1'000'000}}) {
    for (const std::string_view path :
         {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"}) {
      expect_refused(path, times(depth, "["));
      expect_refused(path, times(depth, "{\"a\":"));
    }
    expect_chat_refused("\"metadata\": " + times(depth, "[") + times(depth, "]"));
  }
  EXPECT_EQ(status_of(ask("/v1/messages", times(100'000, "["))), 400);
}

TEST_F(Hostile, TextThatIsNotUtf8IsRefused) {
  for (const std::string_view bad : {"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                     "\xe2\x82", "\x80", "\\ud800", "\\udc00\\ud800", "\\ud8"}) {
    const std::string text(bad);
    expect_refused("/v1/chat/completions",
                   R"({"messages": [{"role": "user", "content": ")" + text + R"("}]})");
    expect_refused("/v1/completions", R"({"prompt": ")" + text + R"("})");
    expect_refused("/tokenize", R"({"prompt": ")" + text + R"("})");
    expect_refused("/v1/chat/completions", R"({")" + text + R"(": 1})");
  }
}

TEST_F(Hostile, NumbersNobodyCanMeanNameTheirField) {
  for (const char* field : {"n", "max_tokens", "max_completion_tokens", "top_logprobs",
                            "min_tokens", "top_k", "seed", "priority", "thinking_token_budget"})
    for (const char* value : {"9223372036854775808", "1e300", "1.5", "\"5\"", "[]", "{}"}) {
      const std::string answer =
          ask("/v1/chat/completions",
              chat("\"logprobs\": true, \"" + std::string(field) + "\": " + value));
      SCOPED_TRACE(std::string(field) + " = " + value);
      ASSERT_EQ(status_of(answer), 400) << answer;
      EXPECT_EQ(parse_json(body_of(answer), "answer").value()["error"]["param"], field);
    }
  for (const char* field : {"n", "max_tokens", "top_logprobs"})
    for (const char* value : {"-2", "1000000000", "NaN", "Infinity", "1e999"})
      expect_chat_refused("\"logprobs\": true, \"" + std::string(field) + "\": " + value);
}

// Every value for every count of both dialects: refused with the field's name, or, where vLLM gives
// it a meaning, answered.
TEST_F(Hostile, ACountIsMeantOrRefusedByName) {
  struct Field {
    const char* path;
    const char* start;  // of the body
    const char* name;
    std::set<std::string> legal;
  };
  const char* const chat_start =
      R"({"messages": [{"role": "user", "content": "Hello"}], "logprobs": true, )";
  const char* const text_start = R"({"prompt": "Hello", )";
  const Field fields[] = {{"/v1/chat/completions", chat_start, "n", {"null"}},
                          {"/v1/chat/completions", chat_start, "top_logprobs", {"null", "0"}},
                          {"/v1/chat/completions", chat_start, "max_tokens", {"null"}},
                          {"/v1/chat/completions", chat_start, "max_completion_tokens", {"null"}},
                          {"/v1/completions", text_start, "n", {"null"}},
                          {"/v1/completions", text_start, "best_of", {"null"}},
                          {"/v1/completions", text_start, "logprobs", {"null", "0"}},
                          {"/v1/completions", text_start, "max_tokens", {"null"}}};
  ask("/v1/completions", R"({"prompt": "Hello"})");
  const size_t before = resident_bytes();
  for (const Field& field : fields)
    for (const std::string value :
         {"-1", "0", "1000000000", "9223372036854775808", "1.5", "\"5\"", "null", "NaN"}) {
      SCOPED_TRACE(std::string(field.path) + " " + field.name + " = " + value);
      const std::string answer =
          ask(field.path, field.start + ("\"" + std::string(field.name) + "\": ") + value + "}");
      const bool is_legal = field.legal.contains(value);
      EXPECT_EQ(status_of(answer), is_legal ? 200 : 400) << answer.substr(0, 300);
      if (is_legal || value == "NaN") continue;  // NaN is no JSON: there is no field to name
      EXPECT_EQ(parse_json(body_of(answer), "answer").value()["error"]["param"], field.name);
    }
  EXPECT_TRUE(resident_settles_below(before + 8 * kMiB));
}

TEST_F(Hostile, LongListsAreRefusedAndCostNoMemory) {
  const size_t before = resident_bytes();
  const std::string words = list(1'000'000, "\"x\"");
  const std::string ids = list(1'100'000, "7");
  expect_chat_refused("\"stop\": " + words);
  expect_chat_refused("\"bad_words\": " + words);
  expect_chat_refused("\"stop_token_ids\": " + ids);
  expect_chat_refused("\"allowed_token_ids\": " + ids);
  expect_chat_refused("\"tools\": " + list(1'000'000, "{}"));
  expect_refused("/v1/chat/completions", "{\"messages\": " + list(1'000'000, "{}") + "}");
  expect_refused("/v1/completions", "{\"prompt\": " + list(1'000'000, "\"\"") + "}");
  expect_refused("/v1/completions", "{\"prompt\": " + list(1'000'000, "[7]") + "}");
  expect_refused("/v1/completions", "{\"prompt\": " + list(500'000, "\"a\",7") + "}");
  expect_refused("/detokenize", "{\"tokens\": " + list(1'000'000, "-1") + "}");
  std::string bias = "\"0\": 1";
  for (int i = 1; i < 100'000; ++i) bias += ",\"" + std::to_string(i) + "\": 1";
  expect_chat_refused("\"logit_bias\": {" + bias + "}");
  // The last lists are freed, and their pages returned, after their answer is out.
  EXPECT_TRUE(resident_settles_below(before + 32 * kMiB));
}

TEST_F(Hostile, TemplateTextInAMessageIsTextAndInAFieldIsRefused) {
  const std::string bomb = "{% for i in range(1000000000) %}{{ i }}{% endfor %}{{ messages }}";
  const std::string as_message = ask(
      "/tokenize", R"({"return_token_strs": false, "messages": [{"role": "user", "content": ")" +
                       bomb + R"("}]})");
  ASSERT_EQ(status_of(as_message), 200) << as_message;
  const Json tokens = parse_json(body_of(as_message), "answer").value()["tokens"];
  EXPECT_THAT(model_->tokenizer.decode(tokens.get<std::vector<int32_t>>()),
              testing::HasSubstr(bomb));
  expect_chat_refused("\"chat_template\": \"" + bomb + "\"");
  expect_chat_refused(R"("chat_template_kwargs": {"chat_template": ")" + bomb + "\"}");
  for (const char* name : {"messages", "tools", "add_generation_prompt", "tokenize"})
    expect_chat_refused(R"("chat_template_kwargs": {")" + std::string(name) + "\": []}");
}

TEST_F(Hostile, ATrustedTemplateStillHasLimits) {
  ApiOptions options;
  options.served_model_names = {"demo"};
  options.defaults.trust_request_template = true;
  const auto api = ApiServer::create(*model_, std::move(options)).value();
  HttpServerOptions http;
  http.port = 0;
  HttpServer server = HttpServer::start(http, [&](const HttpRequest& request, HttpReply& reply) {
                        api->handle(request, reply);
                      }).value();
  for (const std::string_view bomb :
       {"{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x }}",
        "{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}"}) {
    SCOPED_TRACE(bomb);
    RawClient client(server.port());
    client.send(post_request("/v1/chat/completions",
                             chat("\"chat_template\": \"" + std::string(bomb) + "\"")));
    EXPECT_EQ(status_of(client.receive_response()), 400);
  }
}

TEST_F(Hostile, RulesThatCannotBeCompiledAreRefusedInTime) {
  std::string deep_schema = R"({"type": "object"})";
  for (int i = 0; i < 25; ++i)
    deep_schema = R"({"type": "object", "properties": {"a": )" + deep_schema + "}}";
  for (const std::string& rule : std::initializer_list<std::string>{
           R"("regex": "(")", R"("regex": "(x{1,1000}){1,1000}")", R"("regex": "[")",
           R"("regex": "(a{1000}){1000}{1000}")", R"("grammar": "s ::= s")",
           R"("grammar": "root ::= root root")", R"("grammar": "root ::= missing")",
           R"("grammar": "")", R"("choice": [])", R"("choice": 7)", R"("json": "{")",
           R"("json": {"type": "nonsense"})", R"("json": {"$ref": "#/nowhere"})",
           R"("json": {"type": "array", "items": {"type": "string"}, "minItems": 1000000000})",
           R"("json": {"type": "string", "pattern": "(x{1,1000}){1,1000}"})"})
    expect_chat_refused("\"structured_outputs\": {" + rule + "}");
  expect_refused("/v1/chat/completions",
                 chat("\"structured_outputs\": {\"json\": " + times(200, R"({"properties":{"a":)") +
                      "{}" + times(200, "}}") + "}"));
  // Odd, but harmless: compiled within the time of the others.
  for (const std::string& rule :
       std::initializer_list<std::string>{R"("regex": "(a+)+b")",
                                          R"("json": {"$defs": {"n": {"type": "array", "items": )"
                                          R"({"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"})",
                                          "\"json\": " + deep_schema}) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(
        status_of(ask("/v1/chat/completions", chat("\"structured_outputs\": {" + rule + "}"))), 200)
        << rule;
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5)) << rule;
  }
}

TEST_F(Hostile, NoImageMakesTheServerConnectAnywhere) {
  RawClient probe(server_->port());  // a port of ours to point at
  ASSERT_TRUE(probe.connected());
  HttpServerOptions http;
  http.port = 0;
  std::atomic<int> num_visits{0};
  HttpServer listener = HttpServer::start(http, [&](const HttpRequest&, HttpReply& reply) {
                          ++num_visits;
                          reply.send({});
                        }).value();
  const std::string here = "127.0.0.1:" + std::to_string(listener.port());
  // A PNG header that claims 65500 x 65500 pixels, and one that is cut.
  const std::string bomb = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA/9wAAP/cCAYAAAA=";
  // 52800 x 44, a whole picture of 1 x 1, and a GIF of ten thousand frames. This model reads text
  // only: each is refused before it is decoded.
  const std::string wide = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAzkAAAAAsCAYAAAA=";
  const std::string tiny =
      "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M/"
      "wHwAEBgIApD5fRAAAAABJRU5ErkJggg==";
  const std::string frames = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///" +
                             times(10'000, "IfkEAQAAAAAsAAAAAAEAAQAAAgJEAQ") + "Ow==";
  for (const std::string& url :
       {"http://" + here + "/a.png", "https://" + here + "/a.png", "ftp://" + here + "/a.png",
        std::string("http://169.254.169.254/latest/meta-data"), std::string("file:///etc/passwd"),
        std::string("gopher://") + here, std::string("http://user@") + here, bomb,
        std::string("data:image/png;base64,iVBORw0KGgo="), wide, tiny, frames,
        std::string("data:,"), std::string()}) {
    const std::string part = R"({"type": "image_url", "image_url": {"url": ")" + url + "\"}}";
    expect_refused("/v1/chat/completions",
                   R"({"messages": [{"role": "user", "content": [)" + part + "]}]}");
    expect_refused(
        "/v1/responses",
        R"({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ")" + url +
            "\"}]}]}");
    const std::string answer =
        ask("/v1/messages", R"({"model": "demo", "max_tokens": 5, "messages": [{"role": "user", )"
                            R"("content": [{"type": "image", "source": {"type": "url", "url": ")" +
                                url + "\"}}]}]}");
    EXPECT_EQ(status_of(answer), 400) << url;
    EXPECT_THAT(answer, testing::Not(testing::HasSubstr("0x")));
  }
  EXPECT_EQ(num_visits, 0);
}

TEST_F(Hostile, ASmuggledRequestIsNeverAnswered) {
  const int64_t before = model_->engine->stats().prompt_tokens;
  const std::string inner = post_request("/v1/chat/completions", chat(""));
  for (const std::string_view framing :
       {"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n", "Transfer-Encoding: xchunked\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n", "Content-Length: +0\r\n",
        "Content-Length: 0x0\r\n", "Content-Length: 0,0\r\n", "X: a\nContent-Length: 0\r\n",
        "X: a\rContent-Length: 0\r\n", " Content-Length: 0\r\n"}) {
    SCOPED_TRACE(framing);
    RawClient client(server_->port());
    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + std::string(framing) +
                "\r\n0\r\n\r\n" + inner);
    const std::string all = client.receive_all();
    EXPECT_EQ(status_of(all), 400) << all.substr(0, 200);
    EXPECT_EQ(all.find("HTTP/1.1", 8), std::string::npos) << "a second answer";
    EXPECT_TRUE(client.closed_by_server());
  }
  EXPECT_EQ(model_->engine->stats().prompt_tokens, before);
}

TEST_F(Hostile, AnswersAPipelineOfRoutesInOrder) {
  RawClient client(server_->port());
  std::string requests;
  for (int i = 0; i < 50; ++i) {
    requests += test::get_request("/version");
    requests += post_request("/v1/chat/completions", chat(""));
    requests += post_request("/v1/chat/completions", chat("\"n\": 0"));
  }
  ASSERT_TRUE(client.send(requests));
  for (int i = 0; i < 50; ++i) {
    EXPECT_THAT(client.receive_response(), testing::HasSubstr("\"version\""));
    EXPECT_THAT(client.receive_response(), testing::HasSubstr("I am well."));
    EXPECT_THAT(client.receive_response(), testing::HasSubstr("\"param\":\"n\""));
  }
}

TEST_F(Hostile, ManyChoicesOfALongPromptDoNotMultiplyMemory) {
  const std::string prompt = "{\"prompt\": " + list(4000, "7") + ", \"max_tokens\": 1, \"n\": ";
  expect_refused("/v1/completions", prompt + "16384}");
  EXPECT_EQ(status_of(ask("/v1/completions", prompt + "2}")), 200);
}

TEST_F(Hostile, AToolCallThatWasCutIsTheClientsError) {
  for (const char* arguments : {R"({\"city\": \"Os)", "[1", "nonsense"})
    expect_refused("/v1/chat/completions",
                   R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant",)"
                   R"("tool_calls": [{"id": "c", "type": "function", "function": {"name": "f",)"
                   R"("arguments": ")" +
                       std::string(arguments) + R"("}}]}]})");
}

}  // namespace
}  // namespace nibble
