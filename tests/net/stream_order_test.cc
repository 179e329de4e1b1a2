// Pieces of a stream go to the socket from two threads: the handler's while nothing is queued, else
// the io thread's. Whatever the reader's pace, they arrive whole and in order.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "net/http_server.h"
#include "net/raw_client.h"

namespace nibble {
namespace {

using test::body_of;
using test::get_request;
using test::RawClient;
using test::unchunk;

// Piece i: its number, then up to 20 kB of filling.
std::string piece(int i) {
  return std::to_string(i) + std::string(static_cast<size_t>(i * 7919 % 20'011), '.') + ";";
}

TEST(StreamOrder, PiecesArriveInOrderWhateverTheReadersPace) {
  constexpr int kPieces = 400;
  std::string expected;
  for (int i = 0; i < kPieces; ++i) expected += piece(i);
  HttpServerOptions options;
  options.port = 0;
  HttpServer server = HttpServer::start(options, [](const HttpRequest&, HttpReply& reply) {
                        reply.begin_stream({});
                        for (int i = 0; i < kPieces; ++i) {
                          if (i % 50 == 0)  // lets the queue run empty, so that both ways are taken
                            std::this_thread::sleep_for(std::chrono::milliseconds(2));
                          if (!reply.write(piece(i))) return;
                        }
                        reply.end_stream();
                      }).value();
  for (const int pause_us : {0, 200}) {
    RawClient client(server.port(), pause_us ? 4096 : 0);
    client.send(get_request("/", "Connection: close\r\n"));
    while (client.receive_some())
      if (pause_us) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    EXPECT_TRUE(client.closed_by_server());
    EXPECT_TRUE(unchunk(body_of(client.receive_all())) == expected) << "pause " << pause_us;
  }
}

TEST(StreamOrder, AFarewellNeverLandsInsideAPiece) {
  for (int round = 0; round < 20; ++round) {
    HttpServerOptions options;
    options.port = 0;
    options.farewell_event = "data: bye\n\n";
    std::atomic<bool> begun{false};
    HttpServer server = HttpServer::start(options, [&](const HttpRequest&, HttpReply& reply) {
                          reply.begin_stream({.content_type = "text/event-stream"});
                          const std::string event = "data: " + std::string(30'000, 'x') + "\n\n";
                          while (reply.write(event)) begun = true;
                        }).value();
    RawClient client(server.port(), 4096);
    client.send(get_request("/"));
    while (!begun) std::this_thread::yield();
    for (int i = 0; i < round; ++i) client.receive_some();
    std::thread reader([&] {
      while (client.receive_some()) {
      }
    });
    server.stop();
    reader.join();
    // Whole, with the farewell at its end, or cut: then there is no farewell and no last chunk.
    const std::string body = body_of(client.receive_all());
    const std::string events = unchunk(body);
    if (events.empty()) {
      EXPECT_EQ(body.find("bye"), std::string::npos);
    } else {
      EXPECT_TRUE(events.ends_with("\n\ndata: bye\n\n"));
    }
  }
}

TEST(InstantRequests, NeedNoThreadAtAll) {
  HttpServerOptions options;
  options.port = 0;
  options.is_quick = [](const HttpRequest& request) { return request.path != "/work"; };
  options.is_instant = [](const HttpRequest& request) { return request.path == "/health"; };
  std::atomic<bool> release{false};
  HttpServer server = HttpServer::start(options, [&](const HttpRequest& request, HttpReply& reply) {
                        while (request.path == "/slow" && !release)
                          std::this_thread::sleep_for(std::chrono::milliseconds(1));
                        reply.send({.body = request.path});
                      }).value();
  std::vector<std::unique_ptr<RawClient>> slow;  // more than the threads for quick requests
  for (int i = 0; i < 8; ++i) {
    slow.push_back(std::make_unique<RawClient>(server.port()));
    slow.back()->send(get_request("/slow"));
  }
  RawClient client(server.port());
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(client.send(get_request("/health")));
    ASSERT_EQ(body_of(client.receive_response()), "/health");
  }
  release = true;
  for (const auto& one : slow) EXPECT_EQ(body_of(one->receive_response()), "/slow");
}

}  // namespace
}  // namespace nibble
