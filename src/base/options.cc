// A list of declarations, each with a function that takes the value's text. parse() first finds out
// what was given where (command line, file, environment), then assigns each option once.
#include "base/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>

#include "base/file.h"
#include "base/format.h"
#include "base/text.h"
#include "base/yaml.h"

namespace nibble {
namespace {

enum class Form { kScalar, kList, kSwitch, kJson, kIgnored };

struct Declared {
  std::string name;          // without dashes
  std::string value_name;    // "" for switches
  std::string default_text;  // "" for none
  std::string help;
  std::string group;
  Form form = Form::kScalar;
  std::function<Status(const std::string&)> assign;  // text of one value; of a switch "true"
  std::function<void()> clear;                       // of a list: before its first value
  std::vector<std::string> letters = {};
  std::vector<std::string> choices = {};
  std::vector<std::string> variables = {};
  bool positional = false;
  bool required = false;
  bool secret = false;
};

// What one source says about one option.
struct Values {
  std::vector<std::string> texts;
  std::string source;
};

std::string flag_text(const Declared& declared) {
  if (declared.positional) return declared.name;
  std::string text;
  for (const std::string& letter : declared.letters) text += "-" + letter + ", ";
  text += "--" + declared.name;
  if (!declared.value_name.empty()) text += " " + declared.value_name;
  return text;
}

std::string dashed(std::string_view name) {
  std::string out(name);
  std::ranges::replace(out, '_', '-');
  return out;
}

std::string listed(const std::vector<std::string>& texts, std::string_view separator) {
  return format("{}", join(texts, separator));
}

bool is_flag(std::string_view argument) {
  return argument.size() > 1 && argument[0] == '-' && !(argument[1] >= '0' && argument[1] <= '9') &&
         argument[1] != '.';
}

Error invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

std::optional<bool> truth_of(const std::string& text) {
  const std::string word = ascii_lower(text);
  if (word == "true" || word == "1" || word == "yes" || word == "on") return true;
  if (word == "false" || word == "0" || word == "no" || word == "off") return false;
  return std::nullopt;
}

// JSON if it is, else the text itself: a member's value as people type it.
Json loose_json(const std::string& text) {
  Result<Json> json = parse_json(text, "value");
  return json ? std::move(*json) : Json(text);
}

// {"a": {"b": value}} of path a.b; `append` for a trailing "+".
Json nested(std::string_view path, Json value) {
  const bool append = path.ends_with('+');
  if (append) path.remove_suffix(1);
  const size_t dot = path.find('.');
  if (dot != std::string_view::npos)
    return {{std::string(path.substr(0, dot)),
             nested(std::string(path.substr(dot + 1)) + (append ? "+" : ""), std::move(value))}};
  if (append) value = Json::array({std::move(value)});
  return {{std::string(path), std::move(value)}};
}

// Objects are merged and appended lists lengthened, so that members can be given one by one.
void merge(Json* into, const Json& from) {
  for (const auto& [key, value] : from.items()) {
    Json& place = (*into)[key];
    if (place.is_object() && value.is_object())
      merge(&place, value);
    else if (place.is_array() && value.is_array())
      place.insert(place.end(), value.begin(), value.end());
    else
      place = value;
  }
}

}  // namespace

struct OptionSet::State {
  std::string command;
  std::string summary;
  std::string group;
  std::string config_name;
  std::string environment_prefix;
  std::deque<Declared> declared;  // stable addresses

  Declared& declare(std::string_view name, std::string value_name, std::string default_text,
                    std::string_view help, Form form,
                    std::function<Status(const std::string&)> assign) {
    Declared fresh{.name = std::string(name),
                   .value_name = std::move(value_name),
                   .default_text = std::move(default_text),
                   .help = std::string(help),
                   .group = group,
                   .form = form,
                   .assign = std::move(assign),
                   .clear = {}};
    Declared* known = find(name);
    if (!known) return declared.emplace_back(std::move(fresh));
    // What has an effect goes before what has none.
    NB_CHECK(form == Form::kIgnored || known->form == Form::kIgnored, "an option is declared once");
    if (form != Form::kIgnored) *known = std::move(fresh);
    return *known;
  }

  Error error(const std::string& text) const {
    return invalid(format("{}: {}; see {} --help", command, text, command));
  }

  Declared* find(std::string_view name) {
    for (Declared& option : declared)
      if (!option.positional && option.name == name) return &option;
    return nullptr;
  }

