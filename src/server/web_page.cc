// The policy is computed from the page itself, so the two cannot disagree.
#include "server/web_page.h"

#include "base/hash.h"

namespace nibble {
namespace {

std::string base64_of_hex(std::string_view hex) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto nibble_of = [](char c) {
    return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10);
  };
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 6) {
    const std::string_view group = hex.substr(i, 6);
    unsigned bits = 0;
    for (size_t j = 0; j < 6; ++j) bits = bits << 4 | (j < group.size() ? nibble_of(group[j]) : 0);
    for (size_t j = 0; j < 4; ++j)
      out += j * 6 < group.size() * 4 ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

std::string hash_of_element(std::string_view page, std::string_view open, std::string_view close) {
  const size_t begin = page.find(open) + open.size();
  return "'sha256-" +
         base64_of_hex(sha256_hex(page.substr(begin, page.find(close, begin) - begin))) + "'";
}

}  // namespace

HttpResponse page_response(std::string_view page) {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.headers = {
      {"Content-Security-Policy",
       "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
       "frame-ancestors 'none'; script-src " +
           hash_of_element(page, "<script>", "</script>") + "; style-src " +
           hash_of_element(page, "<style>", "</style>")},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-cache"}};
  response.body = page;
  return response;
}

}  // namespace nibble
