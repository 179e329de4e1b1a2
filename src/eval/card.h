// The model card (README.md) of a quantized checkpoint, from what its files say; every figure in it
// was measured or is computed from the shapes.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "base/result.h"

namespace nibble {

struct CardOptions {
  std::string base_model;  // name of the parent; empty: the report's
  fs::path compare_with;   // an older quant of the same parent; empty: none
  Json fidelity;           // what `nibble fidelity --json` printed; null: left out
};

struct ModelCard {
  std::string text;
  std::vector<std::string> warnings;  // when more than one thing differs from compare_with
};

// kNotFound / kInvalidArgument when the directory is no quantized checkpoint of nibble's.
Result<ModelCard> make_model_card(const fs::path& path, const CardOptions& options);

}  // namespace nibble
