// Command-line options, declared once: an options struct lists its fields in `visit(v)`, and
// parsing,
// --help and the generated docs/reference/cli.md are visitors. Doorkeeper of CLI11.
//
//   struct RunOptions {
//     int max_tokens = 256;
//     template <class V> void visit(V& v) { v.option("max-tokens", &max_tokens, "tokens to
//     generate"); }
//   };
//
// Flags take --name value or --name=value; `_` and `-` are interchangeable in names; booleans are
// --name / --no-name; integers accept k/m/g (decimal) and K/M/G (binary) suffixes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

class OptionSet {
 public:
  // `command` as typed ("nibble serve"), `summary` one line.
  OptionSet(std::string command, std::string summary);
  OptionSet(OptionSet&&) noexcept;
  ~OptionSet();

  // Names are without dashes; the current value of the member is the default that help shows.
  void positional(std::string_view name, std::string* value, std::string_view help,
                  bool required = true);
  void option(std::string_view name, std::string* value, std::string_view help,
              std::vector<std::string> choices = {});
  void option(std::string_view name, std::vector<std::string>* values, std::string_view help);
  void option(std::string_view name, int* value, std::string_view help);
  void option(std::string_view name, size_t* value, std::string_view help);
  void option(std::string_view name, float* value, std::string_view help);
  void option(std::string_view name, bool* value, std::string_view help);

  // One-letter form of an option declared before: alias("p", "prompt").
  void alias(std::string_view letter, std::string_view name);

  struct Outcome {
    bool help_requested = false;
  };
  // Assigns the members. kInvalidArgument: one line with the flag, what was found and what is
  // allowed; unknown flags name the nearest known one.
  Result<Outcome> parse(std::span<const std::string> arguments);

  std::string help() const;      // for a terminal, 80 columns
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
  struct State;
  std::unique_ptr<State> state_;
};

// "4096", "25.6k", "16K" -> a count; kInvalidArgument otherwise.
Result<int64_t> parse_count(std::string_view text);

}  // namespace nibble
