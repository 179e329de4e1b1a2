// CPU of the server per generated token: HTTP, JSON, detokenization, parsing, SSE. No model runs:
// an engine of one thread gives every stream one token per step, through the queues of the real
// engine; its CPU and that of the clients, threads that read and drop, are taken off. What is left
// is the server's: its workers and its io thread, the kernel's share for wakeups and the loopback
// included. Paced steps let every thread fall asleep in between, as with a model; unpaced ones show
// what is left when tokens queue up. The floor is what one thread takes that is woken for each step
// and sends as many bytes to as many sockets: the kernel's part of any server. Prints the median of
// the runs. Usage: bench_server_overhead [MODEL]
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/format.h"
#include "base/log.h"
#include "engine/channel_handle.h"
#include "server/api_server.h"

namespace {

using namespace nibble;

double cpu_seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// A pair of connected sockets over the loopback device.
std::pair<int, int> connect_pair() {
  const int listening = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  NB_CHECK(::bind(listening, any, size) == 0 && ::listen(listening, 1) == 0, "listen");
  NB_CHECK(::getsockname(listening, any, &size) == 0, "getsockname");
  const int client = ::socket(AF_INET, SOCK_STREAM, 0);
  NB_CHECK(::connect(client, any, size) == 0, "connect");
  const int server = ::accept(listening, nullptr, nullptr);
  const int on = 1;
  ::setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::close(listening);
  return {client, server};
}

// Microseconds of CPU per piece sent of a thread that does nothing but wake up and send.
double floor_microseconds(int num_streams, int num_steps, double interval_ms) {
  const std::string piece(320, 'x');  // about an event of one token with its chunk's frame
  std::vector<std::pair<int, int>> sockets;
  std::vector<std::thread> readers;
  for (int i = 0; i < num_streams; ++i) {
    sockets.push_back(connect_pair());
    readers.emplace_back([fd = sockets.back().first] {
      char buffer[1 << 16];
      while (::read(fd, buffer, sizeof buffer) > 0) {
      }
    });
  }
  std::mutex mutex;
  std::condition_variable ready;
  int num_ready = 0;
  double seconds = 0;
  std::thread sender([&] {
    const double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    for (int done = 0; done < num_steps; ++done) {
      std::unique_lock lock(mutex);
      ready.wait(lock, [&] { return num_ready > done; });
      lock.unlock();
      for (const auto& [client, server] : sockets)
        NB_CHECK(::send(server, piece.data(), piece.size(), 0) > 0, "send");
    }
    seconds = cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start;
  });
  for (int i = 0; i < num_steps; ++i) {
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(interval_ms));
    {
      std::lock_guard lock(mutex);
      ++num_ready;
    }
    ready.notify_one();
  }
  sender.join();
  for (const auto& [client, server] : sockets) ::close(server);
  for (std::thread& reader : readers) reader.join();
  for (const auto& [client, server] : sockets) ::close(client);
  return seconds * 1e6 / (double{1} * num_streams * num_steps);
}

// Posts one streaming request, reads to the end; the CPU this thread took.
double read_stream(int port) {
  const double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  NB_CHECK(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
  const std::string body =
      R"({"stream":true,"messages":[{"role":"user","content":"Hello"}],"max_tokens":20000})";
  const std::string request = format(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Connection: close\r\nContent-Length: {}\r\n\r\n{}",
      body.size(), body);
  NB_CHECK(::write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()),
           "write");
  char buffer[1 << 16];
  while (::read(fd, buffer, sizeof buffer) > 0) {
  }
  ::close(fd);
  return cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start;
}

