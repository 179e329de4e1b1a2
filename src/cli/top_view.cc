// Counters become rates here; what an answer lacks (a server that loads, another version) is a
// dash.
#include "cli/top_view.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/format.h"

namespace nibble::cli {
namespace {

constexpr int kBarWidth = 30;

std::optional<double> number(const Json& status, const char* name) {
  const auto it = status.find(name);
  if (it == status.end() || !it->is_number()) return std::nullopt;
  return it->get<double>();
}

std::string text(const Json& status, const char* name) {
  const auto it = status.find(name);
  if (it == status.end() || !it->is_string()) return "-";
  std::string value = it->get<std::string>();
  for (char& c : value)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';  // no business of a terminal
  return value;
}

// 9512, 12.3k, 4.5M.
std::string short_count(std::optional<double> count) {
  if (!count) return "-";
  if (*count < 1e4) return format("{:.0f}", *count);
  return *count < 1e6 ? format("{:.1f}k", *count / 1e3) : format("{:.1f}M", *count / 1e6);
}

std::string percent(std::optional<double> share) {
  return share ? format("{:.0f} %", 100 * *share) : "-";
}

// How much a counter has grown.
std::optional<double> growth(const TopSample& sample, const char* name) {
  const auto now = number(sample.now, name);
  if (!sample.before.is_object() || !now) return std::nullopt;
  const auto before = number(sample.before, name);
  if (!before || *now < *before) return std::nullopt;  // restarted
  return *now - *before;
}

std::optional<double> rate(const TopSample& sample, const char* name) {
  const auto grown = growth(sample, name);
  if (!grown || sample.seconds <= 0) return std::nullopt;
  return *grown / sample.seconds;
}

// Of the tokens looked up since the sample before; at first, or where none were, of all so far.
std::optional<double> hit_rate(const TopSample& sample) {
  auto queries = growth(sample, "prefix_cache_queries");
  auto hits = growth(sample, "prefix_cache_hits");
  if (!queries || !hits || *queries <= 0) {
    queries = number(sample.now, "prefix_cache_queries");
    hits = number(sample.now, "prefix_cache_hits");
  }
  if (!queries || !hits || *queries <= 0) return std::nullopt;
  return *hits / *queries;
}

std::string bar(std::optional<double> share) {
  const double filled = std::clamp(share.value_or(0), 0.0, 1.0) * kBarWidth;
  const auto full = static_cast<size_t>(std::lround(filled));
  return "[" + std::string(full, '#') + std::string(kBarWidth - full, '.') + "]";
}

std::string duration(std::optional<double> seconds) {
  if (!seconds) return "-";
  const auto whole = static_cast<int64_t>(*seconds);
  if (whole < 60) return format("{} s", whole);
  if (whole < 3600) return format("{} min", whole / 60);
  if (whole < 86400) return format("{} h {} min", whole / 3600, whole % 3600 / 60);
  return format("{} d {} h", whole / 86400, whole % 86400 / 3600);
}

// To the width of a terminal; UTF-8 is not cut inside a character.
std::string cut(std::string line) {
  constexpr size_t kWidth = 80;
  if (line.size() <= kWidth) return line;
  size_t end = kWidth;
  while (end > 0 && (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80) --end;
  line.resize(end);
  return line;
}

}  // namespace

std::vector<std::string> top_screen(const TopSample& sample, const std::string& url) {
  const Json& now = sample.now;
  std::vector<std::string> lines;
  lines.push_back(format("{}  {}  {}, up {}", text(now, "model"), url, text(now, "state"),
                         duration(number(now, "uptime_s"))));
  lines.push_back(format("  generated  {:>8} tokens/s  {:>8} in all",
                         short_count(rate(sample, "generated_tokens")),
                         short_count(number(now, "generated_tokens"))));
  lines.push_back(format("  prompts    {:>8} tokens/s  {:>8} in all",
                         short_count(rate(sample, "prompt_tokens")),
                         short_count(number(now, "prompt_tokens"))));
  lines.push_back(format("  requests   {} running, {} waiting, {} preempted so far",
                         short_count(number(now, "running")), short_count(number(now, "waiting")),
                         short_count(number(now, "preemptions"))));
  lines.push_back(
      format("  KV cache   {} {}", bar(number(now, "kv_usage")), percent(number(now, "kv_usage"))));
  const auto hits = hit_rate(sample);
  lines.push_back(format("  prefixes   {} {}", bar(hits),
                         hits ? percent(hits) + " of prompt tokens found" : "-"));
  const auto resident = number(now, "resident_bytes");
  lines.push_back(format("  process    {} of host memory, version {}",
                         resident ? format_bytes(*resident) : "-", text(now, "version")));
  for (std::string& line : lines) line = cut(std::move(line));
  return lines;
}

std::string top_line(const TopSample& sample) {
  const Json& now = sample.now;
  return format(
      "{}: {} running, {} waiting, generated {} tokens/s, prompts {} tokens/s, KV cache {}, "
      "prefixes "
      "found {}",
      text(now, "state"), short_count(number(now, "running")), short_count(number(now, "waiting")),
      short_count(rate(sample, "generated_tokens")), short_count(rate(sample, "prompt_tokens")),
      percent(number(now, "kv_usage")), percent(hit_rate(sample)));
}

}  // namespace nibble::cli
