// The HTTP server against well-behaved, slow and hostile peers, byte for byte on loopback.
#include "net/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "net/http_head.h"
#include "net/raw_client.h"
#include "support/resident_memory.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;
using test::body_of;
using test::get_request;
using test::post_request;
using test::RawClient;
using test::resident_bytes;
using test::status_of;
using test::unchunk;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Echoes method, path, query and body size.
void echo(const HttpRequest& request, HttpReply& reply) {
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = request.method + " " + request.path + "?" + request.query + " " +
                  std::to_string(request.body.size());
  reply.send(response);
}

HttpServerOptions fast_options() {
  HttpServerOptions options;
  options.port = 0;
  options.header_timeout = 300ms;
  options.body_timeout = 300ms;
  options.idle_timeout = 300ms;
  options.write_timeout = 400ms;
  options.max_body_bytes = 100'000;
  return options;
}

class HttpServerTest : public ::testing::Test {
 protected:
  void serve(HttpServer::Handler handler, HttpServerOptions options = fast_options()) {
    auto started = HttpServer::start(std::move(options), std::move(handler));
    ASSERT_TRUE(started) << started.error().message;
    server_ = std::make_unique<HttpServer>(std::move(started).value());
  }
  int port() const { return server_->port(); }
  // A whole exchange on a connection of its own.
  std::string exchange(std::string_view bytes) {
    RawClient client(port());
    client.send(bytes);
    return client.receive_all();
  }
  // The canary: after anything hostile, an ordinary request still works.
  void expect_alive() {
    EXPECT_EQ(body_of(exchange(get_request("/ok", "Connection: close\r\n"))), "GET /ok? 0");
  }
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  serve(echo);
  RawClient client(port());
  client.send(get_request("/a?x=1&y=%20"));
  const std::string first = client.receive_response();
  EXPECT_EQ(status_of(first), 200);
  EXPECT_THAT(first, HasSubstr("Connection: keep-alive\r\n"));
  EXPECT_EQ(body_of(first), "GET /a?x=1&y=%20 0");
  client.send(post_request("/b", "12345"));
  EXPECT_EQ(body_of(client.receive_response()), "POST /b? 5");
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  serve(echo);
  RawClient client(port());
  std::string bytes;
  for (int i = 0; i < 50; ++i) bytes += post_request("/p" + std::to_string(i), "abc");
  client.send(bytes);
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(body_of(client.receive_response()), "POST /p" + std::to_string(i) + "? 3");
}

TEST_F(HttpServerTest, TakesRequestsCutAnywhere) {
  serve(echo);
  const std::string request =
      "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\nA\r\n"
      "0123456789\r\n0\r\nTrailer: x\r\n\r\n";
  for (size_t cut = 1; cut < request.size(); ++cut) {
    RawClient client(port());
    client.send(request.substr(0, cut));
    std::this_thread::sleep_for(1ms);
    client.send(request.substr(cut));
    EXPECT_EQ(body_of(client.receive_response()), "POST /c? 13") << cut;
  }
}

TEST_F(HttpServerTest, AnswersHeadWithoutABody) {
  serve(echo);
  RawClient client(port());
  client.send("HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n" + get_request("/next"));
  const std::string head = client.receive_until("\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 10\r\n"));
  EXPECT_EQ(body_of(client.receive_response()), "GET /next? 0");
}

TEST_F(HttpServerTest, SpeaksToOldClientsWithoutChunks) {
  serve([](const HttpRequest&, HttpReply& reply) {
    reply.begin_stream({.content_type = "text/plain"});
    reply.write("one ");
    reply.write("two");
    reply.end_stream();
  });
  const std::string response = exchange("GET / HTTP/1.0\r\n\r\n");
  EXPECT_THAT(response, Not(HasSubstr("chunked")));
  EXPECT_EQ(body_of(response), "one two");
  const std::string modern = exchange(get_request("/", "Connection: close\r\n"));
  EXPECT_EQ(unchunk(body_of(modern)), "one two");
}

