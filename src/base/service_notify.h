// Tells the service manager how the process is: systemd's notification protocol (sd_notify(3)),
// without its library. Nothing happens where no manager asks.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

namespace nibble {

// "READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=...", newline-separated.
void notify_service(std::string_view state);

// How often the manager wants to hear WATCHDOG=1 (half its patience); nullopt: it does not.
std::optional<std::chrono::milliseconds> watchdog_interval();

}  // namespace nibble
