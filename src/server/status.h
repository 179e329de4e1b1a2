// The numbers of /status.json that come from the engine.
#pragma once

#include <string>

#include "base/json.h"
#include "server/served_model.h"

namespace nibble {

// {"model", "max_model_len", "running", "waiting", "kv_usage", "prompt_tokens", ...,
// "memory": {name of a term of the plan: bytes}}
Json server_status(const ServedModel& model, const std::string& name);

}  // namespace nibble
