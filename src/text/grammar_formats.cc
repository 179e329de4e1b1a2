// A table; RFC 3339 dates with the right number of days.
#include "text/grammar_formats.h"

namespace nibble {
namespace {

#define NB_DATE                                                                                     \
  R"(([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|)" \
  R"(02-(0[1-9]|1[0-9]|2[0-8]))|([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29))"
#define NB_TIME \
  R"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))"
#define NB_OCTET R"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9]))"
#define NB_LABEL R"([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)"

struct Row {
  std::string_view format;
  std::string_view pattern;
};
constexpr Row kRows[] = {
    {"date", NB_DATE},
    {"time", NB_TIME},
    {"date-time", NB_DATE "T" NB_TIME},
    {"duration",
     R"(P([0-9]{1,9}W|[0-9]{1,9}D(T[0-9]{1,9}[HMS])?|[0-9]{1,9}Y([0-9]{1,9}M([0-9]{1,9}D)?)?|[0-9]{1,9}M([0-9]{1,9}D)?|T([0-9]{1,9}H([0-9]{1,9}M([0-9]{1,9}S)?)?|[0-9]{1,9}M([0-9]{1,9}S)?|[0-9]{1,9}S)))"},
    {"email",
     R"([a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,32}(\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]{1,16}){0,3}@)" NB_LABEL
     R"((\.)" NB_LABEL R"(){1,4})"},
    {"hostname", NB_LABEL R"((\.)" NB_LABEL R"(){0,8})"},
    {"ipv4", NB_OCTET R"(\.)" NB_OCTET R"(\.)" NB_OCTET R"(\.)" NB_OCTET},
    {"ipv6",
     R"((([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,7}:|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|::|::[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){0,6}))"},
    {"uuid", R"([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"},
    {"uri",
     R"([a-zA-Z][a-zA-Z0-9+.-]{1,20}://)" NB_LABEL R"((\.)" NB_LABEL
     R"(){0,8}(:[1-9][0-9]{0,4})?(/([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*)*(\?([a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?(#([a-zA-Z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?)"},
};

}  // namespace

std::string_view string_format_pattern(std::string_view format) {
  for (const Row& row : kRows)
    if (row.format == format) return row.pattern;
  return {};
}

}  // namespace nibble
