// Framing of server-sent events.
#include "net/sse.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Sse, FramesOneLine) {
  EXPECT_EQ(sse_event("{\"a\":1}"), "data: {\"a\":1}\n\n");
  EXPECT_EQ(sse_event(""), "data: \n\n");
}

TEST(Sse, SplitsLinesSoThatClientsJoinThem) {
  EXPECT_EQ(sse_event("a\nb"), "data: a\ndata: b\n\n");
}

TEST(Sse, NamesEvents) {
  EXPECT_EQ(sse_event("ping", "{}"), "event: ping\ndata: {}\n\n");
}

}  // namespace
}  // namespace nibble
