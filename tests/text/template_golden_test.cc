// Rendered text equals Python Jinja2's: tests/golden/text/template_goldens.jsonl, made by
// tools/make_template_goldens.py.
#include <gtest/gtest.h>

#include "support/golden_file.h"
#include "text/chat_template.h"

namespace nibble {
namespace {

TEST(TemplateGolden, TextAndErrorsEqualJinja) {
  const std::string bundled =
      read_file(test::bundled_model("nibble-demo-14m") / "chat_template.jinja").value();
  const std::string text =
      read_file(test::golden("text/template_goldens.jsonl"), size_t{16} << 20).value();
  int num_conversations = 0;
  int num_snippets = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const Json row = parse_json(text.substr(at, end - at), "template_goldens.jsonl").value();
    at = end + 1;
    const bool own = row.contains("template");
    ++(own ? num_snippets : num_conversations);
    SCOPED_TRACE(own ? row["template"].get<std::string>() : dump_json(row["variables"]));
    const Result<ChatTemplate> chat_template =
        ChatTemplate::parse(own ? row["template"].get<std::string>() : bundled, "template");
    ASSERT_TRUE(chat_template) << chat_template.error().message;
    const Result<std::string> rendered = chat_template->render(row["variables"]);
    if (row.contains("error")) {
      ASSERT_FALSE(rendered) << *rendered;
      EXPECT_EQ(rendered.error().code, ErrorCode::kInvalidArgument);
      EXPECT_NE(rendered.error().message.find(row["error"].get<std::string>()), std::string::npos)
          << rendered.error().message;
    } else {
      EXPECT_TRUE(rendered) << rendered.error().message;
      if (!rendered) continue;
      EXPECT_EQ(*rendered, row["text"].get<std::string>());
    }
  }
  EXPECT_GE(num_conversations, 200);
  EXPECT_GE(num_snippets, 30);
}

}  // namespace
}  // namespace nibble
