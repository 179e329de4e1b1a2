// What every subcommand does with its flags and its errors.
#include "cli/command.h"

#include <cstdio>

namespace nibble::cli {

int fail(const Error& error) {
  std::fprintf(stderr, "nibble: %s\n", error.message.c_str());
  return exit_code(error.code);
}

Parsed finish(OptionSet& set, Arguments arguments) {
  const Result<OptionSet::Outcome> outcome = set.parse(arguments);
  if (!outcome) return {false, fail(outcome.error())};
  if (!outcome->help_requested) return {true, 0};
  std::fputs(set.help().c_str(), stdout);
  return {false, 0};
}

}  // namespace nibble::cli
