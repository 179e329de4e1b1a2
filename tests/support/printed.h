// What a subcommand prints and returns, run in this process.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cli/command.h"

namespace nibble::test {

struct Printed {
  int exit = 0;
  std::string out, err;
};

inline Printed call(int (*command)(cli::Arguments), const std::vector<std::string>& arguments) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Printed printed;
  printed.exit = command(arguments);
  printed.out = testing::internal::GetCapturedStdout();
  printed.err = testing::internal::GetCapturedStderr();
  return printed;
}

}  // namespace nibble::test
