// The life of a serving process: signals, the service manager, and the drain at the end.
#pragma once

#include <csignal>

#include "net/http_server.h"
#include "server/front.h"

namespace nibble::cli {

// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those started later. Call before any start.
sigset_t block_signals();

// Tells the service manager READY, then waits. SIGHUP reopens the access log and reads the TLS
// files again. SIGINT or SIGTERM: /ready turns 503, new requests get 503, those at work finish
// within the grace or are told; a second signal ends the grace. Returns the exit code, 0.
int serve_until_signal(const sigset_t& signals, HttpServer& server, Front& front);

}  // namespace nibble::cli
