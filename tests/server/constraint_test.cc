// From request fields to masks, with the demo model's tokenizer: reasoning, ends, tool calls.
#include "server/constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/paths.h"

namespace nibble {
namespace {

using testing::HasSubstr;

const ServedModel& demo() {
  static const std::unique_ptr<ServedModel> kModel =
      ServedModel::read(test::bundled_model("nibble-demo-14m")).value();
  return *kModel;
}

Json json(std::string_view text) {
  return parse_json(text, "test").value();
}

std::string error_of(std::string_view body) {
  const Result<StructuredOutput> output = parse_structured_output(json(body));
  if (!output) return output.error().message;
  const auto constraint = make_constraint(*output, demo(), {});
  return constraint ? "" : constraint.error().message;
}

class Session {
 public:
  Session(const Result<StructuredOutput>& output, const ConstraintOptions& options)
      : constraint_(make_constraint(output.value(), demo(), options).value()),
        mask_((static_cast<size_t>(demo().tokenizer.vocab_size()) + 31) / 32) {}
  bool allows(int32_t token) {
    constraint_->fill(mask_);
    return (mask_[static_cast<size_t>(token) / 32] >> (token % 32) & 1) != 0;
  }
  // Whether every token of `text`, as the tokenizer cuts it, is allowed in turn.
  bool takes(std::string_view text) {
    for (const int32_t token : demo().tokenizer.encode(text)) {
      if (!allows(token)) return false;
      constraint_->accept(token);
    }
    return true;
  }
  bool may_end() { return allows(demo().stop_token_ids.at(0)); }

 private:
  std::shared_ptr<TokenConstraint> constraint_;
  std::vector<uint32_t> mask_;
};

TEST(StructuredOutputFields, BadOnesAreNamed) {
  EXPECT_EQ(error_of("{}"), "");
  EXPECT_EQ(error_of(R"({"response_format": {"type": "text"}})"), "");
  EXPECT_EQ(error_of(R"({"response_format": {"type": "json_object"}, "structured_outputs": null})"),
            "");
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({"response_format": "json"})", "response_format"},
      {R"({"response_format": {"type": "xml"}})", "response_format.type"},
      {R"({"response_format": {"type": "json_schema"}})", "json_schema.schema"},
      {R"({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}})",
       "says nothing"},
      {R"({"response_format": {"type": "json_schema", "json_schema": {"schema":
           {"type": "strnig"}}}})",
       "$.type"},
      {R"({"structured_outputs": {}})", "give one of"},
      {R"({"structured_outputs": {"json_object": false}})", "give one of"},
      {R"({"structured_outputs": {"regex": "a", "choice": ["a"]}})", "exactly one"},
      {R"({"structured_outputs": {"regex": ""}})", "structured_outputs.regex"},
      {R"({"structured_outputs": {"regex": "("}})", "regex"},
      {R"({"structured_outputs": {"grammar": ""}})", "structured_outputs.grammar"},
      {R"({"structured_outputs": {"grammar": "root ::= root"}})", "root"},
      {R"({"structured_outputs": {"choice": []}})", "structured_outputs.choice"},
      {R"({"structured_outputs": {"choice": [""]}})", "structured_outputs.choice"},
      {R"({"structured_outputs": {"json": ""}})", "structured_outputs.json"},
      {R"({"structured_outputs": {"json": "{"}})", "structured_outputs.json"},
      {R"({"structured_outputs": {"json": {}}})", "says nothing"},
      {R"({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}})",
       "whitespace_pattern"},
      {R"({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}})",
       "not both"},
  };
  for (const auto& [body, part] : cases) EXPECT_THAT(error_of(body), HasSubstr(part)) << body;
}

TEST(Constraint, AllowsTheEndOnlyWhenComplete) {
  Session session(parse_structured_output(json(R"({"structured_outputs": {"json": {
      "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}})")),
                  {});
  EXPECT_FALSE(session.may_end());
  EXPECT_TRUE(session.takes("{\"a\": 12"));
  EXPECT_FALSE(session.may_end());
  EXPECT_TRUE(session.takes("}"));
  EXPECT_TRUE(session.may_end());
  EXPECT_FALSE(session.takes(" "));
}

TEST(Constraint, AStopTokenOfTheRequestCountsAsAnEnd) {
  const int32_t stop = demo().tokenizer.encode("#").at(0);
  ConstraintOptions options;
  options.extra_stop_tokens = {stop};
  Session session(parse_structured_output(json(R"({"structured_outputs": {"choice": ["yes"]}})")),
                  options);
  EXPECT_FALSE(session.allows(stop));
  EXPECT_TRUE(session.takes("yes"));
  EXPECT_TRUE(session.allows(stop));
}

