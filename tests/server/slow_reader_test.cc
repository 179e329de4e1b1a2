// Clients of streams that stop reading or leave, through sockets, beside an engine that makes
// tokens at a pace of its own: what they hold is capped, they are dropped, the engine learns of it,
// and nobody else waits.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "engine/sequence.h"
#include "net/raw_client.h"
#include "server/api_server.h"
#include "support/paths.h"
#include "support/resident_memory.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;
using test::post_request;
using test::RawClient;
using test::resident_bytes;
using Clock = std::chrono::steady_clock;

// Fifty; a few where a sanitizer makes each of their tokens several times as dear.
constexpr int kNumReaders = test::kSanitized ? 8 : 50;
constexpr int kTopLogprobs = 100;  // some 9 KiB of JSON a token

// Gives every request the same token once a step, until its limit or until it is cancelled.
class PacedEngine final : public Engine {
 public:
  PacedEngine(int32_t token, std::chrono::milliseconds interval, int64_t vocab_size)
      : token_(token), interval_(interval) {
    spec_.vocab_size = vocab_size;
    thread_ = std::thread([this] { work(); });
  }
  ~PacedEngine() override {
    stopping_ = true;
    thread_.join();
  }

  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    auto live = std::make_shared<Live>();
    live->num_left = request.max_tokens;
    live->num_logprobs = request.sampling.num_logprobs;
    std::lock_guard lock(mutex_);
    live_.push_back(live);
    return std::unique_ptr<RequestHandle>(std::make_unique<Handle>(std::move(live)));
  }
  EngineStats stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats;
    stats.num_running = static_cast<int>(live_.size());
    stats.num_steps = num_steps_;
    return stats;
  }
  const ModelSpec& spec() const override { return spec_; }
  int max_model_len() const override { return 1 << 20; }

  int num_cancelled() const { return num_cancelled_; }
  // Requests whose answer is held up: the server has not come for the last `count` tokens.
  int num_behind(int count) const {
    std::lock_guard lock(mutex_);
    return static_cast<int>(
        std::ranges::count_if(live_, [&](const auto& live) { return live->num_waiting >= count; }));
  }

 private:
  struct Live {
    RequestChannel channel;
    std::atomic<int> num_waiting{0};  // events pushed, not yet taken
    int num_left = 0;
    int num_logprobs = -1;
  };
  struct Handle final : RequestHandle {
    explicit Handle(std::shared_ptr<Live> given) : live(std::move(given)) {}
    ~Handle() override { cancel(); }
    TokenEvent next() override {
      TokenEvent event = live->channel.events.pop();
      --live->num_waiting;
      return event;
    }
    bool try_next(TokenEvent* event) override {
      if (!live->channel.events.try_pop(event)) return false;
      --live->num_waiting;
      return true;
    }
    bool on_event(std::function<void()> wake) override {
      live->channel.events.set_wake(std::move(wake));
      return true;
    }
    void cancel() override { live->channel.cancelled = true; }
    std::shared_ptr<Live> live;
  };

  // Whether the request is over.
  bool step(Live& live) {
    TokenEvent event;
    if (live.channel.cancelled) {
      ++num_cancelled_;
      event.finish = FinishReason::kAbort;
    } else {
      event.token = token_;
      event.time = Clock::now();
      for (int id = 0; id < live.num_logprobs; ++id) event.top_logprobs.push_back({id, -1.5f});
      if (--live.num_left == 0) event.finish = FinishReason::kLength;
    }
    const bool over = event.finish != FinishReason::kNone;
    ++live.num_waiting;
    live.channel.events.push(std::move(event));
    return over;
  }
  void work() {
    while (!stopping_) {
      std::this_thread::sleep_for(interval_);
      std::lock_guard lock(mutex_);
      ++num_steps_;
      std::erase_if(live_, [this](const auto& live) { return step(*live); });
    }
  }

  const int32_t token_;
  const std::chrono::milliseconds interval_;
  ModelSpec spec_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Live>> live_;
  int64_t num_steps_ = 0;
  std::atomic<int> num_cancelled_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// Whether the condition becomes true within a minute.
