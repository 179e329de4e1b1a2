// A model without a chat template completes text; what chats says that it cannot.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scripted_api.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using test::RecordedReply;
using testing::HasSubstr;

// The bundled model without its template.
class Stripped {
 protected:
  Stripped()
      : stripped_(test::copy_bundled_model("nibble-demo-14m", dir_.path() / "base").string()) {
    fs::remove(fs::path(stripped_) / "chat_template.jinja");
  }
  test::TempDir dir_;
  std::string stripped_;
};

class BaseModel : private Stripped, public test::ScriptedApi {
 protected:
  BaseModel() : ScriptedApi(stripped_) {}
  const std::string& path() const { return stripped_; }
};

TEST_F(BaseModel, CompletesText) {
  say("world");
  const RecordedReply reply = post_to("/v1/completions", {{"prompt", "Hello"}});
  ASSERT_EQ(reply.answer.status, 200) << reply.answer.body;
  EXPECT_EQ(parsed(reply)["choices"][0]["text"], "world");
}

TEST_F(BaseModel, DoesNotChatInAnyDialect) {
  say("Hello!");
  const Json turns = Json::array({{{"role", "user"}, {"content", "Hi"}}});
  for (const auto& [path, body] :
       {std::pair<const char*, Json>("/v1/chat/completions", {{"messages", turns}}),
        std::pair<const char*, Json>("/v1/messages",
                                     {{"model", "demo"}, {"max_tokens", 5}, {"messages", turns}}),
        std::pair<const char*, Json>("/v1/responses", {{"input", "Hi"}})}) {
    const RecordedReply reply = post_to(path, body);
    EXPECT_EQ(reply.answer.status, 400) << path;
    EXPECT_THAT(reply.answer.body, HasSubstr("send text to /v1/completions")) << path;
    EXPECT_THAT(reply.answer.body, HasSubstr("--chat-template FILE")) << path;
  }
}

TEST_F(BaseModel, ChatsWithATemplateThatIsGiven) {
  const auto model = ServedModel::read(path(), "{{ messages[0].content }}");
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_TRUE((*model)->chat_template.has_value());
}

TEST(ServedModel, WithoutATokenizerSaysWhereToGetOne) {
  const test::TempDir dir;
  const fs::path model = test::copy_bundled_model("nibble-demo-14m", dir.path() / "model");
  fs::remove(model / "tokenizer.json");
  const auto opened = ServedModel::read(model.string());
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().message, HasSubstr("no tokenizer.json; copy it from the model"));
}

}  // namespace
}  // namespace nibble