TEST_F(HttpServerTest, AsksForTheBodyWhenTheClientWaits) {
  serve(echo);
  RawClient client(port());
  client.send("POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
  EXPECT_EQ(client.receive_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("body");
  EXPECT_EQ(body_of(client.receive_response()), "POST /e? 4");
}

struct Hostile {
  const char* name;
  std::string bytes;
  int status;  // 0: closed without an answer
};

TEST_F(HttpServerTest, RefusesEveryAmbiguousRequestAndCloses) {
  serve(echo);
  const std::string h = "Host: h\r\n";
  const std::vector<Hostile> table = {
      {"both lengths",
       "POST / HTTP/1.1\r\n" + h +
           "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400},
      {"both lengths, the other way",
       "POST / HTTP/1.1\r\n" + h +
           "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
       400},
      {"two lengths that differ",
       "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
      {"two lengths that agree",
       "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
      {"a list of lengths", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3, 3\r\n\r\nabc", 400},
      {"a signed length", "POST / HTTP/1.1\r\n" + h + "Content-Length: +3\r\n\r\nabc", 400},
      {"a negative length", "POST / HTTP/1.1\r\n" + h + "Content-Length: -3\r\n\r\nabc", 400},
      {"a length of 2^64",
       "POST / HTTP/1.1\r\n" + h + "Content-Length: 18446744073709551616\r\n\r\n", 400},
      {"a hexadecimal length", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0x3\r\n\r\nabc", 400},
      {"an unknown coding",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
      {"chunked twice",
       "POST / HTTP/1.1\r\n" + h +
           "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400},
      {"a disguised coding",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
      {"a blank before the colon",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
      {"chunked in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"a negative chunk",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n", 400},
      {"a chunk of 2^64",
       "POST / HTTP/1.1\r\n" + h +
           "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nab\r\n0\r\n\r\n",
       400},
      {"a chunk size in C notation",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n", 400},
      {"a chunk size of words",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\nhello\r\nab\r\n", 400},
      {"a chunk longer than it says",
       "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n", 400},
      {"a folded line", "GET / HTTP/1.1\r\n" + h + "A: b\r\n c: d\r\n\r\n", 400},
      {"a bare LF", "GET / HTTP/1.1\n" + h + "\r\n", 400},
      {"only LF", "GET / HTTP/1.1\nHost: h\n\n", 400},
      {"a bare CR", "GET / HTTP/1.1\r\nA: b\rc\r\n" + h + "\r\n", 400},
      {"a NUL", std::string("GET / HTTP/1.1\r\nA: b\0c\r\nHost: h\r\n\r\n", 35), 400},
      {"no colon", "GET / HTTP/1.1\r\nnonsense\r\n" + h + "\r\n", 400},
      {"no host", "GET / HTTP/1.1\r\n\r\n", 400},
      {"two hosts", "GET / HTTP/1.1\r\n" + h + h + "\r\n", 400},
      {"no path", "GET path HTTP/1.1\r\n" + h + "\r\n", 400},
      {"no version", "GET /\r\n\r\n", 400},
      {"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
      {"an odd expectation", "GET / HTTP/1.1\r\n" + h + "Expect: tea\r\n\r\n", 417},
      {"a long line", "GET /" + std::string(20'000, 'a') + " HTTP/1.1\r\n" + h + "\r\n", 431},
      {"a 64 KiB header", "GET / HTTP/1.1\r\n" + h + "A: " + std::string(65'536, 'a') + "\r\n\r\n",
       431},
      {"2000 headers",
       [&] {
         std::string out = "GET / HTTP/1.1\r\n" + h;
         for (int i = 0; i < 2000; ++i) out += "a: b\r\n";
         return out + "\r\n";
       }(),
       431},
      {"a body over the limit", "POST / HTTP/1.1\r\n" + h + "Content-Length: 100001\r\n\r\n", 413},
  };
  for (const Hostile& hostile : table) {
    RawClient client(port());
    client.send(hostile.bytes);
    // Whatever is smuggled behind must not be answered.
    client.send(get_request("/smuggled"));
    const std::string response = client.receive_all();
    EXPECT_EQ(status_of(response), hostile.status) << hostile.name << "\n" << response;
    EXPECT_THAT(response, Not(HasSubstr("smuggled"))) << hostile.name;
    EXPECT_THAT(response, HasSubstr("Connection: close")) << hostile.name;
    EXPECT_TRUE(client.closed_by_server()) << hostile.name;
  }
  expect_alive();
}

TEST_F(HttpServerTest, OversizedHeadsCostNoMemory) {
  serve(echo);
  const std::string header = "GET / HTTP/1.1\r\nHost: h\r\nA: " + std::string(65'536, 'a');
  const auto send_some = [&] {
    for (int i = 0; i < 20; ++i) {
      RawClient client(port());
      client.send(header);
      EXPECT_EQ(status_of(client.receive_all()), 431);
    }
  };
  send_some();
  const size_t before = resident_bytes();
  send_some();
  if (test::kMemoryIsOurs) {
    EXPECT_LT(resident_bytes(), before + (1u << 20));
  }
  expect_alive();
}

TEST_F(HttpServerTest, RefusesALongBodyBeforeItIsSent) {
  serve(echo);
  RawClient client(port());
  client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1099511627776\r\n\r\n");
  EXPECT_EQ(status_of(client.receive_all()), 413);
  EXPECT_TRUE(client.closed_by_server());
  expect_alive();
}

TEST_F(HttpServerTest, StopsAnEndlessChunkedBodyAtTheLimit) {
  serve(echo);
  RawClient client(port());
  client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "1000\r\n" + std::string(4096, 'x') + "\r\n";
  size_t sent = 0;
  while (sent < (8u << 20) && client.send(chunk)) sent += 4096;
  EXPECT_EQ(status_of(client.receive_all()), 413);
  EXPECT_LT(sent, 8u << 20);
  expect_alive();
}

TEST_F(HttpServerTest, StopsEndlessChunkExtensionsAndTrailers) {
  serve(echo);
  for (const char* start : {"1;", "0\r\nA: "}) {
    RawClient client(port());
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(start);
    for (int i = 0; i < 32 && client.send(std::string(4096, 'x')); ++i) {
    }
    EXPECT_EQ(status_of(client.receive_all()), 400) << start;
  }
  expect_alive();
}

TEST_F(HttpServerTest, ClosesSlowlorisConnectionsAtTheHeaderTimeout) {
  serve(echo);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 100; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    clients.back()->send("GET / HTTP/1.1\r\nHost: h\r\n");
  }
  // A byte now and then buys no time.
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(50ms);
    for (auto& client : clients) client->send("X");
    expect_alive();
  }
  for (auto& client : clients) EXPECT_EQ(status_of(client->receive_all()), 408);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 3s);
  RawClient silent(port());
  EXPECT_EQ(silent.receive_all(), "");  // nothing was asked, nothing is answered
  EXPECT_TRUE(silent.closed_by_server());
}

TEST_F(HttpServerTest, ClosesSlowBodiesAndIdleConnections) {
  serve(echo);
  RawClient body(port());
  body.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(status_of(body.receive_all()), 408);
  RawClient idle(port());
  idle.send(get_request("/"));
  EXPECT_EQ(status_of(idle.receive_response()), 200);
  EXPECT_FALSE(idle.receive_some(2s));
  EXPECT_TRUE(idle.closed_by_server());
}

TEST_F(HttpServerTest, GivesUpOnAReaderThatStopsAndBoundsItsMemory) {
  std::atomic<size_t> written{0};
  std::atomic<bool> refused{false};
  HttpServerOptions options = fast_options();
  options.max_stream_bytes = 64 << 10;
  serve(
      [&](const HttpRequest& request, HttpReply& reply) {
        if (request.path == "/ok") return echo(request, reply);
        reply.begin_stream({.content_type = "text/plain"});
        for (int i = 0; i < 100'000; ++i) {
          if (!reply.write(std::string(1000, 'x'))) {
            refused = true;
            return;
          }
          written += 1000;
        }
        reply.end_stream();
      },
      options);
  RawClient client(port(), 4096);
  client.send(get_request("/stream"));
  for (int i = 0; i < 100 && !refused; ++i) {
    std::this_thread::sleep_for(20ms);
    if (i % 10 == 0) expect_alive();
  }
  EXPECT_TRUE(refused);
  EXPECT_LT(written, 2u << 20);  // the cap, plus what the kernel buffers
}

TEST_F(HttpServerTest, NoticesAClientThatLeavesWhileAHandlerWorks) {
  std::mutex mutex;
  std::condition_variable changed;
  int num_left = 0;
  serve([&](const HttpRequest& request, HttpReply& reply) {
    if (request.path == "/ok") return echo(request, reply);
    bool left = false;
    std::mutex own;
    std::condition_variable wake;
    reply.on_client_gone([&] {
      std::lock_guard lock(own);
      left = true;
      wake.notify_all();
    });
    if (request.path == "/stream") {
      reply.begin_stream({.content_type = "text/plain"});
      reply.write("hello");
    }
    std::unique_lock lock(own);
    if (wake.wait_for(lock, 3s, [&] { return left; })) {
      EXPECT_TRUE(reply.client_gone());
      std::lock_guard count(mutex);
      ++num_left;
      changed.notify_all();
    }
  });
  for (const char* path : {"/stream", "/wait"}) {
    RawClient client(port());
    client.send(get_request(path));
    if (std::string_view(path) == "/stream") client.receive_until("hello");
    std::this_thread::sleep_for(20ms);
  }
  std::unique_lock lock(mutex);
  EXPECT_TRUE(changed.wait_for(lock, 3s, [&] { return num_left == 2; }));
  lock.unlock();
  expect_alive();
}

TEST_F(HttpServerTest, CutsAStreamWhoseHandlerGivesUp) {
  serve([](const HttpRequest& request, HttpReply& reply) {
    if (request.path == "/none") return;
    if (request.path == "/throw") throw std::runtime_error("oops");
    reply.begin_stream({.content_type = "text/plain"});
    reply.write("half");
  });
  const std::string cut = exchange(get_request("/half"));
  EXPECT_THAT(cut, HasSubstr("half"));
  EXPECT_EQ(unchunk(body_of(cut)), "");
  EXPECT_EQ(status_of(exchange(get_request("/none", "Connection: close\r\n"))), 500);
  EXPECT_EQ(status_of(exchange(get_request("/throw", "Connection: close\r\n"))), 500);
}

TEST_F(HttpServerTest, ServesTwoHundredClientsAtOnce) {
  std::atomic<int> at_work{0}, most{0};
  serve([&](const HttpRequest&, HttpReply& reply) {
    const int now = ++at_work;
    for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
    }
    reply.begin_stream({.content_type = "text/plain"});
    for (int i = 0; i < 20; ++i) {
      reply.write("piece ");
      std::this_thread::sleep_for(5ms);
    }
    reply.end_stream();
    --at_work;
  });
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 200; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    clients.back()->send(get_request("/", "Connection: close\r\n"));
  }
  for (auto& client : clients) EXPECT_EQ(unchunk(body_of(client->receive_all())).size(), 20u * 6);
  EXPECT_GT(most, 100);
}

TEST_F(HttpServerTest, AnswersQuickRequestsWhileAllWorkersAreBusy) {
  HttpServerOptions options = fast_options();
  options.num_workers = 2;
  options.max_queued = 2;
  options.is_quick = [](const HttpRequest& request) { return request.path == "/ok"; };
  std::atomic<bool> release{false};
  serve(
      [&](const HttpRequest& request, HttpReply& reply) {
        while (request.path != "/ok" && !release) std::this_thread::sleep_for(1ms);
        echo(request, reply);
      },
      options);
  std::vector<std::unique_ptr<RawClient>> busy;
  for (int i = 0; i < 4; ++i) {
    busy.push_back(std::make_unique<RawClient>(port()));
    busy.back()->send(get_request("/busy", "Connection: close\r\n"));
    std::this_thread::sleep_for(10ms);
  }
  const std::string refused = exchange(get_request("/busy"));
  EXPECT_EQ(status_of(refused), 503);
  EXPECT_THAT(refused, HasSubstr("Retry-After: 1\r\n"));
  expect_alive();
  release = true;
  for (auto& client : busy) EXPECT_EQ(status_of(client->receive_all()), 200);
}

TEST_F(HttpServerTest, RefusesConnectionsOverTheLimit) {
  HttpServerOptions options = fast_options();
  options.max_connections = 3;
  options.header_timeout = 5s;
  serve(echo, options);
  std::vector<std::unique_ptr<RawClient>> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(std::make_unique<RawClient>(port()));
    held.back()->send(get_request("/"));
    EXPECT_EQ(status_of(held.back()->receive_response()), 200);
    held.back()->send("GET ");
  }
  RawClient extra(port());
  EXPECT_EQ(status_of(extra.receive_all()), 503);
  held.clear();
  std::this_thread::sleep_for(50ms);
  expect_alive();
}

TEST_F(HttpServerTest, KeepsThousandsOfIdleConnectionsCheaply) {
  HttpServerOptions options = fast_options();
  options.header_timeout = options.idle_timeout = 20s;
  serve(echo, options);
  expect_alive();
  const size_t before = resident_bytes();
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 400; ++i) {
    idle.push_back(std::make_unique<RawClient>(port()));
    idle.back()->send(get_request("/"));
    ASSERT_EQ(status_of(idle.back()->receive_response()), 200) << i;
  }
  if (test::kMemoryIsOurs) {
    EXPECT_LT(resident_bytes() - before, 400 * (size_t{16} << 10));
  }
}

TEST_F(HttpServerTest, DrainsWhatIsAtWorkAndRefusesTheRest) {
  std::atomic<bool> entered{false};
  serve([&](const HttpRequest& request, HttpReply& reply) {
    if (request.path == "/slow") {
      entered = true;
      std::this_thread::sleep_for(300ms);
    }
    echo(request, reply);
  });
  RawClient slow(port());
  slow.send(get_request("/slow"));
  while (!entered) std::this_thread::sleep_for(1ms);
  std::thread stopping([&] { server_->stop(5s); });
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(status_of(exchange(get_request("/late"))), 503);
  EXPECT_EQ(body_of(slow.receive_all()), "GET /slow? 0");
  stopping.join();
  RawClient after(port());
  EXPECT_FALSE(after.connected());
}

TEST_F(HttpServerTest, StopsAtOnceWhenTheGraceIsOver) {
  std::atomic<bool> entered{false}, left{false};
  serve([&](const HttpRequest&, HttpReply& reply) {
    reply.begin_stream({.content_type = "text/plain"});
    entered = true;
    while (reply.write("x")) std::this_thread::sleep_for(1ms);
    left = true;
  });
  RawClient client(port());
  client.send(get_request("/"));
  while (!entered) std::this_thread::sleep_for(1ms);
  const auto start = std::chrono::steady_clock::now();
  server_->stop(100ms);
  EXPECT_TRUE(left);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 2s);
}

TEST_F(HttpServerTest, NamesTheProcessThatHoldsThePort) {
  serve(echo);
  HttpServerOptions options = fast_options();
  options.port = port();
  const auto second = HttpServer::start(options, echo);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kIo);
  EXPECT_THAT(second.error().message, HasSubstr("pid " + std::to_string(::getpid())));
  options.port = 70'000;
  EXPECT_FALSE(HttpServer::start(options, echo));
  options.port = 0;
  options.host = "no.such.host.invalid";
  EXPECT_FALSE(HttpServer::start(options, echo));
}

TEST(HttpHead, DropsLineBreaksFromHeaderValues) {
  HttpResponse response;
  response.headers["X-Request-Id"] = "a\r\nSet-Cookie: b";
  const std::string head = response_head(response, {.length = 0});
  EXPECT_THAT(head, HasSubstr("X-Request-Id: aSet-Cookie: b\r\n"));
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST(HttpHead, SplitsEveryFormOfTarget) {
  const std::vector<std::array<std::string, 3>> table = {
      {"/a/b?c=d?e", "/a/b", "c=d?e"}, {"/", "/", ""},           {"*", "*", ""},
      {"http://host/p?q", "/p", "q"},  {"http://host", "/", ""}, {"http://host?q", "/", "q"}};
  for (const auto& [target, path, query] : table) {
    std::string found_path, found_query;
    EXPECT_TRUE(split_target(target, &found_path, &found_query)) << target;
    EXPECT_EQ(found_path, path);
    EXPECT_EQ(found_query, query);
  }
  std::string path, query;
  EXPECT_FALSE(split_target("", &path, &query));
  EXPECT_FALSE(split_target("host:443", &path, &query));
}

}  // namespace
}  // namespace nibble
