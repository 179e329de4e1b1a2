// Any bytes as config.json.
#include <cstdint>

#include "base/json.h"
#include "checkpoint/compressed_tensors.h"
#include "model/architectures.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const Result<Json> config = parse_json({reinterpret_cast<const char*>(data), size}, "fuzz",
                                         {.allow_duplicate_keys = true});
  if (!config) return 0;
  (void)parse_quantization_config(*config);
  (void)parse_model_config(*config);
  return 0;
}
