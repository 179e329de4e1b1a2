// CPU of the server per generated token: HTTP, JSON, detokenization, parsing, SSE. Replies come
// from the scripted engine, so no model runs; clients are threads that read and drop, and their CPU
// is taken off. Paced streams send each token by itself, as a model does; unpaced ones show what is
// left when tokens queue up. Prints the median of the runs. Usage: bench_server_overhead [MODEL]
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "base/format.h"
#include "base/log.h"
#include "server/api_server.h"
#include "server/scripted_engine.h"

namespace {

using namespace nibble;

double cpu_seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
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

// Microseconds of CPU per token, the clients' not counted.
double run(ServedModel& model, int num_streams, int num_tokens, double interval_ms) {
  const std::string script =
      format(R"({{"text": " word", "repeat": {}, "interval_ms": {}}})", num_tokens, interval_ms);
  model.engine = make_scripted_engine(script, "script", model.tokenizer,
                                      {.vocab_size = model.tokenizer.vocab_size(),
                                       .stop_token_ids = model.stop_token_ids})
                     .value();
  const auto api = ApiServer::create(model, {.served_model_names = {"demo"},
                                             .api_keys = {},
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
  const double total = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - start - client_seconds;
  const int64_t made = model.engine->stats().generated_tokens;
  NB_CHECK(made == int64_t{num_streams} * (num_tokens + 1), "every token was made");
  return total * 1e6 / static_cast<double>(made);
}

// What a pause between tokens costs by itself: the pacing of the script, not the server.
double pause_microseconds(double interval_ms) {
  constexpr int kPauses = 500;
  const double start = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
  for (int i = 0; i < kPauses; ++i)
    std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(interval_ms));
  return (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - start) * 1e6 / kPauses;
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
  std::printf("%-28s %16s   (least .. most of %d runs)\n", "streams", "us CPU per token", kRuns);
  for (const Case& one : {Case{"1, paced 1 ms", 1, 1000, 1.0}, Case{"16, paced 5 ms", 16, 300, 5.0},
                          Case{"1, unpaced", 1, 10000, 0}, Case{"16, unpaced", 16, 2000, 0}}) {
    std::vector<double> figures;
    for (int i = 0; i < kRuns; ++i)
      figures.push_back(run(*model, one.num_streams, one.num_tokens, one.interval_ms));
    std::ranges::sort(figures);
    std::printf("%-28s %16.1f   (%.1f .. %.1f)\n", one.name, figures[kRuns / 2], figures.front(),
                figures.back());
  }
  std::printf("%-28s %16.1f\n", "a pause of 1 ms alone", pause_microseconds(1.0));
  return 0;
}