  // Exact names first, then unique beginnings. `negated` for --no-NAME of a switch.
  Result<Declared*> resolve(std::string_view name, bool* negated) {
    *negated = false;
    if (Declared* exact = find(name)) return exact;
    const auto negatable = [](const Declared& option) {
      return option.form == Form::kSwitch || option.form == Form::kIgnored;
    };
    if (name.starts_with("no-"))
      if (Declared* exact = find(name.substr(3)); exact && negatable(*exact)) {
        *negated = true;
        return exact;
      }
    std::vector<std::string> fitting;
    Declared* found = nullptr;
    for (Declared& option : declared) {
      if (option.positional) continue;
      const bool plain = option.name.starts_with(name);
      const bool no = negatable(option) && ("no-" + option.name).starts_with(name);
      if (!plain && !no) continue;
      fitting.push_back((plain ? "--" : "--no-") + option.name);
      found = &option;
      *negated = !plain;
    }
    if (fitting.size() == 1) return found;
    const std::string flag = "--" + std::string(name);
    if (fitting.size() > 1) return error(format("{} could be {}", flag, join(fitting, " or ")));
    std::vector<std::string> names;
    for (const Declared& option : declared)
      if (!option.positional) names.push_back("--" + option.name);
    const std::string nearest = nearest_name(flag, names);
    return error(format("unknown flag {}{}", flag,
                        nearest.empty() ? "" : format(", did you mean {}?", nearest)));
  }

  Declared* find_letters(std::string_view letters) {
    for (Declared& option : declared)
      if (std::ranges::find(option.letters, letters) != option.letters.end()) return &option;
    return nullptr;
  }

  // Texts of a YAML value, in the form the command line has them.
  static std::vector<std::string> texts_of(const Declared& option, const Json& value) {
    const auto text = [](const Json& one) {
      return one.is_string() ? one.get<std::string>() : dump_json(one);
    };
    std::vector<std::string> out;
    if (option.form == Form::kList && value.is_array())
      for (const Json& one : value) out.push_back(text(one));
    else
      out.push_back(text(value));
    return out;
  }

  Result<std::map<Declared*, Values>> read_config(const std::string& path) {
    NB_TRY(const std::string text, read_file(path, size_t{1} << 20));
    NB_TRY(const Json flags, parse_yaml(text, path));
    if (!flags.is_object()) return error(path + ": expected a mapping of flags to values");
    std::map<Declared*, Values> out;
    for (const auto& [key, value] : flags.items()) {
      bool negated = false;
      Result<Declared*> option = resolve(dashed(key), &negated);
      if (!option) return invalid(path + ": " + option.error().message);
      Values values{texts_of(**option, value), path};
      if (negated) values.texts = {value == false ? "true" : "false"};
      out[*option] = std::move(values);
    }
    return out;
  }

  std::map<Declared*, Values> read_environment() {
    std::map<Declared*, Values> out;
    for (Declared& option : declared) {
      std::vector<std::string> names = option.variables;
      if (!environment_prefix.empty() && !option.positional) {
        std::string name = environment_prefix;
        for (const char c : option.name)
          name += c == '-' ? '_' : static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
        names.insert(names.begin(), name);
      }
      for (const std::string& name : names)
        if (const char* text = std::getenv(name.c_str()); text && *text && !out.contains(&option))
          out[&option] = {{text}, name};
    }
    return out;
  }

