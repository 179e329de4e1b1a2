// The doorkeepers of outside libraries: what they promise beyond the library they keep.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <numeric>

#include "base/file.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/host_limits.h"
#include "base/json.h"
#include "base/options.h"
#include "base/pattern.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "base/yaml.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

TEST(Json, PrintsAsPythonDoes) {
  const Json value = {{"b", 1e-7}, {"a", {5.0, 1e16, 123456.75, 1e22, -0.0}}, {"text", "ü\n\"\\"}};
  EXPECT_EQ(dump_json_python(value),
            R"({"b": 1e-07, "a": [5.0, 1e+16, 123456.75, 1e+22, -0.0], "text": "ü\n\"\\"})");
}

TEST(Json, RefusesWhatItCannotKeep) {
  for (const char* text :
       {"", "{", "[1,]", "{\"a\":1,\"a\":2}", "1 2", "\"\xff\"", "1e999", "nan", "[[[[[[[[[["})
    EXPECT_FALSE(parse_json(text, "test")) << text;
  EXPECT_FALSE(parse_json("[[[1]]]", "test", {.max_depth = 2}));
  EXPECT_TRUE(parse_json("[[[1]]]", "test", {.max_depth = 3}));
  EXPECT_FALSE(parse_json("[1, 2]", "test", {.max_bytes = 5}));
  EXPECT_TRUE(parse_json("{\"a\":1,\"a\":2}", "test", {.allow_duplicate_keys = true}));
  const Result<Json> ordered = parse_json(R"({"z":1,"a":{"y":2,"b":3}})", "test");
  ASSERT_TRUE(ordered);
  EXPECT_EQ(dump_json(*ordered), R"({"z":1,"a":{"y":2,"b":3}})");
}

TEST(Yaml, ReadsScalarsAsPyYamlAndWritesThemBack) {
  const Result<Json> value = parse_yaml(
      "a: 1\nb: 1.5\nc: yes\nd: 'yes'\ne: null\nf: ['re:.*lm_head', \"x\"]\ng: {h: 1e-5}\n",
      "test");
  ASSERT_TRUE(value) << value.error().message;
  EXPECT_TRUE((*value)["a"].is_number_integer());
  EXPECT_EQ((*value)["b"], 1.5);
  EXPECT_EQ((*value)["c"], true);
  EXPECT_EQ((*value)["d"], "yes");
  EXPECT_TRUE((*value)["e"].is_null());
  EXPECT_EQ((*value)["f"][0], "re:.*lm_head");
  const Result<Json> again = parse_yaml(dump_yaml(*value), "test");
  ASSERT_TRUE(again) << dump_yaml(*value);
  EXPECT_EQ(dump_json(*again), dump_json(*value));
}

TEST(Yaml, RefusesBombsAndDuplicates) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string old = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + old;
    for (int j = 0; j < 9; ++j) bomb += ", " + old;
    bomb += "]\n";
  }
  EXPECT_FALSE(parse_yaml(bomb, "test"));
  for (const char* text : {"a: 1\na: 2\n", "a: [1\n", "a: !!python/object:x {}\n", "? [1]\n: 2\n"})
    EXPECT_FALSE(parse_yaml(text, "test")) << text;
}

TEST(Pattern, MatchesFromTheStartAsPythonDoes) {
  const Pattern pattern = Pattern::compile(".*linear_attn.*").value();
  EXPECT_TRUE(pattern.matches_start_of("model.layers.0.linear_attn.in_proj_a"));
  EXPECT_FALSE(pattern.matches_start_of("model.layers.0.self_attn.q_proj"));
  const Pattern prefix = Pattern::compile("model.visual").value();
  EXPECT_TRUE(prefix.matches_start_of("model.visual.blocks.0"));
  EXPECT_FALSE(prefix.matches_start_of("x.model.visual"));
  const Pattern whole = Pattern::compile(".*mlp.gate$").value();
  EXPECT_TRUE(whole.matches_start_of("layers.1.mlp.gate"));
  EXPECT_FALSE(whole.matches_start_of("layers.1.mlp.gate_proj"));
  EXPECT_FALSE(Pattern::compile("(?=a)"));
  EXPECT_FALSE(Pattern::compile("("));
}

