// What follows from the facts about a machine: each finding with its consequence and what to do.
#pragma once

#include <string>
#include <vector>

#include "cli/machine.h"

namespace nibble::cli {

struct Finding {
  bool is_problem = false;  // something that is there does not work; else only worth knowing
  std::string found;
  std::string consequence;
  std::string fix;  // "": none, or `found` says it
};

// Problems first.
std::vector<Finding> findings_of(const Machine& machine);

}  // namespace nibble::cli
