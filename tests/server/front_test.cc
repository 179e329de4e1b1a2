// Keys, per-client limits, CORS, readiness, the page's policy and the access log, without sockets.
#include "server/front.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "server/api_server.h"
#include "server/web_page.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Keeps the one answer.
class KeptReply final : public HttpReply {
 public:
  void send(HttpResponse given) override { response = std::move(given); }
  void begin_stream(HttpResponse head) override { response = std::move(head); }
  bool write(std::string piece) override {
    response.body += piece;
    return true;
  }
  void end_stream() override {}
  bool client_gone() const override { return false; }
  void on_client_gone(std::function<void()>) override {}
  HttpResponse response{.status = 0};
};

class FrontTest : public ::testing::Test {
 protected:
  void make(FrontOptions options, std::vector<std::string> keys = {}) {
    auto created = Front::create(std::move(options), std::move(keys));
    ASSERT_TRUE(created) << created.error().message;
    front_ = std::move(*created);
  }
  void make_ready() {
    front_->set_ready(
        [this](const HttpRequest& request, HttpReply& reply) {
          ++num_calls_;
          client_ = request.client;
          if (inside_) inside_();
          reply.note("tokens", "7");
          reply.send({.status = 200, .body = request.path});
        },
        [] {
          return Json{{"model", "m"}};
        });
  }
  HttpResponse ask(std::string method, std::string path,
                   std::map<std::string, std::string> headers = {}) {
    HttpRequest request;
    request.method = std::move(method);
    request.path = std::move(path);
    request.headers = std::move(headers);
    request.remote_address = "10.0.0.1";
    KeptReply reply;
    front_->handle(request, reply);
    return reply.response;
  }
  std::unique_ptr<Front> front_;
  std::function<void()> inside_;
  std::string client_;  // whom the API was asked by
  int num_calls_ = 0;
};

TEST_F(FrontTest, ClosesEveryRouteButTheOpenOnesWithoutAKey) {
  make({}, {"secret", "other"});
  make_ready();
  const std::set<std::string_view> open = {"/health", "/ping", "/version", "/metrics"};
  for (const ApiServer::Route& route : ApiServer::routes()) {
    const std::string method(route.methods.substr(0, route.methods.find(' ')));
    EXPECT_EQ(ask(method, std::string(route.path)).status == 401, !open.contains(route.path))
        << route.path;
  }
  num_calls_ = 0;
  for (const char* path :
       {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
        "/tokenize", "/detokenize", "/openapi.json", "/load", "/status.json", "/unknown", "/v1",
        "//v1/models", "/health/", "/v1/../health"})
    for (const char* method : {"GET", "POST", "HEAD", "DELETE", "OPTIONS"}) {
      const HttpResponse response = ask(method, path);
      EXPECT_EQ(response.status, 401) << method << " " << path;
      EXPECT_EQ(response.headers.at("WWW-Authenticate"), "Bearer");
    }
  EXPECT_EQ(num_calls_, 0);
  for (const char* path : {"/health", "/ping", "/version", "/metrics", "/ready", "/", "/status"})
    EXPECT_EQ(ask("GET", path).status, 200) << path;
}

TEST_F(FrontTest, TakesAKeyInEveryFormClientsSendIt) {
  make({}, {"secret", "other"});
  make_ready();
  for (const char* value : {"Bearer secret", "bearer secret", "BEARER  other"})
    EXPECT_EQ(ask("POST", "/v1/models", {{"authorization", value}}).status, 200) << value;
  for (const char* value : {"", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secret2",
                            "Basic secret", "Bearer SECRET"})
    EXPECT_EQ(ask("POST", "/v1/models", {{"authorization", value}}).status, 401) << value;
  EXPECT_EQ(ask("POST", "/v1/messages", {{"x-api-key", "secret"}}).status, 200);
  EXPECT_EQ(ask("POST", "/v1/models", {{"x-api-key", "secret"}}).status, 401);
}

TEST_F(FrontTest, ReadsKeysFromAFile) {
  const test::TempDir dir;
  const std::string path = (dir.path() / "keys").string();
  std::ofstream(path) << "# ours\n  alpha \r\n\nbeta";
  FrontOptions options;
  options.guard.api_key_file = path;
  make(options);
  make_ready();
  for (const char* key : {"alpha", "beta"})
    EXPECT_EQ(ask("POST", "/x", {{"authorization", std::string("Bearer ") + key}}).status, 200);
  EXPECT_EQ(ask("POST", "/x", {{"authorization", "Bearer # ours"}}).status, 401);
  std::ofstream(path) << "# none\n";
  EXPECT_FALSE(Front::create(options, {}));
  options.guard.api_key_file += ".missing";
  EXPECT_FALSE(Front::create(options, {}));
  EXPECT_FALSE(Front::create({}, {""}));
}

TEST_F(FrontTest, TellsTheApiWhoAsks) {
  make({});
  make_ready();
  EXPECT_EQ(ask("POST", "/v1/x").status, 200);
  EXPECT_EQ(client_, "10.0.0.1");
  make({}, {"a", "b"});
  make_ready();
  EXPECT_EQ(ask("POST", "/v1/x", {{"authorization", "Bearer a"}}).status, 200);
  const std::string a = client_;
  EXPECT_EQ(a.rfind("key-", 0), 0u) << a;
  EXPECT_EQ(ask("POST", "/v1/messages", {{"x-api-key", "a"}}).status, 200);
  EXPECT_EQ(client_, a);
  EXPECT_EQ(ask("POST", "/v1/x", {{"authorization", "Bearer b"}}).status, 200);
  EXPECT_NE(client_, a);
}

