// The table and its parser.
#include "device/cards.h"

#include <charconv>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr size_t mib(size_t count) {
  return count << 20;
}

// Memory: what the driver lists as total. Peaks: the maker's dense figures with f32 accumulation
// (GeForce cards run f16 with f32 accumulation at half the rate on which their data sheets lead).
const std::vector<Card>& table() {
  static const std::vector<Card> cards = {
      {"V100-16GB", mib(16160), 900, 112, 0, 70},
      {"V100-32GB", mib(32510), 900, 112, 0, 70},  // PCIe
      {"V100-SXM2-32GB", mib(32510), 900, 125, 0, 70},
      {"T4", mib(15360), 320, 65, 0, 75},
      {"2080Ti", mib(11264), 616, 54, 0, 75},
      {"A100-40GB", mib(40960), 1555, 312, 312, 80},
      {"A100-80GB", mib(81920), 2039, 312, 312, 80},
      {"A10", mib(23028), 600, 125, 125, 86},
      {"3090", mib(24576), 936, 71, 71, 86},
      {"A6000", mib(49140), 768, 155, 155, 86},
      {"4090", mib(24564), 1008, 165, 165, 89},
      {"L4", mib(23034), 300, 121, 121, 89},
      {"L40S", mib(46068), 864, 362, 362, 89},
      {"H100-PCIe", mib(81559), 2000, 756, 756, 90},
      {"H100", mib(81559), 3350, 989, 989, 90},  // SXM
      {"H200", mib(143771), 4800, 989, 989, 90},
  };
  return cards;
}

std::string normal_form(std::string_view name) {
  std::string out;
  for (const char c : ascii_lower(name))
    if (c != '-' && c != '_' && c != ' ') out += c;
  for (const std::string_view maker : {"nvidia", "tesla", "geforce", "rtx"})
    if (out.starts_with(maker)) out.erase(0, maker.size());
  return out;
}

}  // namespace

std::span<const Card> known_cards() {
  return table();
}

Result<CardSet> parse_cards(std::string_view text) {
  CardSet set;
  std::string_view rest = text;
  int count = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), count);
  const auto digits = static_cast<size_t>(end - rest.data());
  if (error == std::errc() && digits < rest.size() &&
      (rest[digits] == 'x' || rest[digits] == 'X')) {
    if (count < 1 || count > 64)
      return make_error(ErrorCode::kInvalidArgument, "\"{}\": {} GPUs, expected 1 to 64", text,
                        count);
    set.count = count;
    rest.remove_prefix(digits + 1);
  }
  const std::string wanted = normal_form(rest);
  std::vector<std::string> names;
  for (const Card& card : table()) {
    names.push_back(card.name);
    if (normal_form(card.name) != wanted) continue;
    set.card = card;
    return set;
  }
  // A size: "32GiB".
  double size = 0;
  const auto [size_end, size_error] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
  const std::string unit = ascii_lower(
      std::string_view(size_end, static_cast<size_t>(rest.data() + rest.size() - size_end)));
  if (size_error == std::errc() && size > 0 && size < 1e6 && (unit == "gib" || unit == "gb")) {
    set.card.name = std::string(rest);
    set.card.memory_bytes =
        static_cast<size_t>(size * (unit == "gib" ? 1024.0 * 1024 * 1024 : 1e9));
    return set;
  }
  const std::string nearest = nearest_name(rest, names);
  return make_error(ErrorCode::kInvalidArgument,
                    "\"{}\" is no known GPU{}; give one of {}, or a size such as 2x32GiB", text,
                    nearest.empty() ? "" : format(", did you mean {}?", nearest),
                    join(names, ", "));
}

}  // namespace nibble
