// Log probabilities of the prompt's own tokens, row by row as its chunks run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace nibble {

// Of one row of logits: `token` first, then the k most likely, ties to the lower id; `token` is not
// repeated.
std::vector<TokenLogprob> token_logprobs(std::span<const float> logits, int32_t token, int k);

}  // namespace nibble