  Status assign(Declared& option, const Values& values) const {
    if (option.clear) option.clear();
    for (const std::string& text : values.texts) {
      if (!option.choices.empty() &&
          std::ranges::find(option.choices, text) == option.choices.end()) {
        const std::string nearest = nearest_name(text, option.choices);
        return error(format("--{} {}: not one of {}{}", option.name, text,
                            join(option.choices, ", "),
                            nearest.empty() ? "" : format(", did you mean {}?", nearest)));
      }
      if (const Status status = option.assign(text); !status.has_value())
        return error(format("{} {}: {}", option.positional ? option.name : "--" + option.name, text,
                            status.error().message));
    }
    return {};
  }
};

OptionSet::OptionSet(std::string command, std::string summary) : state_(std::make_unique<State>()) {
  state_->command = std::move(command);
  state_->summary = std::move(summary);
}
OptionSet::OptionSet(OptionSet&&) noexcept = default;
OptionSet::~OptionSet() = default;

void OptionSet::group(std::string_view title) {
  state_->group = title;
}

void OptionSet::positional(std::string_view name, std::string* value, std::string_view help,
                           bool required) {
  Declared& declared = state_->declare(name, "", *value, help, Form::kScalar,
                                       [value](const std::string& text) -> Status {
                                         *value = text;
                                         return {};
                                       });
  declared.positional = true;
  declared.required = required;
}

void OptionSet::option(std::string_view name, std::string* value, std::string_view help,
                       std::vector<std::string> choices) {
  state_
      ->declare(name, "TEXT", *value, help, Form::kScalar,
                [value](const std::string& text) -> Status {
                  *value = text;
                  return {};
                })
      .choices = std::move(choices);
}

void OptionSet::option(std::string_view name, std::vector<std::string>* values,
                       std::string_view help) {
  state_
      ->declare(name, "TEXT...", listed(*values, " "), help, Form::kList,
                [values](const std::string& text) -> Status {
                  values->push_back(text);
                  return {};
                })
      .clear = [values] { values->clear(); };
}

void OptionSet::option(std::string_view name, int* value, std::string_view help, IntRange range) {
  state_->declare(name, "N", std::to_string(*value), help, Form::kScalar,
                  [value, range](const std::string& text) -> Status {
                    int64_t count = 0;
                    if (text != "auto" || range.low > 0) {
                      NB_TRY(count, parse_count(text));
                    }
                    const IntRange any;
                    if (count < range.low && range.high == any.high)
                      return invalid(format("must be at least {}", range.low));
                    if (count < range.low || count > range.high)
                      return invalid(format("must be {} to {}", range.low, range.high));
                    *value = static_cast<int>(count);
                    return {};
                  });
}

void OptionSet::option(std::string_view name, size_t* value, std::string_view help) {
  state_->declare(name, "BYTES", std::to_string(*value), help, Form::kScalar,
                  [value](const std::string& text) -> Status {
                    NB_TRY(const int64_t count, parse_count(text));
                    if (count < 0) return invalid("must not be negative");
                    *value = static_cast<size_t>(count);
                    return {};
                  });
}

void OptionSet::option(std::string_view name, float* value, std::string_view help) {
  state_->declare(
      name, "X", format("{:g}", *value), help, Form::kScalar,
      [value](const std::string& text) -> Status {
        float parsed = 0;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
        if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(parsed))
          return invalid("not a number");
        *value = parsed;
        return {};
      });
}

void OptionSet::option(std::string_view name, bool* value, std::string_view help) {
  state_->declare(name, "", *value ? "on" : "", help, Form::kSwitch,
                  [value](const std::string& text) -> Status {
                    const std::optional<bool> truth = truth_of(text);
                    if (!truth) return invalid("expected true or false");
                    *value = *truth;
                    return {};
                  });
}

void OptionSet::option(std::string_view name, Json* object, std::string_view help) {
  state_->declare(name, "JSON", object->is_object() && !object->empty() ? dump_json(*object) : "",
                  help, Form::kJson, [object](const std::string& text) -> Status {
                    NB_TRY(const Json value, parse_json(text, "value"));
                    if (!value.is_object()) return invalid("not a JSON object");
                    if (!object->is_object()) *object = Json::object();
                    merge(object, value);
                    return {};
                  });
}

void OptionSet::alias(std::string_view letters, std::string_view name) {
  Declared* option = state_->find(name);
  NB_CHECK(option != nullptr, "alias of an undeclared option");
  option->letters.emplace_back(letters);
}

void OptionSet::no_effect(std::string_view names, bool take_value) {
  while (!names.empty()) {
    const size_t space = std::min(names.find(' '), names.size());
    if (space > 0)
      state_->declare(names.substr(0, space), take_value ? "V" : "", "", "", Form::kIgnored,
                      [](const std::string&) { return Status(); });
    names.remove_prefix(std::min(space + 1, names.size()));
  }
}

void OptionSet::config_file(std::string_view name) {
  state_->config_name = name;
  state_->declare(name, "FILE", "", "YAML file of flags; the command line goes before it",
                  Form::kScalar, [](const std::string&) { return Status(); });
}

void OptionSet::environment(std::string_view prefix) {
  state_->environment_prefix = prefix;
}
void OptionSet::environment(std::string_view name, std::string_view variable) {
  Declared* option = state_->find(name);
  NB_CHECK(option != nullptr, "variable of an undeclared option");
  option->variables.emplace_back(variable);
}
void OptionSet::secret(std::string_view name) {
  Declared* option = state_->find(name);
  NB_CHECK(option != nullptr, "an undeclared option is secret");
  option->secret = true;
}

