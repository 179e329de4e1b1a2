// How the weights of one Linear are quantized: bits, grouping, symmetry. Data, not code.
#pragma once

#include <cstdint>

namespace nibble {

struct QuantFormat {
  int num_bits = 4;        // 4 or 8
  int group_size = 128;    // input columns that share a scale; -1: one scale per output channel
  bool symmetric = false;  // no zero point stored
  int qmin() const { return -(1 << (num_bits - 1)); }     // -8
  int qmax() const { return (1 << (num_bits - 1)) - 1; }  // 7
  int64_t num_groups(int64_t num_columns) const {
    return group_size < 0 ? 1 : num_columns / group_size;
  }
  bool operator==(const QuantFormat&) const = default;
};

}  // namespace nibble
