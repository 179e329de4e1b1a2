// nibble config show COMMAND ...: what a command would take for each of its settings, and where
// that comes from.
#include <cstdio>

#include "base/format.h"
#include "base/json.h"
#include "cli/command.h"

namespace nibble::cli {
namespace {

struct ConfigFlags {
  std::string action;
  std::string command;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("ACTION", &action, "show");
    v.positional("COMMAND", &command, "with its own arguments behind it: serve --config FILE");
    v.option("json", &json, "print JSON; before COMMAND");
  }
};

// As many of the arguments as are this command's own: up to COMMAND.
size_t num_own(Arguments arguments) {
  size_t words = 0;
  for (size_t i = 0; i < arguments.size(); ++i)
    if (!arguments[i].starts_with("-") && ++words == 2) return i + 1;
  return arguments.size();
}

void print(const OptionSet::Settings& settings) {
  size_t name_width = 0;
  size_t value_width = 0;
  constexpr size_t kWidestValue = 40;  // longer ones push their source to the right
  for (const OptionSet::Given& one : settings.all) {
    name_width = std::max(name_width, one.name.size());
    if (one.value.size() <= kWidestValue) value_width = std::max(value_width, one.value.size());
  }
  for (const OptionSet::Given& one : settings.all)
    std::printf("%-*s  %-*s  %s\n", static_cast<int>(name_width), one.name.c_str(),
                static_cast<int>(value_width), one.value.empty() ? "-" : one.value.c_str(),
                one.source.c_str());
  if (settings.outcome.ignored.empty()) return;
  std::printf("\naccepted, without effect here: %s\n",
              format("{}", join(settings.outcome.ignored, ", ")).c_str());
}

Json as_json(const OptionSet::Settings& settings) {
  Json all = Json::array();
  for (const OptionSet::Given& one : settings.all)
    all.push_back({{"name", one.name}, {"value", one.value}, {"source", one.source}});
  return {{"settings", std::move(all)}, {"without_effect", settings.outcome.ignored}};
}

}  // namespace

int config(Arguments arguments) {
  const size_t own = num_own(arguments);
  ConfigFlags flags;
  OptionSet set("nibble config", "what a command's flags, files and variables come to");
  if (const Parsed parsed = parse(set, flags, arguments.first(own)); !parsed.ok) return parsed.exit;
  if (flags.action != "show")
    return fail(make_error(ErrorCode::kInvalidArgument,
                           "nibble config {}: there is only: nibble config show COMMAND ...",
                           flags.action));
  const Result<const Command*> command = find_command(flags.command);
  if (!command) return fail(command.error());
  const Effective effective = effective_settings(**command, arguments.subspan(own));
  if (effective.error != 0 || effective.settings.all.empty()) return effective.error;  // or help
  if (flags.json) {
    std::fputs(dump_json_pretty(as_json(effective.settings)).c_str(), stdout);
  } else {
    print(effective.settings);
  }
  return 0;
}

}  // namespace nibble::cli
