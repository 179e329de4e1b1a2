// nibble card DIR: writes the checkpoint's README.md.
#include "eval/card.h"

#include <cstdio>

#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"

namespace nibble::cli {
namespace {

struct CardFlags {
  std::string path;
  std::string base_model;
  std::string compare_with;
  std::string fidelity;
  bool overwrite = false;
  bool print = false;

  template <class V>
  void visit(V& v) {
    v.positional("DIR", &path, "checkpoint that nibble quantize wrote");
    v.option("base-model", &base_model, "name of the parent, as on the hub");
    v.option("compare-with", &compare_with,
             "an older quant of the same parent, to say what changed");
    v.option("fidelity", &fidelity, "file with the output of nibble fidelity --json");
    v.option("overwrite", &overwrite, "replace a README.md that is there");
    v.option("print", &print, "print the card instead of writing it");
  }
};

Status write_card(const CardFlags& flags) {
  CardOptions options;
  options.base_model = flags.base_model;
  options.compare_with = flags.compare_with;
  if (!flags.fidelity.empty()) {
    NB_TRY(const std::string text, read_file(flags.fidelity));
    NB_TRY(options.fidelity, parse_json(text, flags.fidelity));
  }
  NB_TRY(const ModelCard card, make_model_card(flags.path, options));
  for (const std::string& warning : card.warnings) log_warning("{}", warning);
  if (flags.print) {
    std::fputs(card.text.c_str(), stdout);
    return {};
  }
  const fs::path readme = fs::path(flags.path) / "README.md";
  if (fs::exists(readme) && !flags.overwrite)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: exists already; use --overwrite to replace it or --print to look",
                      readme.string());
  NB_TRY_STATUS(write_file_durably(readme, card.text));
  std::printf("wrote %s\n", readme.c_str());
  return {};
}

}  // namespace

int card(Arguments arguments) {
  CardFlags flags;
  OptionSet set("nibble card", "write the model card of a quantized checkpoint");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Status status = write_card(flags);
  return status ? 0 : fail(status.error());
}

}  // namespace nibble::cli
