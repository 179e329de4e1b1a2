// nibble: subcommands and nothing else.
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "base/format.h"
#include "base/version.h"
#include "cli/command.h"
#include "device/backends.h"

namespace {

constexpr std::string_view kFirstSteps =
    "nibble quantizes hybrid language models to 4 bits and serves them.\n"
    "  nibble quantize MODEL OUT --recipe recipes/w4a16-rtn.yaml\n"
    "  nibble plan OUT --gpus 2xV100-32GB\n"
    "  nibble serve OUT --port 8000\n"
    "  nibble verify OUT --against MODEL\n"
    "  nibble bench decode --model OUT\n"
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
    std::printf("nibble %s (%s)\n", nibble::kVersion.data(), nibble::built_backends().data());
    return 0;
  }
  if (name == "help" && arguments.size() == 2 && arguments[1] == "--markdown") {
    nibble::cli::print_reference();  // docs/reference/cli.md
    return 0;
  }
  if (name == "help" && arguments.size() == 2 && arguments[1] == "--man") {
    nibble::cli::print_manual();  // nibble(1)
    return 0;
  }
  if (name == "--help" || name == "-h" || name == "help") {
    std::puts("usage: nibble COMMAND [arguments]\n");
    for (const nibble::cli::Command& command : nibble::cli::commands())
      std::printf("  %-10s %s\n", command.name.data(), command.summary.data());
    std::puts("\nnibble COMMAND --help says more.");
    return 0;
  }
  const nibble::Result<const nibble::cli::Command*> command = nibble::cli::find_command(name);
  if (!command) return nibble::cli::fail(command.error());
  return (*command)->run(nibble::cli::Arguments(arguments).subspan(1));
}
