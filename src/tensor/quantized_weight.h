// A quantized weight before packing: integers, and a scale and zero point per group.
#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

// scale [rows, groups] in the weight's dtype, widened; zero_point [rows, groups] in qmin..qmax.
struct GroupParameters {
  std::vector<float> scale;
  std::vector<int8_t> zero_point;
};

struct QuantizedWeight {
  std::vector<int8_t> integers;  // [rows, columns]
  GroupParameters parameters;
};

// The same with its integers in words, as they are stored, and how far it is from the weight.
struct RoundedWeight {
  std::vector<int32_t>
      packed;  // [rows, packed_width(columns)], see checkpoint/compressed_tensors.h
  GroupParameters parameters;
  double squared_error = 0;  // sum of (weight - value)^2
  double squared_sum = 0;    // sum of weight^2
};

}  // namespace nibble
