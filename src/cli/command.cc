// The table of subcommands, and what every one does with its flags and its errors.
#include "cli/command.h"

#include <algorithm>
#include <cstdio>

#include "base/format.h"
#include "base/text.h"

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
    {"top", "a running server in the terminal", top},
    {"config", "what a command's flags, files and variables come to", config},
    {"debug", "take replies apart, for people who debug clients", debug},
    {"completion", "print the completions of a shell", completion},
};

constexpr const char* kMarkdownFlag = "--help-markdown";  // one section of the reference
constexpr const char* kDescribeFlag = "--help-flags";     // into `described`
std::vector<OptionSet::Flag> described;                   // of the command run last
constexpr const char* kSettingsFlag = "--help-settings";  // behind the arguments: into `shown`
OptionSet::Settings shown;

// Warnings and, if that is asked for, help. Whether there is more to do.
bool report(const OptionSet& set, const OptionSet::Outcome& outcome) {
  for (const std::string& warning : outcome.warnings)
    std::fprintf(stderr, "nibble: warning: %s\n", warning.c_str());
  if (outcome.help_requested) std::fputs(set.help(outcome.help_topic).c_str(), stdout);
  return !outcome.help_requested;
}

}  // namespace

std::span<const Command> commands() {
  return kCommands;
}

Result<const Command*> find_command(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) {
    if (command.name == name) return &command;
    names.push_back(command.name);
  }
  const std::string nearest = nearest_name(name, std::span<const std::string_view>(names));
  return make_error(ErrorCode::kInvalidArgument, "unknown command \"{}\"{}; commands are {}", name,
                    nearest.empty() ? "" : format(", did you mean {}?", nearest),
                    join(names, ", "));
}

Effective effective_settings(const Command& command, Arguments arguments) {
  std::vector<std::string> with_flag(arguments.begin(), arguments.end());
  with_flag.emplace_back(kSettingsFlag);
  shown = {};
  const int error = command.run(with_flag);
  return {error, std::move(shown)};
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
  if (!arguments.empty() && arguments.back() == kSettingsFlag) {
    Result<OptionSet::Settings> settings = set.settings(arguments.first(arguments.size() - 1));
    if (!settings) return {false, fail(settings.error())};
    shown = std::move(*settings);
    if (!report(set, shown.outcome)) shown.all.clear();
    return {false, 0};
  }
  Result<OptionSet::Outcome> outcome = set.parse(arguments);
  if (!outcome) return {false, fail(outcome.error())};
  if (!report(set, *outcome)) return {false, 0};
  return {true, 0, std::move(*outcome)};
}

}  // namespace nibble::cli
