// PCRE2 with Unicode properties. Its \s also matches U+180E, which Unicode no longer counts as
// space: outside and inside classes \s and \S are therefore rewritten to the White_Space code
// points.
#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>

#include "base/format.h"

namespace nibble {
namespace {

constexpr std::string_view kSpaceSet =
    R"(\x{09}-\x{0d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNonSpaceSet =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";

std::string with_unicode_spaces(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's' || next == 'S') {
        const std::string_view set = next == 's' ? kSpaceSet : kNonSpaceSet;
        if (in_class) {
          out += set;
        } else {
          out += '[';
          out += set;
          out += ']';
        }
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
    } else if (c == ']') {
      in_class = false;
    }
    out += c;
  }
  return out;
}

}  // namespace

struct Regex::State {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  ~State() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

Regex::Regex(std::unique_ptr<State> state) : state_(std::move(state)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex::~Regex() = default;

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > 4096)
    return make_error(ErrorCode::kInvalidArgument, "a pattern of {} bytes, the limit is 4096",
                      pattern.size());
  const std::string rewritten = with_unicode_spaces(pattern);
  auto state = std::make_unique<State>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  state->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (state->code == nullptr) {
    unsigned char message[128];
    pcre2_get_error_message(error, message, sizeof message);
    return make_error(ErrorCode::kInvalidArgument, "pattern \"{}\": {}", pattern,
                      reinterpret_cast<const char*>(message));
  }
  pcre2_jit_compile(state->code, PCRE2_JIT_COMPLETE);
  state->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(state->context, 10'000'000);
  pcre2_set_heap_limit(state->context, 64 << 10);  // KiB
  return Regex(std::move(state));
}

void Regex::split_isolated(std::string_view text, std::vector<std::string_view>* pieces) const {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  size_t at = 0;
  size_t from = 0;
  while (from < text.size()) {
    const int found = pcre2_match(state_->code, reinterpret_cast<PCRE2_SPTR>(text.data()),
                                  text.size(), from, PCRE2_NO_UTF_CHECK, match, state_->context);
    if (found < 1) break;
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
    if (span[1] <= from) {  // an empty match: step over one character
      ++from;
      while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80) ++from;
      continue;
    }
    if (span[0] > at) pieces->push_back(text.substr(at, span[0] - at));
    pieces->push_back(text.substr(span[0], span[1] - span[0]));
    at = from = span[1];
  }
  if (at < text.size()) pieces->push_back(text.substr(at));
  pcre2_match_data_free(match);
}

}  // namespace nibble
