// The table of subcommands, and what every one does with its flags and its errors.
#include "cli/command.h"

#include <algorithm>
#include <cstdio>

namespace nibble::cli {
namespace {

constexpr Command kCommands[] = {
    {"quantize", "write a 4-bit checkpoint", quantize},
    {"plan", "what fits on which GPUs, before anything is downloaded", plan},
    {"serve", "serve a model over an OpenAI-compatible API", serve},
    {"chat", "talk to a model in the terminal", chat},
    {"run", "answer one prompt", run},
    {"inspect", "what is in a checkpoint", inspect},
    {"fidelity", "compare a quantized model with its parent", fidelity},
    {"verify", "check that a checkpoint is whole and computes", verify},
    {"card", "write the model card", card},
    {"bench", "measure a server under load, or steps and operations on this device", bench},
    {"recipe", "explain what a recipe would do", recipe},
    {"synth", "write a checkpoint of random weights, for measurements", synth},
    {"doctor", "what this machine offers, and what is wrong with it", doctor},
    {"debug", "take replies apart, for people who debug clients", debug},
    {"completion", "print the completions of a shell", completion},
};

constexpr const char* kMarkdownFlag = "--help-markdown";  // one section of the reference
constexpr const char* kDescribeFlag = "--help-flags";     // into `described`
std::vector<OptionSet::Flag> described;                   // of the command run last

}  // namespace

std::span<const Command> commands() {
  return kCommands;
}

void print_reference() {
  std::fputs(
      "# Command line\n\nMade by `nibble help --markdown`; a test fails when this page is stale.\n"
      "`-` and `_` are interchangeable in flag names; booleans are `--name` and `--no-name`;\n"
      "counts take `k`, `m`, `g` (decimal) and `K`, `M`, `G` (binary).\n",
      stdout);
  const std::string flag = kMarkdownFlag;
  for (const Command& command : kCommands) {
    std::puts("");
    command.run({&flag, 1});
  }
}

std::vector<Described> describe_commands() {
  std::vector<Described> out;
  const std::string flag = kDescribeFlag;
  for (const Command& command : kCommands) {
    described.clear();
    command.run({&flag, 1});
    out.push_back({std::string(command.name), std::string(command.summary), described});
  }
  return out;
}

int fail(const Error& error) {
  std::fprintf(stderr, "nibble: %s\n", error.message.c_str());
  return exit_code(error.code);
}

Parsed finish(OptionSet& set, Arguments arguments) {
  if (arguments.size() == 1 && arguments[0] == kMarkdownFlag) {
    std::fputs(set.markdown().c_str(), stdout);
    return {false, 0};
  }
  if (arguments.size() == 1 && arguments[0] == kDescribeFlag) {
    // A command with commands of its own is described by all of theirs.
    for (OptionSet::Flag& flag : set.flags())
      if (std::none_of(described.begin(), described.end(),
                       [&](const OptionSet::Flag& known) { return known.name == flag.name; }))
        described.push_back(std::move(flag));
    return {false, 0};
  }
  Result<OptionSet::Outcome> outcome = set.parse(arguments);
  if (!outcome) return {false, fail(outcome.error())};
  for (const std::string& warning : outcome->warnings)
    std::fprintf(stderr, "nibble: warning: %s\n", warning.c_str());
  if (!outcome->help_requested) return {true, 0, std::move(*outcome)};
  std::fputs(set.help(outcome->help_topic).c_str(), stdout);
  return {false, 0};
}

}  // namespace nibble::cli
