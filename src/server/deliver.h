// Drives a generation into an answer and the answer to the client, whole or as a stream of events.
#pragma once

#include <string>

#include "net/http_server.h"
#include "server/answer.h"
#include "server/delivery_thread.h"
#include "server/generation.h"

namespace nibble {

// Blocks until the answer is complete or the client has gone; logs one line, without text of the
// request. False when the client got an error or not everything. The work is done on `thread` where
// the engine can wake it and the client reads in time, else here.
bool deliver(Generation& generation, Answer& answer, bool stream, const std::string& id,
             HttpReply& reply, DeliveryThread& thread);

}  // namespace nibble