TEST(Constraint, SleepsUntilReasoningEnds) {
  const auto output =
      parse_structured_output(json(R"({"structured_outputs": {"choice": ["yes"]}})"));
  const std::vector<int32_t> open = demo().tokenizer.encode("<|im_start|>assistant\n<think>\n");
  const std::vector<int32_t> closed =
      demo().tokenizer.encode("<|im_start|>assistant\n<think>\n\n</think>\n\n");
  {
    Session session(output, {.reasoning_parser = "qwen3", .prompt = open, .extra_stop_tokens = {}});
    EXPECT_TRUE(session.takes("Let me think. no, "));
    EXPECT_FALSE(session.may_end()) << "the answer is still to come";
    EXPECT_FALSE(session.allows(demo().tokenizer.token_id("<tool_call>").value()));
    EXPECT_TRUE(session.takes("</think>"));
    EXPECT_FALSE(session.takes("no"));
    EXPECT_TRUE(session.takes("yes"));
    EXPECT_TRUE(session.may_end());
  }
  {
    Session session(output,
                    {.reasoning_parser = "qwen3", .prompt = closed, .extra_stop_tokens = {}});
    EXPECT_FALSE(session.takes("Let"));
    EXPECT_TRUE(session.takes("yes"));
  }
  {
    Session session(output, {.reasoning_parser = "", .prompt = open, .extra_stop_tokens = {}});
    EXPECT_TRUE(session.takes("yes"));
  }
}

const char* kTools = R"([
  {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties":
    {"x": {"type": "integer"}, "why": {"type": "string"}}, "required": ["x", "why"]}}},
  {"type": "function", "function": {"name": "now"}}])";

// The reply parser reads what the grammar lets through.
TEST(Constraint, RequiredToolsWriteTheModelsOwnFormat) {
  for (const char* parser : {"qwen3_coder", "hermes"}) {
    const bool xml = std::string_view(parser) == "qwen3_coder";
    const std::string call =
        xml ? "<tool_call>\n<function=add>\n<parameter=x>\n3\n</parameter>\n<parameter=why>\na "
              "<b>\n"
              "</parameter>\n</function>\n</tool_call>"
            : "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": 3, \"why\": \"a <b>\"}}\n"
              "</tool_call>";
    for (const char* name : {"", "add"}) {
      Session session(require_tools(json(kTools), name, parser), {});
      EXPECT_FALSE(session.may_end());
      EXPECT_TRUE(session.takes(call)) << call;
      EXPECT_TRUE(session.may_end());
      EXPECT_EQ(session.takes("\n<tool_call>"), std::string_view(name).empty());
    }
    Session named(require_tools(json(kTools), "now", parser), {});
    EXPECT_FALSE(named.takes(call));
    ReplyParserOptions options;
    options.tool_parser = parser;
    options.tools = json(kTools);
    auto reader = make_reply_parser(options).value();
    std::vector<ReplyEvent> events = reader->push(call);
    for (ReplyEvent& event : reader->finish()) events.push_back(std::move(event));
    std::string arguments;
    for (const ReplyEvent& event : events)
      if (event.kind == ReplyEvent::Kind::kToolCallArguments) arguments += event.text;
    EXPECT_EQ(json(arguments), json(R"({"x": 3, "why": "a <b>"})"));
  }
}

TEST(Constraint, AToolCallMayEndReasoning) {
  const std::vector<int32_t> open = demo().tokenizer.encode("<think>\n");
  Session session(require_tools(json(kTools), "now", "qwen3_coder"),
                  {.reasoning_parser = "qwen3", .prompt = open, .extra_stop_tokens = {}});
  EXPECT_TRUE(session.takes("I call it.<tool_call>\n<function=now>\n</function>\n</tool_call>"));
  EXPECT_TRUE(session.may_end());
}

TEST(Constraint, RequiredToolsNeedAParserAndKnownNames) {
  EXPECT_THAT(require_tools(json(kTools), "", "").error().message, HasSubstr("--tool-call-parser"));
  EXPECT_THAT(require_tools(json(kTools), "nope", "hermes").error().message, HasSubstr("nope"));
  EXPECT_THAT(require_tools(Json::array(), "", "hermes").error().message, HasSubstr("tools"));
}

}  // namespace
}  // namespace nibble
