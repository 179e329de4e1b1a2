// What a person sees when the input is wrong: one line that names the culprit, exit code 2, and
// nothing half-written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "base/file.h"
#include "cli/command.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

class BadInput : public testing::Test {
 protected:
  fs::path copy_model() {
    return test::copy_bundled_model("nibble-demo-14m", dir_.path() / "model");
  }
  static void write(const fs::path& path, std::string_view text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  static void replace(const fs::path& path, std::string_view from, std::string_view to) {
    std::string text = read_file(path).value();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write(path, text.replace(at, from.size(), to));
  }
  struct Outcome {
    int exit;
    std::string error;
  };
  template <class Command>
  static Outcome run(Command command, const std::vector<std::string>& arguments) {
    testing::internal::CaptureStderr();
    testing::internal::CaptureStdout();
    const int exit = command(cli::Arguments(arguments));
    testing::internal::GetCapturedStdout();
    return {exit, testing::internal::GetCapturedStderr()};
  }
  static void expect_refused(const Outcome& outcome, std::string_view part) {
    EXPECT_EQ(outcome.exit, 2) << outcome.error;
    // The last line is the error; log lines may stand before it.
    std::string text = outcome.error;
    ASSERT_TRUE(text.ends_with('\n')) << text;
    text.pop_back();
    const std::string last = text.substr(text.rfind('\n') + 1);
    EXPECT_TRUE(last.starts_with("nibble: ")) << last;
    EXPECT_THAT(last, testing::HasSubstr(part));
  }
  test::TempDir dir_;
};

TEST_F(BadInput, InspectNamesWhatIsWrongWithACheckpoint) {
  const std::string shard = "model-00002-of-00003.safetensors";
  expect_refused(run(cli::inspect, {(dir_.path() / "nowhere").string()}), "nowhere");
  fs::create_directory(dir_.path() / "empty");
  expect_refused(run(cli::inspect, {(dir_.path() / "empty").string()}), "config.json");

  const fs::path model = copy_model();
  const std::string bytes = read_file(model / shard).value();
  write(model / shard, bytes.substr(0, bytes.size() / 2));
  expect_refused(run(cli::inspect, {model.string()}), shard);
  write(model / shard, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
  expect_refused(run(cli::inspect, {model.string()}), "git lfs pull");
  fs::remove(model / shard);
  expect_refused(run(cli::inspect, {model.string()}), shard);
}

TEST_F(BadInput, RunNamesTheFieldOfTheConfig) {
  const fs::path model = copy_model();
  const auto ask = [&] { return run(cli::run, {model.string(), "-p", "hi"}); };
  const std::string config = read_file(model / "config.json").value();
  const auto restore = [&] { write(model / "config.json", config); };

  replace(model / "config.json", "Qwen3_5ForCausalLM", "MambaForCausalLM");
  expect_refused(ask(), "MambaForCausalLM");
  restore();
  replace(model / "config.json", "\"hidden_size\": 256", "\"hidden_size\": 128");
  expect_refused(ask(), "[");  // both shapes
  restore();
  replace(model / "config.json", "\"hidden_size\": 256", "\"hidden_size\": \"256\"");
  expect_refused(ask(), "hidden_size");
  restore();
  replace(model / "config.json", "\"num_hidden_layers\": ", "\"num_hidden_layers\": 1");
  expect_refused(ask(), "layer_types");
  restore();
  // A tensor that the architecture needs and no shard holds.
  const std::string index = read_file(model / "model.safetensors.index.json").value();
  replace(model / "model.safetensors.index.json", "model.norm.weight", "model.norm.wait");
  expect_refused(ask(), "model.norm.wait");
  write(model / "model.safetensors.index.json", index);
  for (const auto& entry : fs::directory_iterator(model)) {
    const std::string bytes = entry.path().extension() == ".safetensors"
                                  ? read_file(entry.path()).value()
                                  : std::string();
    if (bytes.find("\"model.norm.weight\"") == std::string::npos) continue;
    replace(entry.path(), "model.norm.weight", "model.morn.weight");
    replace(model / "model.safetensors.index.json", "model.norm.weight", "model.morn.weight");
    expect_refused(ask(), "model.norm.weight");
    write(entry.path(), bytes);
    write(model / "model.safetensors.index.json", index);
  }

  replace(model / "config.json", "{", "{\"quantization_config\": {\"quant_method\": \"gguf\"},");
  expect_refused(ask(), "gguf");
  write(model / "config.json", "{\"architectures\": ");
  expect_refused(ask(), "config.json");
}

TEST_F(BadInput, RunNamesABrokenTokenizerOrTemplate) {
  const fs::path model = copy_model();
  const auto ask = [&] { return run(cli::run, {model.string(), "-p", "hi"}); };
  const std::string tokenizer = read_file(model / "tokenizer.json").value();
  write(model / "tokenizer.json", tokenizer.substr(0, tokenizer.size() / 2));
  expect_refused(ask(), "tokenizer.json");
  write(model / "tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
  expect_refused(ask(), "Unigram");
  write(model / "tokenizer.json", tokenizer);
  write(model / "chat_template.jinja", "{% for m in messages %}");
  expect_refused(ask(), "chat_template.jinja");
  fs::remove(model / "chat_template.jinja");
  expect_refused(ask(), "chat_template");
}

TEST_F(BadInput, QuantizeLeavesNothingBehind) {
  const fs::path model = copy_model();
  const std::string recipe = (fs::path(NIBBLE_SOURCE_DIR) / "recipes/w4a16-rtn.yaml").string();
  const fs::path out = dir_.path() / "out";
  const auto quantize = [&](const fs::path& to, const std::string& with) {
    return run(cli::quantize, {model.string(), to.string(), "--recipe", with});
  };
  fs::create_directory(out);
  write(out / "precious.txt", "x");
  expect_refused(quantize(out, recipe), "out");
  EXPECT_EQ(read_file(out / "precious.txt").value(), "x");
  fs::remove_all(out);

  expect_refused(quantize("/proc/nibble/out", recipe), "/proc/nibble");
  const fs::path typo = dir_.path() / "typo.yaml";
  std::string text = read_file(recipe).value();
  const size_t at = text.find("targets");
  ASSERT_NE(at, std::string::npos);
  write(typo, text.replace(at, 7, "tragets"));
  expect_refused(quantize(out, typo.string()), "targets");
  EXPECT_FALSE(fs::exists(out));

  // A NaN weight in a module to quantize: found, named, and no directory is left.
  const std::string shard = "model-00001-of-00003.safetensors";
  std::string bytes = read_file(model / shard).value();
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  for (size_t i = 8 + header; i + 1 < bytes.size(); i += 2) {
    bytes[i] = '\xff';
    bytes[i + 1] = '\x7f';
  }
  write(model / shard, bytes);
  expect_refused(quantize(out, recipe), "NaN");
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    EXPECT_FALSE(entry.path().filename().string().starts_with("out")) << entry.path();
}

TEST_F(BadInput, FlagsNameTheNearestKnownOne) {
  expect_refused(run(cli::serve, {"model", "--tool-call-praser", "x"}), "tool-call-parser");
  expect_refused(run(cli::serve, {"model", "--tool-call-parser", "qwen9"}), "qwen3_coder");
  expect_refused(run(cli::serve, {"model", "--port", "high"}), "port");
  expect_refused(run(cli::serve, {"model", "--cudagraph-capture-sizes", "1", "0"}),
                 "0 is no batch");
  expect_refused(run(cli::serve, {"model", "--host", "0.0.0.0"}), "--api-key");
  expect_refused(run(cli::quantize, {}), "MODEL");
}

}  // namespace
}  // namespace nibble
