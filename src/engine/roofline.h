// How fast a model could run on named cards: what its forward pass must move over the bandwidth,
// what it must compute over the peak. The counts come from running the real forward pass over
// MeteringOps, so they follow the code. Bounds of the hardware, not predictions: no launch gaps, no
// communication, data-sheet figures.
#pragma once

#include <span>
#include <vector>

#include "device/cards.h"
#include "model/model.h"

namespace nibble {

struct RooflinePoint {
  bool prefill = false;
  int32_t batch = 0;             // sequences
  int32_t context = 0;           // decode: cached tokens of each; prefill: the prompt's length
  StepCost cost{};               // of one device: a decode step, or the whole prompt
  double seconds = 0;            // of that
  double tokens_per_second = 0;  // of all sequences and devices together
  bool memory_bound = false;
};

// `rank` is the share of one of `cards.count` devices. kInvalidArgument when the card's figures are
// unknown or it lacks the activation dtype.
Result<std::vector<RooflinePoint>> decode_roofline(const Model& rank, const CardSet& cards,
                                                   DType kv_dtype, std::span<const int32_t> batches,
                                                   std::span<const int32_t> contexts);
// One prompt in chunks of at most `chunk` tokens.
Result<std::vector<RooflinePoint>> prefill_roofline(const Model& rank, const CardSet& cards,
                                                    DType kv_dtype, int32_t chunk,
                                                    std::span<const int32_t> lengths);

}  // namespace nibble