Result<OptionSet::Outcome> OptionSet::parse(std::span<const std::string> arguments) {
  return parse(arguments, /*needs_positionals=*/true);
}

Result<OptionSet::Outcome> OptionSet::parse(std::span<const std::string> arguments,
                                            bool needs_positionals) {
  State& state = *state_;
  Outcome outcome;
  std::map<Declared*, Values> line;
  std::vector<std::string> words;
  bool only_words = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (only_words || !is_flag(argument)) {
      words.push_back(argument);
      continue;
    }
    if (argument == "--") {
      only_words = true;
      continue;
    }
    if (argument == "--help" || argument == "-h") return Outcome{.help_requested = true};
    if (argument.starts_with("--help="))
      return Outcome{.help_requested = true, .help_topic = argument.substr(7)};

    const size_t equals = argument.find('=');
    std::optional<std::string> value;
    if (equals != std::string::npos) value = argument.substr(equals + 1);
    const std::string given = argument.substr(0, equals);
    const size_t dot = given.find('.');
    std::string path = dot == std::string::npos ? "" : given.substr(dot + 1);
    const std::string base = given.substr(0, dot);
    bool negated = false;
    Declared* option = nullptr;
    if (base.starts_with("--")) {
      NB_TRY(option, state.resolve(dashed(base.substr(2)), &negated));
    } else {
      option = state.find_letters(base.substr(1));
      if (!option && base.size() > 2) {  // -O3
        option = state.find_letters(base.substr(1, 1));
        if (option && option->form != Form::kSwitch) value = given.substr(2);
      }
      if (!option) return state.error(format("unknown flag {}", argument));
    }

    Values& values = line[option];
    values.source = "command line";
    const bool repeated = !values.texts.empty();
    const auto next_word = [&]() -> std::optional<std::string> {
      if (i + 1 >= arguments.size() || is_flag(arguments[i + 1])) return std::nullopt;
      return arguments[++i];
    };
    switch (option->form) {
      case Form::kSwitch:
        if (value && negated) return state.error(argument + ": takes no value");
        values.texts = {negated ? "false" : value.value_or("true")};
        continue;
      case Form::kIgnored:
        if (!value && !option->value_name.empty()) value = next_word();
        values.texts = {value.value_or("")};
        continue;
      case Form::kList:
        if (value) values.texts.push_back(*value);
        while (!value || option->value_name == "TEXT...") {
          std::optional<std::string> word = next_word();
          if (!word) break;
          values.texts.push_back(std::move(*word));
          value = "";
        }
        if (!value) return state.error(base + ": a value is missing");
        continue;
      case Form::kJson:
      case Form::kScalar: break;
    }
    // Any next argument is the value, also one that looks like a flag of one letter (-1, -inf).
    if (!value && i + 1 < arguments.size() && !arguments[i + 1].starts_with("--"))
      value = arguments[++i];
    if (!value) return state.error(base + ": a value is missing");
    if (option->form == Form::kJson) {
      values.texts.push_back(path.empty() ? *value : dump_json(nested(path, loose_json(*value))));
      continue;
    }
    if (!path.empty()) return state.error(given + ": has no members");
    if (repeated)
      outcome.warnings.push_back(format("--{} is given more than once; the last value{} counts",
                                        option->name,
                                        option->secret ? "" : format(", {},", *value)));
    values.texts = {*value};
  }

  std::map<Declared*, Values> chosen = state.read_environment();
  if (!state.config_name.empty())
    if (const auto it = line.find(state.find(state.config_name)); it != line.end()) {
      NB_TRY(const auto config, state.read_config(it->second.texts.front()));
      for (const auto& [option, values] : config) chosen[option] = values;
    }
  for (auto& [option, values] : line) chosen[option] = std::move(values);
  // In the order of declaration, so that errors and reports do not depend on addresses.
  size_t next = 0;
  for (Declared& option : state.declared) {
    if (option.positional && next < words.size()) {
      chosen[&option] = {{words[next++]}, "command line"};
    } else if (option.positional && option.required && needs_positionals) {
      return state.error(format("{} is missing: {}", option.name, option.help));
    }
    const auto it = chosen.find(&option);
    if (it == chosen.end()) continue;
    if (option.form == Form::kIgnored) {
      outcome.ignored.push_back("--" + option.name);
      continue;
    }
    NB_TRY_STATUS(state.assign(option, it->second));
    outcome.given.push_back({option.name,
                             option.secret ? "(hidden)" : listed(it->second.texts, " "),
                             it->second.source});
  }
  if (next < words.size()) return state.error(format("unexpected argument \"{}\"", words[next]));
  return outcome;
}

