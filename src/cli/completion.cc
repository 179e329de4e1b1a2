// nibble completion bash|zsh|fish, and the manual page: both are made from the options structs, so
// a new flag is in them without anybody's doing.
#include <cstdio>

#include "base/format.h"
#include "base/text.h"
#include "base/version.h"
#include "cli/command.h"

namespace nibble::cli {
namespace {

struct CompletionFlags {
  std::string shell;
  template <class V>
  void visit(V& v) {
    v.positional("SHELL", &shell, "bash, zsh or fish");
  }
};

std::string joined(const std::vector<std::string>& list, std::string_view separator) {
  std::string out;
  for (const std::string& word : list) {
    if (!out.empty()) out += separator;
    out += word;
  }
  return out;
}

// For single quotes of any of the three shells.
std::string shell_quoted(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

// Without what zsh's _arguments would read as syntax.
std::string zsh_help(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string flag_names(const Described& command) {
  std::string out = "--help";
  for (const OptionSet::Flag& flag : command.flags) out += " " + flag.name;
  return out;
}

std::string command_names(const std::vector<Described>& all) {
  std::string out;
  for (const Described& command : all) out += (out.empty() ? "" : " ") + command.name;
  return out;
}

std::string bash(const std::vector<Described>& all) {
  std::string out =
      "# nibble's completions for bash: source <(nibble completion bash)\n_nibble() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  COMPREPLY=()\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n";
  out +=
      format("    mapfile -t COMPREPLY < <(compgen -W '{} help --version --help' -- \"$word\")\n",
             command_names(all));
  out += "    return\n  fi\n  case \"${COMP_WORDS[1]} $before\" in\n";
  for (const Described& command : all)
    for (const OptionSet::Flag& flag : command.flags)
      if (!flag.choices.empty())
        out += format(
            "    '{} {}') mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$word\"); return;;\n",
            command.name, flag.name, joined(flag.choices, " "));
  out += "  esac\n  case \"$word\" in\n    -*)\n      case \"${COMP_WORDS[1]}\" in\n";
  for (const Described& command : all)
    out += format("        {}) mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$word\"); return;;\n",
                  command.name, flag_names(command));
  out += "      esac;;\n";
  out += "  esac\n  mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n}\n";
  return out + "complete -o filenames -F _nibble nibble\n";
}

std::string zsh(const std::vector<Described>& all) {
  std::string out =
      "#compdef nibble\n# nibble's completions for zsh: put this into a file _nibble "
      "of $fpath\n_nibble() {\n  local -a commands\n  commands=(\n";
  for (const Described& command : all)
    out += "    " + shell_quoted(command.name + ":" + zsh_help(command.summary)) + "\n";
  out +=
      "  )\n  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n"
      "  local name=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $name in\n";
  for (const Described& command : all) {
    out += format("    {})\n      _arguments '*:file:_files'", command.name);
    for (const OptionSet::Flag& flag : command.flags) {
      std::string spec = flag.name + "[" + zsh_help(flag.help) + "]";
      if (!flag.choices.empty()) {
        spec += ":value:(" + joined(flag.choices, " ") + ")";
      } else if (flag.takes_value) {
        spec += ":value:_files";
      }
      out += " \\\n        " + shell_quoted(spec);
    }
    out += ";;\n";
  }
  return out + "  esac\n}\ncompdef _nibble nibble\n";
}

std::string fish(const std::vector<Described>& all) {
  std::string out = "# nibble's completions for fish: nibble completion fish | source\n";
  for (const Described& command : all)
    out += format("complete -c nibble -n __fish_use_subcommand -a {} -d {}\n", command.name,
                  shell_quoted(command.summary));
  for (const Described& command : all)
    for (const OptionSet::Flag& flag : command.flags) {
      out += format("complete -c nibble -n '__fish_seen_subcommand_from {}' -l {} -d {}",
                    command.name, flag.name.substr(2), shell_quoted(flag.help));
      if (flag.takes_value) out += " -r";
      if (!flag.choices.empty())
        out += format(" -f -a {}", shell_quoted(joined(flag.choices, " ")));
      out += "\n";
    }
  return out;
}

// Dashes stay dashes, and no line is taken for a request.
std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '-' || c == '\\') out += '\\';
    if (out.empty() && (c == '.' || c == '\'')) out += "\\&";
    out += c;
  }
  return out;
}

}  // namespace

int completion(Arguments arguments) {
  CompletionFlags flags;
  OptionSet set("nibble completion", "print the completions of a shell");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  std::string (*const make)(const std::vector<Described>&) = flags.shell == "bash"   ? bash
                                                             : flags.shell == "zsh"  ? zsh
                                                             : flags.shell == "fish" ? fish
                                                                                     : nullptr;
  if (!make)
    return fail(make_error(ErrorCode::kInvalidArgument,
                           "nibble completion: \"{}\" is not one of bash, zsh, fish", flags.shell));
  std::fputs(make(describe_commands()).c_str(), stdout);
  return 0;
}

void print_manual() {
  std::string out = format(
      ".TH NIBBLE 1 \"\" \"nibble {}\"\n.SH NAME\nnibble \\- quantize hybrid language models to 4 "
      "bits and serve them\n.SH SYNOPSIS\n.B nibble\n.I COMMAND\n[arguments]\n.SH COMMANDS\n",
      kVersion);
  for (const Described& command : describe_commands()) {
    out += format(".SS nibble {}\n{}\n", roff(command.name), roff(command.summary));
    for (const OptionSet::Flag& flag : command.flags) {
      out += format(".TP\n.B {}\n{}", roff(flag.name), roff(flag.help));
      if (!flag.choices.empty()) out += format(" ({})", roff(joined(flag.choices, ", ")));
      out += "\n";
    }
  }
  out +=
      ".SH EXIT STATUS\n0 success; 1 internal error; 2 bad usage or input; 3 does not fit; 4 "
      "validation failed; 5 interrupted, can be resumed.\n";
  std::fputs(out.c_str(), stdout);
}

}  // namespace nibble::cli
