// The HTTP head's checks: whatever head_defect() lets pass, and split_target() splits, must hold
// the properties the server relies on.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "net/http_head.h"
#include "net/http_server.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (nibble::head_defect(text).empty()) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\0') std::abort();
      if (text[i] == '\n' && (i == 0 || text[i - 1] != '\r')) {
        // Only what lies behind the empty line may look like this.
        if (text.find("\r\n\r\n") == std::string_view::npos || text.find("\r\n\r\n") > i)
          std::abort();
      }
    }
  }
  std::string path, query;
  if (nibble::split_target(text, &path, &query) && path != "*" && !path.starts_with('/'))
    std::abort();
  nibble::HttpResponse response;
  response.content_type = text;
  response.headers["X-Echo"] = text;
  const std::string head = nibble::response_head(response, {.length = size});
  // No value may end the head early or add a line.
  if (head.find("\r\n\r\n") + 4 != head.size()) std::abort();
  return 0;
}