TEST(Text, TheNearestNameIsNearOrNone) {
  const std::vector<std::string> names = {"targets", "ignore", "observer"};
  EXPECT_EQ(nearest_name("tragets", names), "targets");
  EXPECT_EQ(nearest_name("obsever", names), "observer");
  EXPECT_EQ(nearest_name("zzz", names), "");
}

TEST(Hash, EqualsTheStandardsExamples) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 pieces;
  pieces.update("a");
  pieces.update("bc");
  EXPECT_EQ(pieces.finish(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(pieces.finish(), sha256_hex(""));
}

TEST(ThreadPool, EveryIndexOnceWhateverTheGrain) {
  ThreadPool pool(4);
  for (const size_t count : {0, 1, 3, 4, 5, 63, 1000}) {
    for (const size_t grain : {1, 7, 64, 5000}) {
      std::vector<std::atomic<int>> seen(count);
      pool.parallel_for(count, grain, [&](size_t begin, size_t end) {
        ASSERT_LE(end, count);
        for (size_t i = begin; i < end; ++i)
          // A nested loop runs inline instead of waiting for itself.
          pool.parallel_for(1, 1, [&](size_t, size_t) { ++seen[i]; });
      });
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(seen[i], 1) << i << " of " << count << ", grain " << grain;
    }
  }
}

TEST(ThreadPool, PiecesAreTheSameWhateverTheThreads) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (const size_t count : {0, 1, 64, 130}) {
      std::vector<std::atomic<size_t>> ends(count);  // by where a piece begins
      pool.for_pieces(count, 64, [&](size_t begin, size_t end) { ends[begin] = end; });
      for (size_t i = 0; i < count; ++i)
        EXPECT_EQ(ends[i], i % 64 != 0 ? 0 : std::min(i + 64, count)) << i << " of " << count;
    }
  }
}