// Every submitted request gets the same number of the same token, one per step.
class StepEngine final : public Engine {
 public:
  StepEngine(int32_t token, int num_tokens, int num_streams, double interval_ms, int vocab_size)
      : token_(token), num_tokens_(num_tokens), num_streams_(num_streams), interval_(interval_ms) {
    spec_.vocab_size = vocab_size;
    thread_ = std::thread([this] { work(); });
  }
  ~StepEngine() override { thread_.join(); }

  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    auto channel = std::make_shared<RequestChannel>();
    channel->events.reserve(static_cast<size_t>(request.max_tokens));
    std::lock_guard lock(mutex_);
    channels_.push_back(channel);
    return std::unique_ptr<RequestHandle>(std::make_unique<ChannelHandle>(std::move(channel)));
  }
  EngineStats stats() const override { return {}; }
  const ModelSpec& spec() const override { return spec_; }
  int max_model_len() const override { return 1 << 20; }
  // Of the engine's thread; after all streams have ended.
  double cpu() {
    while (!done_) std::this_thread::yield();
    return cpu_seconds_;
  }

 private:
  void work() {
    const auto pause = [this] {
      std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(interval_));
    };
    while (true) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::lock_guard lock(mutex_);
      if (static_cast<int>(channels_.size()) == num_streams_) break;
    }
    for (int i = 0; i < num_tokens_; ++i) {
      if (interval_ > 0) pause();
      for (const auto& channel : channels_) {
        TokenEvent event;
        event.token = token_;
        event.time = std::chrono::steady_clock::now();
        if (i + 1 == num_tokens_) event.finish = FinishReason::kLength;
        channel->events.push(std::move(event));
      }
    }
    cpu_seconds_ = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    done_ = true;
  }

  const int32_t token_;
  const int num_tokens_;
  const int num_streams_;
  const double interval_;
  ModelSpec spec_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<RequestChannel>> channels_;
  std::atomic<double> cpu_seconds_{0};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// Microseconds of the server's CPU per token.
double run(ServedModel& model, int num_streams, int num_tokens, double interval_ms) {
  auto engine =
      std::make_unique<StepEngine>(model.tokenizer.encode(" word").front(), num_tokens, num_streams,
                                   interval_ms, model.tokenizer.vocab_size());
  StepEngine& steps = *engine;
  model.engine = std::move(engine);
  const auto api = ApiServer::create(model, {.served_model_names = {"demo"},
                                             .tool_parser = model.tool_parser,
                                             .reasoning_parser = model.reasoning_parser})
                       .value();
  HttpServerOptions options;
  options.port = 0;
  HttpServer server = HttpServer::start(options, [&](const HttpRequest& request, HttpReply& reply) {
                        api->handle(request, reply);
                      }).value();
  std::atomic<double> client_seconds{0};
  const double start = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
  std::vector<std::thread> clients;
  for (int i = 0; i < num_streams; ++i)
    clients.emplace_back([&] { client_seconds += read_stream(server.port()); });
  for (std::thread& client : clients) client.join();
  const double total = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
  return (total - client_seconds - steps.cpu()) * 1e6 / (double{1} * num_streams * num_tokens);
}

}  // namespace

int main(int argc, char** argv) {
  set_log_level(LogLevel::kWarning);
  const auto model = ServedModel::read(argc > 1 ? argv[1] : "models/nibble-demo-14m").value();
  struct Case {
    const char* name;
    int num_streams;
    int num_tokens;
    double interval_ms;
  };
  constexpr int kRuns = 5;
  std::printf("%-20s %16s   (least .. most of %d runs) %10s\n", "streams", "us CPU per token",
              kRuns, "floor");
  for (const Case& one : {Case{"1, paced 1 ms", 1, 1000, 1.0}, Case{"16, paced 5 ms", 16, 300, 5.0},
                          Case{"64, paced 20 ms", 64, 100, 20.0}, Case{"1, unpaced", 1, 10000, 0},
                          Case{"16, unpaced", 16, 2000, 0}}) {
    std::vector<double> figures;
    std::vector<double> floors;
    for (int i = 0; i < kRuns; ++i) {
      figures.push_back(run(*model, one.num_streams, one.num_tokens, one.interval_ms));
      floors.push_back(floor_microseconds(one.num_streams, one.num_tokens, one.interval_ms));
    }
    std::ranges::sort(figures);
    std::ranges::sort(floors);
    std::printf("%-20s %16.1f   (%5.1f .. %5.1f) %17.1f\n", one.name, figures[kRuns / 2],
                figures.front(), figures.back(), floors[kRuns / 2]);
  }
  return 0;
}
