// What the status page shows of the engine.
#include "server/status.h"

namespace nibble {

Json server_status(const ServedModel& model, const std::string& name) {
  const EngineStats stats = model.engine->stats();
  return {{"model", name},
          {"max_model_len", model.engine->max_model_len()},
          {"running", stats.num_running},
          {"waiting", stats.num_waiting},
          {"kv_usage", stats.kv_usage},
          {"prompt_tokens", stats.prompt_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"preemptions", stats.num_preemptions}};
}

}  // namespace nibble
