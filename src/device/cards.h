// What the makers say about their GPUs: the one table behind `nibble plan --gpus` and --roofline.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

struct Card {
  std::string name;           // "V100-32GB"
  size_t memory_bytes = 0;    // as the driver reports it, not as sold
  double bandwidth_gb_s = 0;  // 10^9 bytes a second, data sheet
  double fp16_tflops = 0;     // dense matrix peak with f32 accumulation, data sheet
  double bf16_tflops = 0;     // 0: the card has no bf16
  int sm = 0;                 // compute capability: 70 for 7.0
};

// Every known card, older first.
std::span<const Card> known_cards();

struct CardSet {
  int count = 1;
  Card card;
};
// "2xV100-32GB", "H200", or a size: "2x32GiB" (then bandwidth and peaks are 0). kInvalidArgument
// names the nearest known card and lists all.
Result<CardSet> parse_cards(std::string_view text);

}  // namespace nibble