TEST_F(FrontTest, LimitsWhatOneClientHasAtWorkAndGivesPlacesBack) {
  FrontOptions options;
  options.guard.max_requests_per_client = 2;
  make(options, {"a", "b"});
  make_ready();
  const std::map<std::string, std::string> as_a = {{"authorization", "Bearer a"}};
  const std::map<std::string, std::string> as_b = {{"authorization", "Bearer b"}};
  int depth = 0;
  std::vector<int> statuses;
  inside_ = [&] {
    if (++depth > 2) return;
    statuses.push_back(ask("POST", "/v1/x", as_a).status);
    if (depth == 2) {
      EXPECT_EQ(ask("POST", "/v1/x", as_b).status, 200);
      EXPECT_EQ(ask("GET", "/v1/models", as_a).status, 200);
    }
  };
  HttpResponse refused;
  EXPECT_EQ(ask("POST", "/v1/x", as_a).status, 200);
  EXPECT_THAT(statuses, ::testing::ElementsAre(429, 200));
  inside_ = {};
  EXPECT_EQ(ask("POST", "/v1/x", as_a).status, 200);
}

TEST_F(FrontTest, SaysWhetherItIsReadyApartFromBeingAlive) {
  make({});
  EXPECT_EQ(ask("GET", "/ready").status, 503);
  EXPECT_EQ(ask("GET", "/").status, 200);
  const HttpResponse early = ask("POST", "/v1/chat/completions");
  EXPECT_EQ(early.status, 503);
  EXPECT_EQ(early.headers.at("Retry-After"), "1");
  EXPECT_THAT(ask("GET", "/status.json").body, HasSubstr("\"loading\""));
  make_ready();
  EXPECT_EQ(ask("GET", "/ready").status, 200);
  EXPECT_THAT(ask("GET", "/status.json").body, HasSubstr("\"ready\""));
  front_->set_draining();
  EXPECT_EQ(ask("GET", "/ready").status, 503);
  EXPECT_EQ(ask("GET", "/health").status, 200);
}

TEST_F(FrontTest, AllowsNoOriginUnlessTold) {
  make({}, {"secret"});
  make_ready();
  EXPECT_EQ(ask("GET", "/health", {{"origin", "http://evil"}})
                .headers.count("Access-Control-Allow-Origin"),
            0u);
  FrontOptions options;
  options.allowed_origins = {"https://app.example"};
  make(options, {"secret"});
  make_ready();
  const HttpResponse preflight =
      ask("OPTIONS", "/v1/chat/completions", {{"origin", "https://app.example"}});
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("Access-Control-Allow-Origin"), "https://app.example");
  // A refusal must be readable by the page, too.
  EXPECT_EQ(ask("GET", "/v1/models", {{"origin", "https://app.example"}})
                .headers.at("Access-Control-Allow-Origin"),
            "https://app.example");
  EXPECT_EQ(ask("OPTIONS", "/v1/models", {{"origin", "https://app.example.evil"}}).status, 401);
}

TEST_F(FrontTest, LogsOneLinePerRequestWithoutText) {
  const test::TempDir dir;
  FrontOptions options;
  options.access_log = (dir.path() / "access.jsonl").string();
  make(options, {"secret"});
  make_ready();
  ask("POST", "/v1/x", {{"authorization", "Bearer secret"}});
  ask("POST", "/v1/\xff\n\"", {});
  std::ifstream file(options.access_log);
  std::string first, second, third;
  std::getline(file, first);
  std::getline(file, second);
  EXPECT_FALSE(std::getline(file, third));
  const Result<Json> line = parse_json(first, "line");
  ASSERT_TRUE(line) << first;
  EXPECT_EQ((*line)["route"], "/v1/x");
  EXPECT_EQ((*line)["status"], 200);
  EXPECT_EQ((*line)["tokens"], 7);
  EXPECT_THAT((*line)["client"].get<std::string>(), ::testing::StartsWith("key-"));
  EXPECT_THAT(first, Not(HasSubstr("secret")));
  const Result<Json> refused = parse_json(second, "line");
  ASSERT_TRUE(refused) << second;
  EXPECT_EQ((*refused)["status"], 401);
  EXPECT_EQ((*refused)["client"], "10.0.0.1");
  options.access_log = "/no/such/folder/log";
  EXPECT_FALSE(Front::create(options, {}));
}

TEST(WebPage, LoadsNothingFromAnywhereAndAllowsOnlyItself) {
  for (const std::string_view page : {kChatPage, kStatusPage}) {
    const HttpResponse response = page_response(page);
    const std::string& policy = response.headers.at("Content-Security-Policy");
    EXPECT_THAT(policy, HasSubstr("default-src 'none'"));
    EXPECT_THAT(policy, HasSubstr("script-src 'sha256-"));
    EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
    EXPECT_THAT(std::string(page), Not(HasSubstr("://")));
    EXPECT_THAT(std::string(page), Not(HasSubstr("@S")));
    EXPECT_THAT(std::string(page), Not(HasSubstr("innerHTML")));
    EXPECT_THAT(std::string(page), Not(HasSubstr("style=\"")));
  }
  // RFC 4648 padding: a SHA-256 is 43 digits and one '='.
  EXPECT_THAT(
      page_response("<script>x</script><style>y</style>").headers.at("Content-Security-Policy"),
      HasSubstr("'sha256-LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE='"));
}

}  // namespace
}  // namespace nibble
