// CLI11 does the parsing; names, messages and help are ours.
#include "base/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <deque>
#include <limits>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

struct Declared {
  std::string name;          // without dashes
  std::string letter;        // "" or "p"
  std::string value_name;    // "" for booleans
  std::string default_text;  // "" for none
  std::string help;
  std::vector<std::string> choices;
  bool positional = false;
  bool required = false;
};

std::string flag_text(const Declared& declared) {
  if (declared.positional) return declared.name;
  std::string text = declared.letter.empty() ? "--" : "-" + declared.letter + ", --";
  text += declared.name;
  if (!declared.value_name.empty()) text += " " + declared.value_name;
  return text;
}

std::string help_text(const Declared& declared) {
  std::string text = declared.help;
  if (!declared.choices.empty()) text += format(" ({})", join(declared.choices, ", "));
  if (!declared.default_text.empty()) text += format(" [{}]", declared.default_text);
  return text;
}

// Breaks `text` at spaces into lines of at most `width`, all but the first indented.
std::string wrapped(std::string_view text, size_t width, size_t indent) {
  std::string out;
  size_t column = 0;
  while (!text.empty()) {
    const size_t space = std::min(text.find(' '), text.size());
    if (column > 0 && column + 1 + space > width) {
      out += "\n" + std::string(indent, ' ');
      column = 0;
    } else if (column > 0) {
      out += ' ';
      ++column;
    }
    out += text.substr(0, space);
    column += space;
    text.remove_prefix(std::min(space + 1, text.size()));
  }
  return out;
}

// Underscores in flag names become dashes, values stay as they are.
std::string normalised(const std::string& argument) {
  if (!argument.starts_with("--")) return argument;
  std::string out = argument;
  const size_t end = std::min(out.find('='), out.size());
  std::replace(out.begin(), out.begin() + static_cast<ptrdiff_t>(end), '_', '-');
  return out;
}

}  // namespace

struct OptionSet::State {
  std::string command;
  std::string summary;
  CLI::App app;
  std::deque<Declared> declared;  // stable addresses

  Declared& declare(std::string_view name, std::string value_name, std::string default_text,
                    std::string_view help) {
    declared.push_back({std::string(name),
                        "",
                        std::move(value_name),
                        std::move(default_text),
                        std::string(help),
                        {},
                        false,
                        false});
    return declared.back();
  }

  // A number option: CLI11 hands the text over, `assign` converts and complains.
  void add_converted(std::string_view name,
                     const std::function<Status(const std::string&)>& assign) {
    const std::string flag = "--" + std::string(name);
    app.add_option_function<std::string>(flag, [assign, flag](const std::string& text) {
      if (Status status = assign(text); !status.has_value())
        throw CLI::ValidationError(flag + " " + text, status.error().message);
    });
  }

  Error unknown(const std::string& argument) const {
    std::vector<std::string> names;
    for (const Declared& option : declared)
      if (!option.positional) names.push_back("--" + option.name);
    const std::string name = argument.substr(0, argument.find('='));
    if (!argument.starts_with("-"))
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: unexpected argument \"{}\"; see {} --help", command, argument,
                        command);
    const std::string nearest = nearest_name(name, names);
    return make_error(ErrorCode::kInvalidArgument, "{}: unknown flag {}{}; see {} --help", command,
                      name, nearest.empty() ? "" : format(", did you mean {}?", nearest), command);
  }
};

OptionSet::OptionSet(std::string command, std::string summary) : state_(std::make_unique<State>()) {
  state_->command = std::move(command);
  state_->summary = std::move(summary);
  state_->app.allow_extras();
  state_->app.set_help_flag();
  state_->app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}
OptionSet::OptionSet(OptionSet&&) noexcept = default;
OptionSet::~OptionSet() = default;

void OptionSet::positional(std::string_view name, std::string* value, std::string_view help,
                           bool required) {
  Declared& declared = state_->declare(name, "", *value, help);
  declared.positional = true;
  declared.required = required;
  state_->app.add_option(declared.name, *value);
}

void OptionSet::option(std::string_view name, std::string* value, std::string_view help,
                       std::vector<std::string> choices) {
  Declared& declared = state_->declare(name, "TEXT", *value, help);
  declared.choices = std::move(choices);
  CLI::Option* option = state_->app.add_option("--" + declared.name, *value);
  if (declared.choices.empty()) return;
  const std::vector<std::string>& allowed = declared.choices;
  option->check(CLI::Validator(
      [&allowed](std::string& text) {
        return std::ranges::find(allowed, text) != allowed.end()
                   ? std::string()
                   : format("not one of {}", join(allowed, ", "));
      },
      ""));
}

