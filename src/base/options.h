// Command-line options, declared once: an options struct lists its fields in `visit(v)`; parsing,
// --help, the config file, the environment and the generated docs/reference/cli.md are visitors.
//
//   struct RunOptions {
//     int max_tokens = 256;
//     template <class V>
//     void visit(V& v) {
//       v.option("max-tokens", &max_tokens, "tokens to generate", {.low = 1});
//     }
//   };
//
// Flags take --name value or --name=value; `_` and `-` are interchangeable in names; a unique
// beginning of a name is enough; booleans are --name / --no-name; integers accept k/m/g (decimal)
// and K/M/G (binary) suffixes, and "auto" for 0 where that is in range; JSON flags take an object,
// or members as --name.key value (list members as --name.key+ value). A scalar given twice warns,
// and the last one counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

// Both ends included.
struct IntRange {
  int64_t low = std::numeric_limits<int>::min();
  int64_t high = std::numeric_limits<int>::max();
};

class OptionSet {
 public:
  // `command` as typed ("nibble serve"), `summary` one line.
  OptionSet(std::string command, std::string summary);
  OptionSet(OptionSet&&) noexcept;
  ~OptionSet();

  // The options that follow stand under this title in help and docs.
  void group(std::string_view title);

  // Names are without dashes; the current value of the member is the default that help shows.
  void positional(std::string_view name, std::string* value, std::string_view help,
                  bool required = true);
  void option(std::string_view name, std::string* value, std::string_view help,
              std::vector<std::string> choices = {});
  void option(std::string_view name, std::vector<std::string>* values, std::string_view help);
  void option(std::string_view name, int* value, std::string_view help, IntRange range = {});
  void option(std::string_view name, size_t* value, std::string_view help);
  void option(std::string_view name, float* value, std::string_view help);
  void option(std::string_view name, bool* value, std::string_view help);
  void option(std::string_view name, Json* object, std::string_view help);

  // A short or second name of an option declared before: alias("p", "prompt") is -p,
  // alias("tp", ...) is -tp.
  void alias(std::string_view letters, std::string_view name);
  // Flags of the servers nibble stands in for that mean nothing here: accepted, and reported by
  // Outcome::ignored. `names` are separated by blanks.
  void no_effect(std::string_view names, bool take_value);
  // Declares --NAME FILE: a YAML file of flags; the command line goes before it.
  void config_file(std::string_view name);
  // Unset options are read from the environment: PREFIX + NAME in capitals, and from extra names.
  void environment(std::string_view prefix);
  void environment(std::string_view name, std::string_view variable);
  // An option whose value reports do not show.
  void secret(std::string_view name);

  struct Given {
    std::string name;
    std::string value;
    std::string source;  // "command line", "FILE", or the variable's name; "default"
  };
  struct Outcome {
    bool help_requested = false;
    std::string help_topic = {};  // of --help=TOPIC
    std::vector<std::string> warnings = {};
    std::vector<std::string> ignored = {};  // "--swap-space"
    std::vector<Given> given = {};          // what is not a default
  };
  // Assigns the members. kInvalidArgument: one line with the flag, what was found and what is
  // allowed; unknown flags name the nearest known one.
  Result<Outcome> parse(std::span<const std::string> arguments);

  // What the arguments, the file and the environment come to. Errors as of parse(), but positional
  // arguments may be missing.
  struct Settings {
    Outcome outcome;
    std::vector<Given> all;  // options that have an effect, in the order of declaration
  };
  Result<Settings> settings(std::span<const std::string> arguments);

  // For a terminal, 80 columns. `topic`: "" or "all" for everything, else a group or a flag.
  std::string help(std::string_view topic = "") const;
  std::string markdown() const;  // a section of docs/reference/cli.md

  // For shell completion: every flag as typed, with the values it allows.
  struct Flag {
    std::string name;  // "--port"
    bool takes_value = false;
    std::vector<std::string> choices;
    std::string help;
  };
  std::vector<Flag> flags() const;

 private:
  Result<Outcome> parse(std::span<const std::string> arguments, bool needs_positionals);

  struct State;
  std::unique_ptr<State> state_;
};

// "4096", "25.6k", "16K" -> a count; kInvalidArgument otherwise.
Result<int64_t> parse_count(std::string_view text);

}  // namespace nibble
