// Framing of server-sent events.
#include "net/sse.h"

namespace nibble {
namespace {

void append_data(std::string_view data, std::string* out) {
  size_t begin = 0;
  while (true) {
    const size_t end = data.find('\n', begin);
    *out += "data: ";
    *out += data.substr(begin, end == std::string_view::npos ? end : end - begin);
    *out += '\n';
    if (end == std::string_view::npos) break;
    begin = end + 1;
  }
  *out += '\n';
}

}  // namespace

std::string sse_event(std::string_view data) {
  std::string out;
  out.reserve(data.size() + 8);
  append_data(data, &out);
  return out;
}

std::string sse_event(std::string_view name, std::string_view data) {
  std::string out = "event: ";
  out += name;
  out += '\n';
  append_data(data, &out);
  return out;
}

}  // namespace nibble