void OptionSet::option(std::string_view name, std::vector<std::string>* values,
                       std::string_view help) {
  state_->declare(name, "TEXT...", format("{}", join(*values, " ")), help);
  state_->app.add_option("--" + std::string(name), *values)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void OptionSet::option(std::string_view name, int* value, std::string_view help) {
  state_->declare(name, "N", std::to_string(*value), help);
  state_->add_converted(name, [value](const std::string& text) -> Status {
    NB_TRY(const int64_t count, parse_count(text));
    if (count < std::numeric_limits<int>::min() || count > std::numeric_limits<int>::max())
      return Error{ErrorCode::kInvalidArgument, "out of range"};
    *value = static_cast<int>(count);
    return {};
  });
}

void OptionSet::option(std::string_view name, size_t* value, std::string_view help) {
  state_->declare(name, "BYTES", std::to_string(*value), help);
  state_->add_converted(name, [value](const std::string& text) -> Status {
    NB_TRY(const int64_t count, parse_count(text));
    if (count < 0) return Error{ErrorCode::kInvalidArgument, "must not be negative"};
    *value = static_cast<size_t>(count);
    return {};
  });
}

void OptionSet::option(std::string_view name, float* value, std::string_view help) {
  state_->declare(name, "X", format("{:g}", *value), help);
  state_->add_converted(name, [value](const std::string& text) -> Status {
    float parsed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(parsed))
      return Error{ErrorCode::kInvalidArgument, "not a number"};
    *value = parsed;
    return {};
  });
}

void OptionSet::option(std::string_view name, bool* value, std::string_view help) {
  state_->declare(name, "", *value ? "on" : "", help);
  const std::string flag(name);
  state_->app.add_flag_callback("--" + flag, [value] { *value = true; });
  state_->app.add_flag_callback("--no-" + flag, [value] { *value = false; });
}

void OptionSet::alias(std::string_view letter, std::string_view name) {
  const auto it = std::ranges::find(state_->declared, name, &Declared::name);
  NB_CHECK(it != state_->declared.end(), "alias of an undeclared option");
  it->letter = std::string(letter);
}

Result<OptionSet::Outcome> OptionSet::parse(std::span<const std::string> arguments) {
  std::vector<std::string> reversed;
  for (const std::string& argument : arguments) {
    if (argument == "--help" || argument == "-h") return Outcome{.help_requested = true};
    std::string text = normalised(argument);
    for (const Declared& declared : state_->declared)
      if (!declared.letter.empty() && text == "-" + declared.letter) text = "--" + declared.name;
    reversed.push_back(std::move(text));
  }
  std::reverse(reversed.begin(), reversed.end());
  try {
    state_->app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return make_error(ErrorCode::kInvalidArgument, "{}: {}; see {} --help", state_->command,
                      error.what(), state_->command);
  }
  if (const std::vector<std::string> extra = state_->app.remaining(); !extra.empty())
    return state_->unknown(extra.front());
  for (const Declared& declared : state_->declared)
    if (declared.required && state_->app.count(declared.name) == 0)
      return make_error(ErrorCode::kInvalidArgument, "{}: {} is missing: {}; see {} --help",
                        state_->command, declared.name, declared.help, state_->command);
  return Outcome{};
}

std::string OptionSet::help() const {
  std::string text =
      format("{}: {}\n\nusage: {}", state_->command, state_->summary, state_->command);
  for (const Declared& declared : state_->declared)
    if (declared.positional)
      text += declared.required ? " " + declared.name : " [" + declared.name + "]";
  text += " [flags]\n\n";
  constexpr size_t kColumn = 32;
  for (const Declared& declared : state_->declared) {
    std::string line = "  " + flag_text(declared);
    line += line.size() + 2 > kColumn ? "\n" + std::string(kColumn, ' ')
                                      : std::string(kColumn - line.size(), ' ');
    text += line + wrapped(help_text(declared), 80 - kColumn, kColumn) + "\n";
  }
  return text;
}

std::string OptionSet::markdown() const {
  std::string text = format("## {}\n\n{}\n\n| flag | default | meaning |\n| --- | --- | --- |\n",
                            state_->command, state_->summary);
  for (const Declared& declared : state_->declared) {
    std::string meaning = declared.help;
    if (!declared.choices.empty()) meaning += format(" ({})", join(declared.choices, ", "));
    text += format("| `{}` | {} | {} |\n", flag_text(declared),
                   declared.default_text.empty() ? "" : "`" + declared.default_text + "`", meaning);
  }
  return text;
}

std::vector<OptionSet::Flag> OptionSet::flags() const {
  std::vector<Flag> out;
  for (const Declared& declared : state_->declared)
    if (!declared.positional)
      out.push_back({.name = "--" + declared.name,
                     .takes_value = !declared.value_name.empty(),
                     .choices = declared.choices,
                     .help = declared.help});
  return out;
}

Result<int64_t> parse_count(std::string_view text) {
  const Error bad = make_error(ErrorCode::kInvalidArgument,
                               "\"{}\" is not a whole number (4096, 25.6k or 16K)", text);
  double scale = 1;
  bool fraction_allowed = false;
  std::string_view digits = text;
  if (!digits.empty()) {
    static constexpr std::string_view kDecimal = "kmgt";
    static constexpr std::string_view kBinary = "KMGT";
    if (const size_t power = kDecimal.find(digits.back()); power != std::string_view::npos) {
      scale = std::pow(1000.0, static_cast<double>(power) + 1);
      fraction_allowed = true;
      digits.remove_suffix(1);
    } else if (const size_t binary = kBinary.find(digits.back());
               binary != std::string_view::npos) {
      scale = std::pow(1024.0, static_cast<double>(binary) + 1);
      digits.remove_suffix(1);
    }
  }
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value,
                                            std::chars_format::fixed);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) return bad;
  if (!fraction_allowed && digits.find('.') != std::string_view::npos) return bad;
  const double scaled = value * scale;
  if (scaled != std::floor(scaled) || std::fabs(scaled) > 9e15) return bad;
  return static_cast<int64_t>(scaled);
}

}  // namespace nibble
