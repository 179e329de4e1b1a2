// Log softmax of one row, and its head.
#include "engine/prompt_logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {

std::vector<TokenLogprob> token_logprobs(std::span<const float> logits, int32_t token, int k) {
  const float largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x - largest));
  const double offset = static_cast<double>(largest) + std::log(sum);
  const auto logprob = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - offset);
  };

  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto head = ids.begin() + std::min<ptrdiff_t>(std::max(k, 0), std::ssize(ids));
  std::partial_sort(ids.begin(), head, ids.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)];
    const float y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  std::vector<TokenLogprob> result = {{token, logprob(token)}};
  for (auto id = ids.begin(); id != head; ++id)
    if (*id != token) result.push_back({*id, logprob(*id)});
  return result;
}

}  // namespace nibble
