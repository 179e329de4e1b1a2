// What the status page shows of the engine.
#include "server/status.h"

namespace nibble {

Json server_status(const ServedModel& model, const std::string& name) {
  const EngineStats stats = model.engine->stats();
  Json memory = Json::object();
  for (const MemoryTerm& term : model.engine->memory_plan().terms())
    if (term.bytes > 0) memory[term.detail] = term.bytes;
  return {{"model", name},
          {"max_model_len", model.engine->max_model_len()},
          {"running", stats.num_running},
          {"waiting", stats.num_waiting},
          {"kv_usage", stats.kv_usage},
          {"prompt_tokens", stats.prompt_tokens},
          {"generated_tokens", stats.generated_tokens},
          {"preemptions", stats.num_preemptions},
          {"prefix_cache_queries", stats.prefix_cache_queries},
          {"prefix_cache_hits", stats.prefix_cache_hits + stats.external_prefix_cache_hits},
          {"memory", memory}};
}

}  // namespace nibble
