// Any bytes as a chat template, rendered over a small conversation under tight limits.
#include <cstdint>

#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const TemplateLimits limits{
      .max_depth = 100, .max_steps = 20'000, .max_output_bytes = 1 << 16, .max_milliseconds = 500};
  const Result<ChatTemplate> parsed =
      ChatTemplate::parse({reinterpret_cast<const char*>(data), size}, "fuzz", limits);
  if (!parsed) return 0;
  static const Json kVariables = {
      {"messages",
       {{{"role", "system"}, {"content", "be brief"}},
        {{"role", "user"}, {"content", "h\xc3\xa9llo"}},
        {{"role", "assistant"},
         {"content", nullptr},
         {"tool_calls", {{{"name", "f"}, {"arguments", {{"a", 1.5}}}}}}}}},
      {"tools", {{{"type", "function"}, {"function", {{"name", "f"}}}}}},
      {"add_generation_prompt", true}};
  (void)parsed->render(kVariables);
  return 0;
}
