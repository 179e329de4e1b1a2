// Signals are waited for, never handled: no code runs in a signal handler.
#include "cli/lifecycle.h"

#include <atomic>
#include <cerrno>
#include <ctime>
#include <thread>

#include "base/log.h"
#include "base/service_notify.h"

namespace nibble::cli {
namespace {

using std::chrono::milliseconds;

// 0 at the timeout.
int wait_for(const sigset_t& signals, milliseconds timeout) {
  const timespec time{.tv_sec = timeout.count() / 1000,
                      .tv_nsec = timeout.count() % 1000 * 1'000'000};
  const int signal = sigtimedwait(&signals, nullptr, &time);
  return signal > 0 ? signal : 0;
}

void reload(HttpServer& server, Front& front) {
  front.reopen_log();
  if (const Status status = server.reload_tls(); !status.has_value()) {
    log_error("reload failed, the old certificate stays: {}", status.error().message);
  } else {
    log_info("reloaded");
  }
}

}  // namespace

sigset_t block_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

int serve_until_signal(const sigset_t& signals, HttpServer& server, Front& front) {
  notify_service("READY=1");
  const auto watchdog = watchdog_interval();
  int signal = 0;
  while (signal == 0 || signal == SIGHUP) {
    signal = wait_for(signals, watchdog.value_or(milliseconds(60'000)));
    if (signal == SIGHUP) reload(server, front);
    if (watchdog) notify_service("WATCHDOG=1");
  }
  notify_service("STOPPING=1");
  front.set_draining();
  log_info("draining signal={} grace_s={}; a second signal stops at once", signal,
           front.drain_grace_s());
  std::atomic<bool> stopped{false};
  std::thread second([&] {
    while (!stopped) {
      const int again = wait_for(signals, milliseconds(50));
      if (again == SIGINT || again == SIGTERM) return server.hurry();
    }
  });
  server.stop(std::chrono::seconds(front.drain_grace_s()));
  stopped = true;
  second.join();
  log_info("stopped");
  return 0;
}

}  // namespace nibble::cli
