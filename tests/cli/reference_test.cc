// docs/reference/cli.md is what the options structs say.
#include <gtest/gtest.h>

#include "base/file.h"
#include "cli/command.h"

namespace nibble {
namespace {

TEST(Reference, ThePageIsWhatTheOptionsStructsSay) {
  testing::internal::CaptureStdout();
  cli::print_reference();
  const std::string printed = testing::internal::GetCapturedStdout();
  const Result<std::string> page = read_file(fs::path(NIBBLE_SOURCE_DIR) / "docs/reference/cli.md");
  ASSERT_TRUE(page) << page.error().message;
  EXPECT_EQ(*page, printed) << "run: build/release/nibble help --markdown > docs/reference/cli.md";
  for (const cli::Command& command : cli::commands())
    EXPECT_NE(printed.find("nibble " + std::string(command.name)), std::string::npos);
}

}  // namespace
}  // namespace nibble
