// `nibble config show`: each setting of a command, its value and where that comes from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "base/json.h"
#include "cli/command.h"
#include "support/printed.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using test::call;
using test::Printed;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

Printed show(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "show");
  return call(cli::config, arguments);
}

TEST(Config, NamesTheSourceOfEachSetting) {
  const test::TempDir dir;
  const std::string file = (dir.path() / "serve.yaml").string();
  std::ofstream(file) << "max-num-seqs: 8\nport: 8100\nswap-space: 4\n";
  ASSERT_EQ(setenv("VLLM_API_KEY", "do-not-show-me", 1), 0);
  ASSERT_EQ(setenv("NIBBLE_HOST", "0.0.0.0", 1), 0);
  const Printed printed = show({"serve", "--config", file, "--port", "9000", "--no-page"});
  ASSERT_EQ(unsetenv("VLLM_API_KEY"), 0);
  ASSERT_EQ(unsetenv("NIBBLE_HOST"), 0);
  ASSERT_EQ(printed.exit, 0) << printed.err;
  EXPECT_THAT(printed.out, ContainsRegex("\nport +9000 +command line\n"));
  EXPECT_THAT(printed.out, ContainsRegex("\npage +off +command line\n"));
  EXPECT_THAT(printed.out, ContainsRegex("\nmax-num-seqs +8 +[^ ]*serve.yaml\n"));
  EXPECT_THAT(printed.out, ContainsRegex("\nhost +0.0.0.0 +NIBBLE_HOST\n"));
  EXPECT_THAT(printed.out, ContainsRegex("\napi-key +\\(hidden\\) +VLLM_API_KEY\n"));
  EXPECT_THAT(printed.out, ContainsRegex("\ninsecure +off +default\n"));
  EXPECT_THAT(printed.out, HasSubstr("without effect here: --swap-space\n"));
  EXPECT_THAT(printed.out, Not(HasSubstr("do-not-show-me")));
}

TEST(Config, RunsNothing) {
  // A server would open its port, and refuse a model that is not there.
  const Printed printed = show({"serve", "/no/such/model"});
  EXPECT_EQ(printed.exit, 0);
  EXPECT_THAT(printed.out, HasSubstr("/no/such/model"));
  EXPECT_EQ(show({"quantize"}).exit, 0) << "what is not said yet may be missing";
}

TEST(Config, KnowsTheCommandsOfACommand) {
  const Printed printed = show({"bench", "serve", "--num-prompts", "5"});
  EXPECT_EQ(printed.exit, 0);
  EXPECT_THAT(printed.out, ContainsRegex("\nnum-prompts +5 +command line\n"));
}

TEST(Config, EveryCommandHasSettings) {
  for (const cli::Command& command : cli::commands()) {
    if (command.name == "bench") continue;  // says which are its commands
    const cli::Effective effective = cli::effective_settings(command, {});
    EXPECT_EQ(effective.error, 0) << command.name;
    EXPECT_FALSE(effective.settings.all.empty()) << command.name;
  }
}

TEST(Config, PrintsJson) {
  const Printed printed = show({"--json", "serve", "--port", "9000"});
  const Result<Json> json = parse_json(printed.out, "config");
  ASSERT_TRUE(json) << json.error().message;
  bool found = false;
  for (const Json& one : (*json)["settings"])
    if (one["name"] == "port")
      found = one == Json{{"name", "port"}, {"value", "9000"}, {"source", "command line"}};
  EXPECT_TRUE(found) << printed.out;
}

TEST(Config, SaysWhatIsWrongAsTheCommandWould) {
  const Printed flag = show({"serve", "--prt", "1"});
  EXPECT_EQ(flag.exit, 2);
  EXPECT_THAT(flag.err, HasSubstr("did you mean --port?"));
  const Printed command = show({"srve"});
  EXPECT_EQ(command.exit, 2);
  EXPECT_THAT(command.err, HasSubstr("did you mean serve?"));
  const Printed action = call(cli::config, {"list", "serve"});
  EXPECT_EQ(action.exit, 2);
  EXPECT_THAT(action.err, HasSubstr("nibble config show COMMAND"));
}

TEST(Config, HelpOfTheCommandIsHelp) {
  const Printed printed = show({"serve", "--help"});
  EXPECT_EQ(printed.exit, 0);
  EXPECT_THAT(printed.out, HasSubstr("usage: nibble serve"));
  EXPECT_THAT(printed.out, Not(HasSubstr("command line\n")));
}

}  // namespace
}  // namespace nibble
