// nibble: subcommands and nothing else.
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "base/format.h"
#include "base/text.h"
#include "cli/command.h"

namespace {

constexpr std::string_view kVersion = "0.1.0";

struct Command {
  std::string_view name;
  std::string_view summary;
  int (*run)(nibble::cli::Arguments);
};

constexpr Command kCommands[] = {
    {"quantize", "write a 4-bit checkpoint", nibble::cli::quantize},
    {"serve", "serve a model over an OpenAI-compatible API", nibble::cli::serve},
    {"chat", "talk to a model in the terminal", nibble::cli::chat},
    {"run", "answer one prompt", nibble::cli::run},
    {"inspect", "what is in a checkpoint", nibble::cli::inspect},
    {"fidelity", "compare a quantized model with its parent", nibble::cli::fidelity},
    {"recipe", "explain what a recipe would do", nibble::cli::recipe},
};

constexpr std::string_view kFirstSteps =
    "nibble quantizes hybrid language models to 4 bits and serves them.\n"
    "  nibble quantize MODEL OUT --recipe recipes/w4a16-rtn.yaml\n"
    "  nibble serve MODEL --port 8000\n"
    "  nibble chat MODEL\n"
    "  nibble inspect MODEL\n"
    "All commands: nibble --help\n";

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) {
    std::fputs(kFirstSteps.data(), stdout);
    return 0;
  }
  const std::string& name = arguments[0];
  if (name == "--version") {
    std::printf("nibble %s (cpu)\n", kVersion.data());
    return 0;
  }
  if (name == "--help" || name == "-h" || name == "help") {
    std::puts("usage: nibble COMMAND [arguments]\n");
    for (const Command& command : kCommands)
      std::printf("  %-10s %s\n", command.name.data(), command.summary.data());
    std::puts("\nnibble COMMAND --help says more.");
    return 0;
  }
  std::vector<std::string_view> names;
  for (const Command& command : kCommands) {
    if (command.name == name) return command.run(nibble::cli::Arguments(arguments).subspan(1));
    names.push_back(command.name);
  }
  const std::string nearest = nibble::nearest_name(name, std::span<const std::string_view>(names));
  return nibble::cli::fail(nibble::make_error(
      nibble::ErrorCode::kInvalidArgument, "unknown command \"{}\"{}; commands are {}", name,
      nearest.empty() ? "" : nibble::format(", did you mean {}?", nearest),
      nibble::join(names, ", ")));
}
