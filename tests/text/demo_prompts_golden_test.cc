// The 40 golden conversations: rendered text and token ids equal those of the reference pipeline.
#include <gtest/gtest.h>

#include "support/golden_file.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

class DemoPrompts : public testing::Test {
 protected:
  static std::string side_file(const char* name) {
    return read_file(test::bundled_model("nibble-demo-14m") / name).value();
  }
  Json prompts_ = test::load_json(test::golden("demo/prompts.json"));
  Tokenizer tokenizer_ = Tokenizer::load(side_file("tokenizer.json"),
                                         side_file("tokenizer_config.json"), "tokenizer.json")
                             .value();
  ChatTemplate template_ =
      ChatTemplate::parse(side_file("chat_template.jinja"), "chat_template.jinja").value();
};

TEST_F(DemoPrompts, RenderToTheGoldenText) {
  ASSERT_EQ(prompts_.size(), 40u);
  for (const Json& prompt : prompts_) {
    Json variables = {{"messages", prompt["messages"]}, {"add_generation_prompt", true}};
    if (!prompt["tools"].is_null()) variables["tools"] = prompt["tools"];
    if (!prompt["enable_thinking"].is_null())
      variables["enable_thinking"] = prompt["enable_thinking"];
    const Result<std::string> text = template_.render(variables);
    ASSERT_TRUE(text.has_value()) << text.error().message;
    EXPECT_EQ(*text, prompt["prompt"].get<std::string>()) << "prompt " << prompt["id"];
  }
}

TEST_F(DemoPrompts, EncodeToTheGoldenIdsAndDecodeBack) {
  for (const Json& prompt : prompts_) {
    const std::string text = prompt["prompt"].get<std::string>();
    const std::vector<int32_t> ids = tokenizer_.encode(text);
    EXPECT_EQ(ids, prompt["prompt_ids"].get<std::vector<int32_t>>()) << "prompt " << prompt["id"];
    EXPECT_EQ(tokenizer_.decode(ids), text);
  }
}

}  // namespace
}  // namespace nibble
