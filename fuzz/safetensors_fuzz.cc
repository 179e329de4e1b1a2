// Any bytes as a safetensors file: what the header check accepts must lie inside the file.
#include <cstdint>
#include <cstdlib>

#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  std::map<std::string, std::string> metadata;
  const auto tensors = parse_safetensors_header(bytes, size, "fuzz", &metadata);
  if (!tensors) return 0;
  for (const TensorInfo& info : *tensors)
    if (info.offset > size || info.num_bytes > size - info.offset) std::abort();
  return 0;
}
