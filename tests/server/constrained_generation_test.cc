// Grammars through the real engine with the bundled model: whatever is drawn, the reply keeps to
// the rule and everybody else's tokens stay theirs.
#include <gtest/gtest.h>

#include <chrono>

#include "engine/engine.h"
#include "server/constraint.h"
#include "support/paths.h"
#include "text/reply_parser.h"

namespace nibble {
namespace {

class ConstrainedGeneration : public testing::Test {
 protected:
  static const ServedModel& demo() {
    static const std::unique_ptr<ServedModel> kModel =
        ServedModel::read(test::bundled_model("nibble-demo-14m")).value();
    return *kModel;
  }
  static Engine& engine() {
    static const ModelDir kDir = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
    static const std::unique_ptr<Engine> kEngine =
        Engine::start(kDir, {.max_model_len = 1024, .max_num_seqs = 8}).value();
    return *kEngine;
  }
  static Request request(const std::string& prompt, int max_tokens) {
    Request request;
    request.prompt = demo().tokenizer.encode(prompt);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.stop_token_ids = demo().stop_token_ids;
    return request;
  }
  static Request constrained(const Json& body, int max_tokens, int64_t seed) {
    Request asked = request("Describe a city: ", max_tokens);
    asked.sampling.temperature = 1.5f;  // the mask must hold, not the model
    asked.sampling.seed = seed;
    asked.constraint =
        make_constraint(parse_structured_output(body).value(), demo(), {.prompt = asked.prompt})
            .value();
    return asked;
  }
  struct Reply {
    std::vector<int32_t> ids;
    FinishReason finish = FinishReason::kNone;
    std::string text;
  };
  static Reply collect(RequestHandle& handle) {
    Reply reply;
    while (reply.finish == FinishReason::kNone) {
      const TokenEvent event = handle.next();
      reply.finish = event.finish;
      if (event.token >= 0 && !event.stop_token) reply.ids.push_back(event.token);
    }
    reply.text = demo().tokenizer.decode(reply.ids);
    return reply;
  }
  static Reply run(Request request) {
    return collect(*engine().submit(std::move(request)).value());
  }
};

TEST_F(ConstrainedGeneration, EveryDrawIsWhatTheSchemaSays) {
  const Json body = parse_json(R"({"response_format": {"type": "json_schema", "json_schema": {
      "name": "city", "schema": {"type": "object", "required": ["name", "rank"], "properties": {
      "name": {"type": "string", "maxLength": 12}, "rank": {"type": "integer", "minimum": 0,
      "maximum": 99}, "kind": {"enum": ["port", "capital"]}}}}}})",
                               "test")
                        .value();
  for (int64_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    const Reply reply = run(constrained(body, 200, seed));
    EXPECT_EQ(reply.finish, FinishReason::kStop);
    const Result<Json> city = parse_json(reply.text, "reply");
    ASSERT_TRUE(city.has_value()) << reply.text;
    ASSERT_TRUE(city->at("name").is_string()) << reply.text;
    ASSERT_TRUE(city->at("rank").is_number_integer()) << reply.text;
    EXPECT_GE(city->at("rank").get<int>(), 0);
    EXPECT_LE(city->at("rank").get<int>(), 99);
    if (city->contains("kind")) {
      EXPECT_TRUE(city->at("kind") == "port" || city->at("kind") == "capital") << reply.text;
    }
  }
}

TEST_F(ConstrainedGeneration, NeighboursKeepTheirTokens) {
  const std::vector<int32_t> alone = run(request("The capital of France is", 40)).ids;
  const Json body = {{"structured_outputs", {{"regex", "[0-9]{3}-[a-f]{20}"}}}};
  std::vector<std::unique_ptr<RequestHandle>> masked;
  for (int64_t seed = 0; seed < 5; ++seed)
    masked.push_back(engine().submit(constrained(body, 60, seed)).value());
  EXPECT_EQ(run(request("The capital of France is", 40)).ids, alone);
  for (const auto& handle : masked) {
    const std::string text = collect(*handle).text;
    EXPECT_EQ(text.size(), 24u) << text;
    EXPECT_EQ(text.find_first_not_of("0123456789-abcdef"), std::string::npos) << text;
  }
}

TEST_F(ConstrainedGeneration, ARequiredToolIsCalledWhateverTheModelWants) {
  const Json tools = parse_json(R"([{"type": "function", "function": {"name": "get_weather",
      "parameters": {"type": "object", "required": ["city"], "properties": {
      "city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}}}}}])",
                                "test")
                         .value();
  for (int64_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(seed);
    Request asked = request("Tell me a story.", 300);
    asked.sampling.temperature = 1.2f;
    asked.sampling.seed = seed;
    asked.constraint = make_constraint(require_tools(tools, "get_weather", "qwen3_coder").value(),
                                       demo(), {.prompt = asked.prompt})
                           .value();
    const Reply reply = run(std::move(asked));
    EXPECT_EQ(reply.finish, FinishReason::kStop) << reply.text;
    EXPECT_NE(reply.text.find("<function=get_weather>"), std::string::npos) << reply.text;
    EXPECT_NE(reply.text.find("</tool_call>"), std::string::npos) << reply.text;
  }
}

// What a hostile rule costs is paid by its sender: compiled on the sender's thread, and in the
// engine's thread no more than the step takes anyway.
TEST_F(ConstrainedGeneration, AHostileRuleDoesNotDoubleTheNeighboursTokenTime) {
  const auto seconds_beside = [](const std::string& regex, bool is_hostile) {
    double best = 1e9;
    for (int64_t round = 0; round < 3; ++round) {
      std::vector<std::unique_ptr<RequestHandle>> others;
      for (int64_t i = 0; i < 3; ++i) {
        Request other = request("Once upon a time", 150);
        other.ignore_eos = true;
        if (is_hostile)
          other = constrained({{"structured_outputs", {{"regex", regex}}}}, 150, 10 * round + i);
        others.push_back(engine().submit(std::move(other)).value());
      }
      Request mine = request("The capital of France is", 120);
      mine.ignore_eos = true;
      const auto start = std::chrono::steady_clock::now();
      EXPECT_EQ(run(std::move(mine)).ids.size(), 120u);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count());
      others.clear();
    }
    return best;
  };
  const double plain = seconds_beside("", false);
  for (const char* hostile : {"(a+)+b", "([a-z]+ ?){3,40}", "(.{1,100}){1,20}x"}) {
    EXPECT_LT(seconds_beside(hostile, true), 2 * plain) << hostile;
  }
}

}  // namespace
}  // namespace nibble