TEST(Options, CountsTakeDecimalAndBinarySuffixes) {
  EXPECT_EQ(parse_count("4096").value(), 4096);
  EXPECT_EQ(parse_count("25.6k").value(), 25'600);
  EXPECT_EQ(parse_count("16K").value(), 16'384);
  EXPECT_EQ(parse_count("1M").value(), 1'048'576);
  for (const char* text : {"", "x", "1.5", "-", "1kk", "99999999999999999999", "1e400g"})
    EXPECT_FALSE(parse_count(text)) << text;
}

TEST(Options, ACountMayBeAuto) {
  int context = 7;
  const auto parse = [&](const char* value) {
    OptionSet set("nibble test", "Test.");
    set.option("max-model-len", &context, "length");
    const std::string arguments[] = {"--max-model-len", value};
    return set.parse(arguments).has_value();
  };
  EXPECT_TRUE(parse("auto"));
  EXPECT_EQ(context, 0);
  EXPECT_TRUE(parse("16K"));
  EXPECT_EQ(context, 16'384);
  EXPECT_TRUE(parse("-1"));
  EXPECT_EQ(context, -1);
  EXPECT_FALSE(parse("automatic"));
}

TEST(Options, DashesUnderscoresNegationAndMistakes) {
  std::string model;
  int max_model_len = 7;
  bool stream = true;
  const auto parse = [&](std::vector<std::string> arguments) {
    OptionSet set("nibble test", "Test.");
    set.positional("model", &model, "model");
    set.option("max-model-len", &max_model_len, "length");
    set.option("stream", &stream, "stream");
    return set.parse(arguments);
  };
  EXPECT_TRUE(parse({"m", "--max_model_len=16K", "--no-stream"}));
  EXPECT_EQ(model, "m");
  EXPECT_EQ(max_model_len, 16'384);
  EXPECT_FALSE(stream);
  const auto unknown = parse({"m", "--max-model-length", "1"});
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, testing::HasSubstr("--max-model-len"));
  EXPECT_FALSE(parse({"m", "--max-model-len", "99999999999"}));
  EXPECT_FALSE(parse({"--stream"}));
}

TEST(Options, PrefixesRepeatsAliasesJsonAndFlagsWithoutEffect) {
  struct Values {
    int max_num_seqs = 1;
    int max_model_len = 5;
    std::vector<std::string> names;
    Json config = Json::object();
    std::string parser;
    bool eager = true;
  };
  OptionSet::Outcome outcome;
  const auto parse = [&](std::vector<std::string> arguments) -> Result<Values> {
    Values values;
    OptionSet set("nibble test", "Test.");
    set.option("max-num-seqs", &values.max_num_seqs, "sequences", {.low = 1});
    set.option("max-model-len", &values.max_model_len, "length");
    set.option("served-model-name", &values.names, "names");
    set.option("compilation-config", &values.config, "graphs");
    set.alias("cc", "compilation-config");
    set.option("parser", &values.parser, "parser", {"qwen3_coder", "hermes"});
    set.option("eager", &values.eager, "eager");
    set.no_effect("swap-space level", true);
    set.alias("O", "level");
    set.no_effect("trust-remote-code", false);
    NB_TRY(outcome, set.parse(arguments));
    return values;
  };
  Values values = parse({"--max-num", "3", "--served-model-name", "a", "b", "--no-eag"}).value();
  EXPECT_EQ(values.max_num_seqs, 3);
  EXPECT_THAT(values.names, testing::ElementsAre("a", "b"));
  EXPECT_FALSE(values.eager);

  values = parse({"--max_num_seqs", "3", "--max-num-seqs", "4", "--max-model-len", "auto"}).value();
  EXPECT_EQ(values.max_num_seqs, 4);
  EXPECT_EQ(values.max_model_len, 0);
  ASSERT_EQ(outcome.warnings.size(), 1u);
  EXPECT_THAT(outcome.warnings[0], testing::HasSubstr("--max-num-seqs"));

  values = parse({"-cc", R"({"mode": 3, "pass": {"a": 1}})", "-cc.pass.b", "2",
                  "--compilation-config.cudagraph_mode", "piecewise", "-cc.sizes+", "1",
                  "-cc.sizes+", "2"})
               .value();
  EXPECT_EQ(values.config, parse_json(R"({"mode": 3, "pass": {"a": 1, "b": 2},
                                          "cudagraph_mode": "piecewise", "sizes": [1, 2]})",
                                      "json")
                               .value());

  values =
      parse({"-O3", "--swap-space", "4", "--trust-remote-code", "--max-num-seqs", "2"}).value();
  EXPECT_THAT(outcome.ignored,
              testing::UnorderedElementsAre("--level", "--swap-space", "--trust-remote-code"));

  for (const auto& [argument, part] : std::vector<std::pair<std::string, std::string>>{
           {"--max=1", "--max-num-seqs or --max-model-len"},
           {"--parser=hermse", "did you mean hermes?"},
           {"--max-num-seqs=0", "at least 1"},
           {"--compilation-config=[1]", "not a JSON object"},
           {"--max-num-seqs.x=1", "has no members"},
           {"--max-num-seqs", "a value is missing"},
           {"stray", "unexpected argument"}}) {
    const Result<Values> refused = parse({argument});
    ASSERT_FALSE(refused) << argument;
    EXPECT_THAT(refused.error().message, testing::HasSubstr(part));
  }
}

TEST(Options, TheCommandLineGoesBeforeTheFileAndTheFileBeforeTheEnvironment) {
  const test::TempDir dir;
  const fs::path file = dir.path() / "serve.yaml";
  ASSERT_TRUE(write_file_durably(file,
                                 "port: 1\nhost_name: file\nserved-model-name: [a, b]\n"
                                 "eager: false\n"));
  int port = 0;
  std::string host;
  std::string key;
  std::vector<std::string> names;
  bool eager = true;
  OptionSet set("nibble test", "Test.");
  set.config_file("config");
  set.environment("NIBBLE_OPTIONS_TEST_");
  set.option("port", &port, "port");
  set.option("host-name", &host, "host");
  set.option("key", &key, "key");
  set.environment("key", "OTHER_OPTIONS_TEST_KEY");
  set.option("served-model-name", &names, "names");
  set.option("eager", &eager, "eager");
  ::setenv("NIBBLE_OPTIONS_TEST_HOST_NAME", "environment", 1);
  ::setenv("OTHER_OPTIONS_TEST_KEY", "secret", 1);
  const std::vector<std::string> arguments = {"--config", file.string(), "--port", "2"};
  const auto outcome = set.parse(arguments);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(port, 2);
  EXPECT_EQ(host, "file");
  EXPECT_EQ(key, "secret");
  EXPECT_THAT(names, testing::ElementsAre("a", "b"));
  EXPECT_FALSE(eager);
}

// A machine of 64 GiB, 40 of them free, with the given files below /.
class Machine {
 public:
  Machine() {
    write("proc/meminfo",
          "MemTotal:       67108864 kB\nMemFree: 1 kB\nHugePages_Total:       0\n"
          "MemAvailable:   41943040 kB\n");
  }
  void write(const std::string& path, const std::string& text) {
    const fs::path file = dir_.path() / path;
    fs::create_directories(file.parent_path());
    ASSERT_TRUE(write_file_durably(file, text).has_value());
  }
  HostLimits limits() const { return host_limits(dir_.path()); }

 private:
  test::TempDir dir_;
};

constexpr size_t kGiB = size_t{1} << 30;

TEST(HostLimits, AreTheMachinesWithoutControlGroups) {
  Machine machine;
  HostLimits limits = machine.limits();
  EXPECT_EQ(limits.memory.total, 64 * kGiB);
  EXPECT_EQ(limits.memory.free, 40 * kGiB);
  EXPECT_FALSE(limits.memory_is_limit);
  EXPECT_EQ(usable_threads(12, limits), 12);
  machine.write("proc/self/cgroup", "0::/user.slice\n");
  machine.write("sys/fs/cgroup/user.slice/memory.max", "max\n");
  machine.write("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n");
  limits = machine.limits();
  EXPECT_EQ(limits.memory.total, 64 * kGiB);
  EXPECT_FALSE(limits.memory_is_limit);
  EXPECT_EQ(usable_threads(12, limits), 12);
  EXPECT_EQ(usable_threads(0, limits), 1);  // hardware_concurrency() may not know
}

TEST(HostLimits, OfVersion2HoldForAllBelow) {
  Machine machine;
  machine.write("proc/self/cgroup", "0::/system.slice/nibble.service\n");
  const std::string slice = "sys/fs/cgroup/system.slice/";
  machine.write(slice + "memory.max", std::to_string(8 * kGiB));
  machine.write(slice + "memory.current", std::to_string(7 * kGiB));
  machine.write(slice + "memory.stat",
                format("anon 1\nactive_file {}\ninactive_file {}\n", kGiB, 2 * kGiB));
  machine.write(slice + "cpu.max", "150000 100000\n");
  machine.write(slice + "nibble.service/memory.max", std::to_string(16 * kGiB));
  machine.write(slice + "nibble.service/memory.current", std::to_string(kGiB));
  machine.write(slice + "nibble.service/cpu.max", "400000 100000\n");
  const HostLimits limits = machine.limits();
  EXPECT_EQ(limits.memory.total, 8 * kGiB);
  EXPECT_EQ(limits.memory.free, 4 * kGiB);  // 7 are held, 3 of them in files' pages
  EXPECT_TRUE(limits.memory_is_limit);
  EXPECT_EQ(usable_threads(12, limits), 2);
  EXPECT_EQ(usable_threads(1, limits), 1);
}

TEST(HostLimits, OfVersion1HoldInsideAContainerToo) {
  Machine machine;
  // The container's own group is the root of its mount.
  machine.write("proc/self/cgroup", "4:memory:/docker/4711\n3:cpu,cpuacct:/docker/4711\n0::/\n");
  machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", std::to_string(2 * kGiB));
  machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", std::to_string(kGiB));
  machine.write("sys/fs/cgroup/memory/memory.stat",
                format("active_file 7\ntotal_inactive_file {}\n", kGiB / 2));
  machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000");
  machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  HostLimits limits = machine.limits();
  EXPECT_EQ(limits.memory.total, 2 * kGiB);
  EXPECT_EQ(limits.memory.free, 2 * kGiB - kGiB / 2);
  EXPECT_EQ(usable_threads(64, limits), 3);
  machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
  limits = machine.limits();
  EXPECT_EQ(limits.memory.total, 64 * kGiB);
  EXPECT_EQ(limits.memory.free, 40 * kGiB);
  EXPECT_EQ(usable_threads(64, limits), 64);
}

}  // namespace
}  // namespace nibble
