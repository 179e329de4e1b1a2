// Order per token (docs/reference/sampling.md): raw logprobs, min_tokens mask, logit bias,
// penalties, greedy choice or temperature -> min_p -> top_k -> top_p -> draw.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace nibble {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;
constexpr float kMinTemperature = 0.01f;

// A draw that depends on (seed, position, token) alone, so a token's fate is the same whatever
// batch it runs in. SplitMix64's finalizer over a mixed counter.
double uniform_draw(uint64_t seed, uint64_t position, uint64_t token) {
  uint64_t x = seed + 0x9e3779b97f4a7c15u * (position + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x ^= 0xd1342543de82ef95u * (token + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return (static_cast<double>(x >> 11) + 0.5) * 0x1p-53;  // in (0, 1)
}

// The exponential race: the token with the largest p / e, e ~ Exp(1), is a draw from p.
int32_t race(std::span<const float> logits, uint64_t seed, uint64_t position) {
  double best = -std::numeric_limits<double>::infinity();
  int32_t winner = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == kDropped) continue;
    // log(p / e) up to a constant.
    const double score = logits[i] - std::log(-std::log(uniform_draw(seed, position, i)));
    if (winner < 0 || score > best) {
      best = score;
      winner = static_cast<int32_t>(i);
    }
  }
  NB_CHECK(winner >= 0, "every token is masked");
  return winner;
}

// Applies `change` once to each distinct token of `tokens`; `mark` has one flag per vocabulary
// entry.
template <class Change>
void for_each_distinct(std::span<const int32_t> tokens, size_t vocab_size, Change change) {
  std::vector<bool> seen(vocab_size, false);
  for (const int32_t token : tokens) {
    const auto index = static_cast<size_t>(token);
    if (index >= vocab_size || seen[index]) continue;
    seen[index] = true;
    change(index);
  }
}

}  // namespace

void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> tokens,
                              float penalty) {
  if (penalty == 1.0f) return;
  for_each_distinct(tokens, logits.size(), [&](size_t i) {
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  });
}

void apply_output_penalties(std::span<float> logits, std::span<const int32_t> generated,
                            float presence, float frequency) {
  if (presence == 0.0f && frequency == 0.0f) return;
  for (const int32_t token : generated)
    if (static_cast<size_t>(token) < logits.size()) logits[static_cast<size_t>(token)] -= frequency;
  for_each_distinct(generated, logits.size(), [&](size_t i) { logits[i] -= presence; });
}

void apply_temperature(std::span<float> logits, float temperature) {
  if (temperature == 1.0f) return;
  for (float& x : logits) x /= temperature;
}

void apply_min_p(std::span<float> logits, float min_p) {
  if (min_p <= 0.0f) return;
  const float largest = *std::ranges::max_element(logits);
  // p_i < min_p * p_max  <=>  x_i < x_max + log(min_p)
  const float threshold = largest + std::log(min_p);
  for (float& x : logits)
    if (x < threshold) x = kDropped;
}

void apply_top_k(std::span<float> logits, int top_k, std::vector<float>* scratch) {
  if (top_k <= 0 || static_cast<size_t>(top_k) >= logits.size()) return;
  scratch->assign(logits.begin(), logits.end());
  const auto kth = scratch->begin() + (top_k - 1);
  std::nth_element(scratch->begin(), kth, scratch->end(), std::greater<>());
  const float threshold = *kth;
  for (float& x : logits)
    if (x < threshold) x = kDropped;
}

void apply_top_p(std::span<float> logits, float top_p, std::vector<int32_t>* scratch) {
  if (top_p >= 1.0f) return;
  scratch->clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] != kDropped) scratch->push_back(static_cast<int32_t>(i));
  const auto value = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  // Ascending; among equals the higher id is dropped first, so that the lowest survives.
  std::ranges::sort(*scratch, [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) < value(b) : a > b;
  });
  const double largest = value(scratch->back());
  double total = 0;
  for (const int32_t id : *scratch) total += std::exp(value(id) - largest);
  double cumulative = 0;
  for (size_t i = 0; i + 1 < scratch->size(); ++i) {
    const int32_t id = (*scratch)[i];
    cumulative += std::exp(value(id) - largest) / total;
    if (cumulative > 1.0 - static_cast<double>(top_p)) break;
    logits[static_cast<size_t>(id)] = kDropped;
  }
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

float log_probability(std::span<const float> logits, int32_t token) {
  const double largest = *std::ranges::max_element(logits);
  double total = 0;
  for (const float x : logits) total += std::exp(x - largest);
  return static_cast<float>(logits[static_cast<size_t>(token)] - largest - std::log(total));
}

Sampler::Sampler(int64_t vocab_size) {
  raw_.reserve(static_cast<size_t>(vocab_size));
  float_scratch_.reserve(static_cast<size_t>(vocab_size));
  id_scratch_.reserve(static_cast<size_t>(vocab_size));
}

TokenEvent Sampler::sample(const Input& input) {
  const SamplingParams& params = *input.params;
  std::span<float> logits = input.logits;
  if (params.num_logprobs >= 0) raw_.assign(logits.begin(), logits.end());

  if (static_cast<int>(input.generated.size()) < params.min_tokens)
    for (const int32_t id : input.stop_token_ids)
      if (static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] = kDropped;
  for (const auto& [token, bias] : params.logit_bias)
    if (static_cast<size_t>(token) < logits.size()) logits[static_cast<size_t>(token)] += bias;
  if (params.repetition_penalty != 1.0f) {
    id_scratch_.assign(input.prompt.begin(), input.prompt.end());
    id_scratch_.insert(id_scratch_.end(), input.generated.begin(), input.generated.end());
    apply_repetition_penalty(logits, id_scratch_, params.repetition_penalty);
  }
  apply_output_penalties(logits, input.generated, params.presence_penalty,
                         params.frequency_penalty);

  TokenEvent event;
  if (params.temperature < kGreedyBelow) {
    event.token = argmax(logits);
  } else {
    apply_temperature(logits, std::max(params.temperature, kMinTemperature));
    apply_min_p(logits, params.min_p);
    apply_top_k(logits, params.top_k, &float_scratch_);
    apply_top_p(logits, params.top_p, &id_scratch_);
    event.token = race(logits, input.seed, input.prompt.size() + input.generated.size());
  }
  if (params.num_logprobs >= 0) fill_logprobs(raw_, params.num_logprobs, &event);
  return event;
}

void Sampler::fill_logprobs(std::span<const float> logits, int num_logprobs, TokenEvent* event) {
  event->logprob = log_probability(logits, event->token);
  const double offset = logits[static_cast<size_t>(event->token)] - event->logprob;
  id_scratch_.resize(logits.size());
  std::iota(id_scratch_.begin(), id_scratch_.end(), 0);
  const auto count = std::min<size_t>(static_cast<size_t>(num_logprobs), logits.size());
  std::partial_sort(id_scratch_.begin(), id_scratch_.begin() + static_cast<ptrdiff_t>(count),
                    id_scratch_.end(), [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = id_scratch_[i];
    event->top_logprobs.push_back(
        {id, static_cast<float>(logits[static_cast<size_t>(id)] - offset)});
  }
}

}  // namespace nibble
