// A subcommand: its name, one line about it, and what runs. One file each, one row in command.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/options.h"
#include "base/result.h"

namespace nibble::cli {

// Arguments after the subcommand's name; the exit code.
using Arguments = std::span<const std::string>;

int quantize(Arguments arguments);
int inspect(Arguments arguments);
int run(Arguments arguments);
int chat(Arguments arguments);
int serve(Arguments arguments);
int plan(Arguments arguments);
int fidelity(Arguments arguments);
int recipe(Arguments arguments);
int verify(Arguments arguments);
int card(Arguments arguments);
int synth(Arguments arguments);
int doctor(Arguments arguments);
int debug(Arguments arguments);
int bench(Arguments arguments);
int completion(Arguments arguments);
int config(Arguments arguments);
int top(Arguments arguments);

struct Command {
  std::string_view name;
  std::string_view summary;
  int (*run)(Arguments);
};
std::span<const Command> commands();

// A command with its flags, for pages and completions that list them.
struct Described {
  std::string name;  // as typed after "nibble"
  std::string summary;
  std::vector<OptionSet::Flag> flags;
};
std::vector<Described> describe_commands();

// The command of that name; kInvalidArgument names the nearest one and lists all.
Result<const Command*> find_command(std::string_view name);

// What a command's arguments come to, without running it. `error`: its exit code, after it has said
// what is wrong; 0: `settings` is filled.
struct Effective {
  int error = 0;
  OptionSet::Settings settings;
};
Effective effective_settings(const Command& command, Arguments arguments);

// Prints docs/reference/cli.md: every command's flags, made from their options structs.
void print_reference();
// Prints the manual page nibble(1), made from the same structs.
void print_manual();

// Prints the error as one line on stderr and returns its exit code.
int fail(const Error& error);

// Parses into an options struct with a `visit(v)`; when the command should end here (help, or a bad
// flag) the result holds its exit code in `exit`.
struct Parsed {
  bool ok = false;
  int exit = 0;
  OptionSet::Outcome outcome = {};
};
Parsed finish(OptionSet& set, Arguments arguments);

template <class Options>
Parsed parse(OptionSet& set, Options& options, Arguments arguments) {
  options.visit(set);
  return finish(set, arguments);
}

}  // namespace nibble::cli
