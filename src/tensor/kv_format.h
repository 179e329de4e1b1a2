// How keys and values are stored in the cache. Only kv_append and attention interpret it.
#pragma once

#include "tensor/dtype.h"

namespace nibble {

struct KvFormat {
  DType dtype = DType::kF32;  // F32, F16, BF16, F8_E4M3 or F8_E5M2; the 8-bit ones with scale 1
};

}  // namespace nibble