Result<OptionSet::Settings> OptionSet::settings(std::span<const std::string> arguments) {
  Settings settings;
  NB_TRY(settings.outcome, parse(arguments, /*needs_positionals=*/false));
  auto given = settings.outcome.given.begin();  // in the same order
  for (const Declared& option : state_->declared) {
    if (option.form == Form::kIgnored) continue;
    const bool is_switch = option.form == Form::kSwitch;
    Given one{option.name, option.default_text, "default"};
    if (given != settings.outcome.given.end() && given->name == option.name) one = *given++;
    if (is_switch) one.value = truth_of(one.value) == true ? "on" : "off";
    settings.all.push_back(std::move(one));
  }
  return settings;
}

std::string OptionSet::help(std::string_view topic) const {
  const std::string wanted = ascii_lower(topic.starts_with("--") ? topic.substr(2) : topic);
  const bool all = wanted.empty() || wanted == "all";
  std::string text;
  if (all) {
    text = format("{}: {}\n\nusage: {}", state_->command, state_->summary, state_->command);
    for (const Declared& declared : state_->declared)
      if (declared.positional)
        text += declared.required ? " " + declared.name : " [" + declared.name + "]";
    text += " [flags]\n";
  }
  constexpr size_t kColumn = 32;
  std::string group = "\n";  // no group's title
  std::string ignored;
  for (const Declared& declared : state_->declared) {
    if (!all && ascii_lower(declared.group) != wanted && declared.name != dashed(wanted)) continue;
    if (declared.form == Form::kIgnored) {
      ignored += (ignored.empty() ? "--" : ", --") + declared.name;
      continue;
    }
    if (declared.group != group) {
      group = declared.group;
      text += group.empty() ? "\n" : format("\n{}:\n", group);
    }
    std::string line = "  " + flag_text(declared);
    line += line.size() + 2 > kColumn ? "\n" + std::string(kColumn, ' ')
                                      : std::string(kColumn - line.size(), ' ');
    std::string about = declared.help;
    if (!declared.choices.empty()) about += format(" ({})", join(declared.choices, ", "));
    if (!declared.default_text.empty()) about += format(" [{}]", declared.default_text);
    text += line + wrapped(about, 80 - kColumn, kColumn) + "\n";
  }
  if (!ignored.empty())
    text += "\nAccepted for compatibility, without effect:\n  " + wrapped(ignored, 76, 2) + "\n";
  if (text.empty()) text = format("{}: nothing is called \"{}\"\n", state_->command, topic);
  return text;
}

std::string OptionSet::markdown() const {
  std::string text = format("## {}\n\n{}\n", state_->command, state_->summary);
  std::string group = "\n";
  std::string ignored;
  for (const Declared& declared : state_->declared) {
    if (declared.form == Form::kIgnored) {
      ignored += (ignored.empty() ? "`--" : ", `--") + declared.name + "`";
      continue;
    }
    if (declared.group != group) {
      group = declared.group;
      text += group.empty() ? "\n" : format("\n### {}\n\n", group);
      text += "| flag | default | meaning |\n| --- | --- | --- |\n";
    }
    std::string meaning = declared.help;
    if (!declared.choices.empty()) meaning += format(" ({})", join(declared.choices, ", "));
    text += format("| `{}` | {} | {} |\n", flag_text(declared),
                   declared.default_text.empty() ? "" : "`" + declared.default_text + "`", meaning);
  }
  if (!ignored.empty()) text += "\nAccepted for compatibility, without effect: " + ignored + ".\n";
  return text;
}

std::vector<OptionSet::Flag> OptionSet::flags() const {
  std::vector<Flag> out;
  for (const Declared& declared : state_->declared)
    if (!declared.positional && declared.form != Form::kIgnored)
      out.push_back({.name = "--" + declared.name,
                     .takes_value = declared.form != Form::kSwitch,
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
  const double scaled = std::round(value * scale * 1e6) / 1e6;  // 25.6k is 25600
  if (scaled != std::floor(scaled) || std::fabs(scaled) > 9e15) return bad;
  return static_cast<int64_t>(scaled);
}

}  // namespace nibble