template <class Condition>
bool comes_true(Condition condition) {
  const auto end = Clock::now() + 60s;
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

class SlowReader : public testing::Test {
 protected:
  void serve(std::chrono::milliseconds interval, HttpServerOptions http) {
    model_ = ServedModel::read(test::bundled_model("nibble-demo-14m").string()).value();
    auto engine = std::make_unique<PacedEngine>(model_->tokenizer.encode(" word").front(), interval,
                                                model_->tokenizer.vocab_size());
    engine_ = engine.get();
    model_->engine = std::move(engine);
    ApiOptions options;
    options.served_model_names = {"demo"};
    options.defaults.max_logprobs = kTopLogprobs;
    api_ = ApiServer::create(*model_, std::move(options)).value();
    http.port = 0;
    server_ = std::make_unique<HttpServer>(
        HttpServer::start(http, [this](const HttpRequest& request, HttpReply& reply) {
          api_->handle(request, reply);
        }).value());
  }
  // The streams end before the engine does.
  void TearDown() override { server_.reset(); }

  // A stream of many bytes a token that is asked for and not read.
  std::unique_ptr<RawClient> ask(int max_tokens = 4096, int receive_buffer_bytes = 4096) const {
    auto client = std::make_unique<RawClient>(server_->port(), receive_buffer_bytes);
    client->send(post_request(
        "/v1/chat/completions",
        R"({"messages": [{"role": "user", "content": "Hello"}], "stream": true, "logprobs": true,)"
        R"( "top_logprobs": )" +
            std::to_string(kTopLogprobs) + ", \"max_tokens\": " + std::to_string(max_tokens) +
            "}"));
    return client;
  }
  std::vector<std::unique_ptr<RawClient>> ask_many(int max_tokens = 4096,
                                                   int receive_buffer_bytes = 4096) const {
    std::vector<std::unique_ptr<RawClient>> out;
    for (int i = 0; i < kNumReaders; ++i) out.push_back(ask(max_tokens, receive_buffer_bytes));
    return out;
  }

  // Median time between the tokens of a stream that is read as it comes.
  double seconds_between_tokens(int num_tokens) const {
    RawClient client(server_->port());
    client.send(post_request(
        "/v1/completions",
        R"({"prompt": "a", "stream": true, "max_tokens": )" + std::to_string(num_tokens) + "}"));
    std::vector<double> waits;
    Clock::time_point last;
    for (int i = 0; i < num_tokens; ++i) {
      EXPECT_NE(client.receive_until("\n\n"), "") << "token " << i;
      const auto now = Clock::now();
      if (i > 0) waits.push_back(std::chrono::duration<double>(now - last).count());
      last = now;
    }
    std::ranges::nth_element(waits, waits.begin() + static_cast<ptrdiff_t>(waits.size() / 2));
    return waits[waits.size() / 2];
  }

  std::unique_ptr<ServedModel> model_;
  PacedEngine* engine_ = nullptr;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(SlowReader, FiftyThatStopAreHeldWithinTheirCapsAndDropped) {
  HttpServerOptions http;
  http.max_stream_bytes = 64 << 10;
  http.write_timeout = 1s;
  serve(5ms, http);
  RawClient first(server_->port());  // what the first request allocates for good is not theirs
  first.send(post_request("/v1/completions", R"({"prompt": "a", "max_tokens": 2})"));
  EXPECT_EQ(test::status_of(first.receive_response()), 200);
  const size_t before = resident_bytes();
  const auto readers = ask_many();
  size_t most = 0;
  EXPECT_TRUE(comes_true([&] {
    most = std::max(most, resident_bytes());
    return engine_->num_cancelled() == kNumReaders;
  }));
  EXPECT_EQ(engine_->stats().num_running, 0);
  // Each: the cap, a piece above it, as much again in the connection's own buffer, and a thread.
  if (test::kMemoryIsOurs) {
    EXPECT_LT(most - std::min(most, before), kNumReaders * (size_t{512} << 10));
  }
  for (const auto& reader : readers) {
    const std::string got = reader->receive_all();
    EXPECT_TRUE(reader->closed_by_server());
    EXPECT_EQ(got.find("[DONE]"), std::string::npos) << "a cut stream must not look whole";
  }
  RawClient next(server_->port());
  next.send(post_request("/v1/completions", R"({"prompt": "a", "max_tokens": 2})"));
  EXPECT_EQ(test::status_of(next.receive_response()), 200);
}

TEST_F(SlowReader, FiftyThatStopDelayAnotherStreamNoMoreThanFiftyThatRead) {
  constexpr auto kPace = 20ms;
  serve(kPace, {});
  constexpr int kNumTokens = 40;
  double beside_reading = 0;
  {
    const auto reading = ask_many(1 << 19, 0);
    std::atomic<bool> enough{false};
    std::thread pump([&] {
      while (!enough)
        for (const auto& client : reading) client->discard();
    });
    EXPECT_TRUE(comes_true([&] { return engine_->stats().num_running == kNumReaders; }));
    beside_reading = seconds_between_tokens(kNumTokens);
    enough = true;
    pump.join();
  }
  EXPECT_TRUE(comes_true([&] { return engine_->stats().num_running == 0; }));
  const auto stopped = ask_many(1 << 19);
  ASSERT_TRUE(comes_true([&] { return engine_->num_behind(5) == kNumReaders; }));
  // Tokens that arrive in bunches have next to no time between them, but none comes before its
  // step.
  const double expected = std::max(beside_reading, std::chrono::duration<double>(kPace).count());
  EXPECT_LT(seconds_between_tokens(kNumTokens), 1.5 * expected);
  EXPECT_EQ(engine_->num_behind(5), kNumReaders);  // they were there all the time
}

TEST_F(SlowReader, AClientThatLeavesIsCancelledWithinAStep) {
  serve(100ms, {});
  for (const bool stream : {true, false}) {
    const int cancelled_before = engine_->num_cancelled();
    RawClient client(server_->port());
    client.send(post_request("/v1/completions", std::string(R"({"prompt": "a", "stream": )") +
                                                    (stream ? "true" : "false") +
                                                    ", \"max_tokens\": 100000}"));
    ASSERT_TRUE(comes_true([&] { return engine_->stats().num_running == 1; }));
    const int64_t at_close = engine_->stats().num_steps;
    client.close();
    ASSERT_TRUE(comes_true([&] { return engine_->num_cancelled() > cancelled_before; }));
    // The step under way and the next one; some more for a machine with other things to do.
    EXPECT_LE(engine_->stats().num_steps - at_close, 10) << stream;
    EXPECT_EQ(engine_->stats().num_running, 0);
  }
}

TEST_F(SlowReader, FiftyThatLeaveAreCancelledWithoutDelayingAnother) {
  serve(20ms, {});
  const double alone = seconds_between_tokens(40);
  std::atomic<bool> enough{false};
  std::thread comers([&] {
    while (!enough) {
      auto clients = ask_many(1 << 19, 0);
      std::this_thread::sleep_for(50ms);
    }
  });
  const double beside = seconds_between_tokens(40);
  enough = true;
  comers.join();
  EXPECT_LT(beside, 3 * alone);
  EXPECT_TRUE(comes_true([&] { return engine_->stats().num_running == 0; }));
  EXPECT_GE(engine_->num_cancelled(), kNumReaders);
}

}  // namespace
}  // namespace nibble
