// The client's end of a RequestChannel.
#pragma once

#include <memory>
#include <utility>

#include "engine/engine.h"
#include "engine/sequence.h"

namespace nibble {

class ChannelHandle final : public RequestHandle {
 public:
  explicit ChannelHandle(std::shared_ptr<RequestChannel> channel) : channel_(std::move(channel)) {}
  ~ChannelHandle() override { cancel(); }
  TokenEvent next() override { return channel_->events.pop(); }
  bool try_next(TokenEvent* event) override { return channel_->events.try_pop(event); }
  bool on_event(std::function<void()> wake) override {
    channel_->events.set_wake(std::move(wake));
    return true;
  }
  // The engine thread looks at the flag before each step; while a sequence lives it never sleeps.
  void cancel() override { channel_->cancelled = true; }

 private:
  const std::shared_ptr<RequestChannel> channel_;
};

}  // namespace nibble
