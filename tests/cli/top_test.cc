// `nibble top`: rates from counters, one screen of 80 columns, and what it says when nobody
// answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "cli/command.h"
#include "cli/top_view.h"
#include "net/http_server.h"
#include "support/printed.h"

namespace nibble {
namespace {

using cli::top_line;
using cli::top_screen;
using cli::TopSample;
using test::call;
using test::Printed;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

Json status(int64_t generated, int64_t prompt, int64_t queries, int64_t hits) {
  return {{"model", "demo"},
          {"running", 3},
          {"waiting", 12},
          {"kv_usage", 0.5},
          {"preemptions", 1},
          {"generated_tokens", generated},
          {"prompt_tokens", prompt},
          {"prefix_cache_queries", queries},
          {"prefix_cache_hits", hits},
          {"state", "ready"},
          {"version", "1.2.3"},
          {"resident_bytes", int64_t{3} << 30},
          {"uptime_s", 7384}};
}

TEST(TopView, TwoAnswersMakeRates) {
  const TopSample sample{status(2'500'000, 40'000, 30'000, 12'000),
                         status(2'499'000, 10'000, 20'000, 3'000), 2};
  EXPECT_THAT(
      top_screen(sample, "http://127.0.0.1:8000"),
      ElementsAre("demo  http://127.0.0.1:8000  ready, up 2 h 3 min",
                  "  generated       500 tokens/s      2.5M in all",
                  "  prompts       15.0k tokens/s     40.0k in all",
                  "  requests   3 running, 12 waiting, 1 preempted so far",
                  "  KV cache   [###############...............] 50 %",
                  "  prefixes   [###########################...] 90 % of prompt tokens found",
                  "  process    3.0 GiB of host memory, version 1.2.3"));
  EXPECT_EQ(
      top_line(sample),
      "ready: 3 running, 12 waiting, generated 500 tokens/s, prompts 15.0k tokens/s, KV cache "
      "50 %, prefixes found 90 %");
}

TEST(TopView, TheFirstAnswerHasNoRates) {
  const TopSample sample{status(100, 50, 40, 10), Json(), 0};
  const std::vector<std::string> lines = top_screen(sample, "http://host:1");
  EXPECT_THAT(lines[1], HasSubstr("  - tokens/s"));
  EXPECT_THAT(lines[5], HasSubstr("25 %")) << "of all so far";
}

TEST(TopView, ARestartedServerIsNoNegativeRate) {
  const TopSample sample{status(5, 5, 0, 0), status(100, 100, 10, 5), 1};
  EXPECT_THAT(top_line(sample), AllOf(HasSubstr("generated - tokens/s"), HasSubstr("found -")));
}

TEST(TopView, ALoadingServerTellsLittle) {
  const TopSample sample{Json{{"state", "loading"}, {"uptime_s", 3}}, Json(), 0};
  const std::vector<std::string> lines = top_screen(sample, "http://host:1");
  EXPECT_THAT(lines, SizeIs(7)) << "the same height, to be drawn over";
  EXPECT_THAT(lines[0], HasSubstr("loading, up 3 s"));
  EXPECT_THAT(lines[4], HasSubstr("[..............................] -"));
}

TEST(TopView, LinesFitATerminalWhateverTheServerSays) {
  Json odd = status(1, 2, 3, 4);
  odd["model"] = std::string(70, 'm') + "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac";
  odd["kv_usage"] = 7.5;
  odd["running"] = "many";
  odd["version"] = "1\n\x1b[2J";
  odd["resident_bytes"] = nullptr;
  for (const std::string& line : top_screen({odd, Json(), 0}, "http://host:1")) {
    EXPECT_LE(line.size(), 80u) << line;
    EXPECT_TRUE(parse_json("\"" + line + "\"", "line")) << "cut inside a character: " << line;
  }
}

class Top : public testing::Test {
 protected:
  std::string serve(HttpServer::Handler handler) {
    HttpServerOptions options;
    options.port = 0;
    auto started = HttpServer::start(std::move(options), std::move(handler));
    EXPECT_TRUE(started) << started.error().message;
    server_ = std::make_unique<HttpServer>(std::move(started).value());
    return "http://127.0.0.1:" + std::to_string(server_->port());
  }
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Top, PrintsALineALookWhereThereIsNoTerminal) {
  std::atomic<int> looks = 0;
  const std::string url = serve([&](HttpRequest& request, HttpReply& reply) {
    EXPECT_EQ(request.path, "/status.json");
    EXPECT_EQ(request.headers.find("authorization")->second, "Bearer key");
    reply.send({.status = 200,
                .content_type = "application/json",
                .body = dump_json(status(100 * ++looks, 0, 0, 0))});
  });
  const Printed printed =
      call(cli::top, {url, "--count", "2", "--interval", "1", "--api-key", "key"});
  EXPECT_EQ(printed.exit, 0) << printed.err;
  EXPECT_EQ(looks, 2);
  EXPECT_EQ(std::count(printed.out.begin(), printed.out.end(), '\n'), 2);
  EXPECT_THAT(printed.out, HasSubstr("3 running, 12 waiting, generated - tokens/s"));
  EXPECT_THAT(printed.out, testing::ContainsRegex("generated [1-9][0-9]* tokens/s"));
}

TEST_F(Top, PrintsJson) {
  const std::string url = serve([](HttpRequest&, HttpReply& reply) {
    reply.send({.status = 200, .body = dump_json(status(1, 2, 3, 4))});
  });
  const Printed printed = call(cli::top, {url, "--count", "1", "--json"});
  EXPECT_EQ(printed.exit, 0);
  EXPECT_EQ(printed.out, dump_json(status(1, 2, 3, 4)) + "\n");
}

TEST_F(Top, SaysWhyThereIsNothingToSee) {
  const std::string locked =
      serve([](HttpRequest&, HttpReply& reply) { reply.send({.status = 401, .body = "{}"}); });
  EXPECT_THAT(call(cli::top, {locked}).err, HasSubstr("--api-key"));
  const std::string other =
      serve([](HttpRequest&, HttpReply& reply) { reply.send({.status = 404, .body = "{}"}); });
  EXPECT_THAT(call(cli::top, {other}).err, HasSubstr("not a nibble server?"));
  server_.reset();
  const Printed gone = call(cli::top, {other});
  EXPECT_NE(gone.exit, 0);
  EXPECT_THAT(gone.err, HasSubstr("is a server running there?"));
  EXPECT_EQ(call(cli::top, {"localhost"}).exit, 2);
}

}  // namespace
}  // namespace nibble
