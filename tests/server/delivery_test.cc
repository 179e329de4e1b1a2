// The thread that delivers for all: no wake is lost, failures reach the handler, and a choice or a
// client that is behind holds nobody back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <thread>

#include "engine/channel_handle.h"
#include "net/raw_client.h"
#include "server/api_server.h"
#include "server/delivery_thread.h"
#include "support/paths.h"

namespace nibble {
namespace {

// Takes what others put, until it has taken `wanted`.
struct Taker final : DeliveryThread::Task {
  explicit Taker(int num) : wanted(num) {}
  bool work() override {
    taken += put.exchange(0);
    return taken == wanted;
  }
  const int wanted;
  int taken = 0;
  std::atomic<int> put{0};
};

TEST(DeliveryThread, LosesNoWake) {
  constexpr int kTakers = 16;
  constexpr int kPuts = 2000;
  DeliveryThread thread;
  std::vector<std::unique_ptr<Taker>> takers;
  for (int i = 0; i < kTakers; ++i) takers.push_back(std::make_unique<Taker>(2 * kPuts));
  std::vector<std::thread> threads;
  for (const auto& taker : takers) threads.emplace_back([&] { thread.run(*taker); });
  for (int writer = 0; writer < 2; ++writer)
    threads.emplace_back([&] {
      for (int i = 0; i < kPuts; ++i)
        for (const auto& taker : takers) {
          ++taker->put;
          thread.wake(*taker);
        }
    });
  for (std::thread& each : threads) each.join();
  for (const auto& taker : takers) EXPECT_EQ(taker->taken, 2 * kPuts);
}

TEST(DeliveryThread, AFailureReachesItsHandlerAndNobodyElse) {
  struct Failing final : DeliveryThread::Task {
    bool work() override { throw std::runtime_error("no"); }
  };
  DeliveryThread thread;
  Failing failing;
  EXPECT_THROW(thread.run(failing), std::runtime_error);
  EXPECT_THROW(thread.run(failing), std::runtime_error);
  Taker taker(1);
  taker.put = 1;
  thread.run(taker);
  EXPECT_EQ(taker.taken, 1);
}

// An engine whose tokens the test pushes, request by request.
class PushEngine final : public Engine {
 public:
  explicit PushEngine(int vocab_size) { spec_.vocab_size = vocab_size; }

  Result<std::unique_ptr<RequestHandle>> submit(Request) override {
    auto channel = std::make_shared<RequestChannel>();
    std::lock_guard lock(mutex_);
    channels_.push_back(channel);
    return std::unique_ptr<RequestHandle>(std::make_unique<ChannelHandle>(std::move(channel)));
  }
  EngineStats stats() const override { return {}; }
  const ModelSpec& spec() const override { return spec_; }
  int max_model_len() const override { return 1 << 20; }

  // The channel of the request number `index`, once it is there.
  RequestChannel& channel(size_t index) {
    while (true) {
      {
        std::lock_guard lock(mutex_);
        if (index < channels_.size()) return *channels_[index];
      }
      std::this_thread::yield();
    }
  }
  void push(size_t index, int32_t token, FinishReason finish = FinishReason::kNone) {
    TokenEvent event;
    event.token = token;
    event.finish = finish;
    channel(index).events.push(std::move(event));
  }

 private:
  ModelSpec spec_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<RequestChannel>> channels_;
};

class Delivery : public testing::Test {
 protected:
  void SetUp() override {
    model_ = ServedModel::read(test::bundled_model("nibble-demo-14m").string()).value();
    auto engine = std::make_unique<PushEngine>(model_->tokenizer.vocab_size());
    engine_ = engine.get();
    model_->engine = std::move(engine);
    word_ = model_->tokenizer.encode(" word").front();
    ApiOptions options;
    options.served_model_names = {"demo"};
    api_ = ApiServer::create(*model_, std::move(options)).value();
    HttpServerOptions http;
    http.port = 0;
    http.max_stream_bytes = 4 << 10;
    http.write_timeout = std::chrono::seconds(20);
    server_ = std::make_unique<HttpServer>(
        HttpServer::start(http, [this](const HttpRequest& request, HttpReply& reply) {
          api_->handle(request, reply);
        }).value());
  }
  static std::string request(int n) {
    return test::post_request("/v1/completions",
                              R"({"prompt": "Hello", "stream": true, "max_tokens": 100000, "n": )" +
                                  std::to_string(n) + "}");
  }

  std::unique_ptr<ServedModel> model_;
  PushEngine* engine_ = nullptr;
  int32_t word_ = 0;
  std::unique_ptr<ApiServer> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Delivery, AChoiceThatHasNotStartedHoldsNoOtherBack) {
  test::RawClient client(server_->port());
  client.send(request(2));
  engine_->channel(1);
  for (int i = 0; i < 3; ++i) engine_->push(1, word_);
  std::string stream = client.receive_until("word");
  for (int i = 0; i < 2; ++i) stream += client.receive_until("word");
  EXPECT_THAT(stream, testing::HasSubstr("\"index\":1"));
  EXPECT_THAT(stream, testing::Not(testing::HasSubstr("\"index\":0,\"text\":\" word\"")));
  engine_->push(0, word_, FinishReason::kLength);
  engine_->push(1, word_, FinishReason::kLength);
  EXPECT_THAT(client.receive_until("[DONE]"), testing::HasSubstr("\"index\":0"));
}

TEST_F(Delivery, AClientThatReadsNothingStallsNobody) {
  test::RawClient stopped(server_->port());
  stopped.send(request(1));
  engine_->channel(0);
  constexpr int kMany = 20'000;  // far more than the sockets and the cap hold
  for (int i = 0; i < kMany; ++i) engine_->push(0, word_);
  test::RawClient reading(server_->port());
  reading.send(request(1));
  engine_->channel(1);
  for (int i = 0; i < 100; ++i) {
    engine_->push(1, word_);
    reading.receive_until("word");
  }
  engine_->push(1, word_, FinishReason::kLength);
  reading.receive_until("[DONE]");
  // Nothing of the other is lost once it reads on.
  engine_->push(0, word_, FinishReason::kLength);
  const std::string all = stopped.receive_until("[DONE]");
  size_t num_words = 0;
  for (size_t at = all.find("word"); at != std::string::npos; at = all.find("word", at + 1))
    ++num_words;
  EXPECT_EQ(num_words, size_t{kMany} + 1);
}

}  // namespace
}  // namespace nibble
