// Any bytes as tokenizer.json; what loads must encode and decode without harm.
#include <cstdint>

#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const Result<Tokenizer> loaded =
      Tokenizer::load({reinterpret_cast<const char*>(data), size}, "", "fuzz");
  if (!loaded) return 0;
  for (const std::string_view text :
       {"hello  world\r\n 123", "\xff\xfe caf\xc3\xa9 <|im_end|>", ""})
    (void)loaded->decode(loaded->encode(text));
  return 0;
}
