// Is a checkpoint whole, and does it compute? Manifest, tensors, values, a forward pass, and, when
// the parent is given, how far the two are apart.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "eval/fidelity.h"

namespace nibble {

struct VerifyOptions {
  fs::path parent;  // empty: no comparison
  // Token ids to run; empty: ids spread over the vocabulary, which any model can take.
  std::vector<std::vector<int32_t>> samples;
  int num_threads = 0;
};

struct VerifyReport {
  int num_files = 0;  // whose hash was checked
  int num_tensors = 0;
  bool has_manifest = false;
  bool compared = false;
  FidelityReport fidelity;  // when compared
  std::vector<std::string>
      problems;  // one line each: file, tensor, what is wrong; empty: all is well
};

// Problems of the checkpoint are in the report; an error means that the check could not be made.
Result<VerifyReport> verify_checkpoint(const fs::path& path, const VerifyOptions& options);

}  // namespace nibble
