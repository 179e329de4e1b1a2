// The steps in the order of docs/reference/sampling.md. A vocabulary has a quarter of a million
// entries, so each step is one or two plain passes: the k largest come from a heap that few entries
// enter, sums of exponentials from a polynomial that compilers vectorize, and the draw looks at the
// logarithm only of tokens that could still win.
#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/format.h"

namespace nibble {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;
constexpr float kMinTemperature = 0.01f;

float largest_of(std::span<const float> values) {
  float lanes[8];
  std::ranges::fill(lanes, kDropped);
  size_t i = 0;
  for (; i + 8 <= values.size(); i += 8)
    for (size_t lane = 0; lane < 8; ++lane)
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
  for (; i < values.size(); ++i) lanes[0] = std::max(lanes[0], values[i]);
  return *std::ranges::max_element(lanes);
}

// e^x for x <= 0 to 2e-7 relative; 0 below -87. Cody-Waite reduction, Taylor to x^6.
inline float exp_of(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  // Truncation rounds towards zero, so this is the nearest integer for x <= 0.
  const auto n = static_cast<float>(static_cast<int32_t>(clamped * 1.44269504f - 0.5f));
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const auto scale = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : p * scale;
}

// Sum of e^(x - largest).
double sum_exp(std::span<const float> values, float largest) {
  double total = 0;
  for (size_t start = 0; start < values.size(); start += 256) {
    const auto part = values.subspan(start, std::min<size_t>(256, values.size() - start));
    float lanes[8] = {};
    size_t i = 0;
    for (; i + 8 <= part.size(); i += 8)
      for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += exp_of(part[i + lane] - largest);
    for (; i < part.size(); ++i) lanes[0] += exp_of(part[i] - largest);
    for (const float lane : lanes) total += lane;
  }
  return total;
}

// A draw that depends on (seed, position, token) alone, so a token's fate is the same whatever
// batch it runs in. SplitMix64's finalizer over a mixed counter; 53 random bits.
struct Draws {
  uint64_t base;
  Draws(uint64_t seed, uint64_t position) : base(seed + 0x9e3779b97f4a7c15u * (position + 1)) {
    base = (base ^ (base >> 30)) * 0xbf58476d1ce4e5b9u;
  }
  uint64_t bits(uint64_t token) const {
    uint64_t x = base ^ (0xd1342543de82ef95u * (token + 1));
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return x >> 11;
  }
};

// -log(-log(u)) for u = (bits + 0.5) / 2^53.
double gumbel(uint64_t bits) {
  return -std::log(-std::log((static_cast<double>(bits) + 0.5) * 0x1p-53));
}

// The exponential race: the token with the largest p / e, e ~ Exp(1), is a draw from p.
int32_t race(std::span<const float> logits, uint64_t seed, uint64_t position) {
  const Draws draws(seed, position);
  // The most likely token goes first, so that most others are refused by the bound below.
  int32_t winner = argmax(logits);
  double best =
      logits[static_cast<size_t>(winner)] + gumbel(draws.bits(static_cast<uint64_t>(winner)));
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] == kDropped) continue;
    const uint64_t bits = draws.bits(i);
    // 1 - u >= 2^-(k+1), k the leading ones of u's bits, so -log(-log u) <= (k + 1) log 2.
    const int ones = std::countl_one(bits << 11);
    if (logits[i] + 0.6931472 * std::min(ones + 1, 54) + 1e-6 < best) continue;
    const double score = logits[i] + gumbel(bits);
    if (score > best || (score == best && static_cast<int32_t>(i) < winner)) {
      best = score;
      winner = static_cast<int32_t>(i);
    }
  }
  return winner;
}

// Calls change(token) once for each distinct token that `marks` lacks, and marks it.
template <class Change>
void mark_each(std::span<const int32_t> tokens, size_t vocab_size, TokenMarks* marks,
               Change change) {
  for (const int32_t token : tokens) {
    const auto index = static_cast<size_t>(token);
    if (index >= vocab_size) continue;
    uint64_t& word = (*marks)[index / 64];
    const uint64_t bit = uint64_t{1} << (index % 64);
    if ((word & bit) != 0) continue;
    word |= bit;
    change(index);
  }
}
void clear_marks(std::span<const int32_t> tokens, size_t vocab_size, TokenMarks* marks) {
  for (const int32_t token : tokens)
    if (static_cast<size_t>(token) < vocab_size) (*marks)[static_cast<size_t>(token) / 64] = 0;
}
void fit_marks(size_t vocab_size, TokenMarks* marks) {
  if (marks->size() * 64 < vocab_size) marks->resize((vocab_size + 63) / 64);
}

void clear_bit(std::vector<uint32_t>* words, int32_t token) {
  const auto t = static_cast<size_t>(token);
  if (t / 32 < words->size()) (*words)[t / 32] &= ~(1u << (t % 32));
}
bool none_set(std::span<const uint32_t> words) {
  return std::ranges::all_of(words, [](uint32_t word) { return word == 0; });
}
// Only the bits of tokens below `vocab_size`.
void trim(std::vector<uint32_t>* words, size_t vocab_size) {
  if (vocab_size % 32 != 0) words->back() &= (1u << (vocab_size % 32)) - 1;
}
void drop_unset(std::span<const uint32_t> allowed, std::span<float> logits) {
  for (size_t w = 0; w < allowed.size(); ++w) {
    if (allowed[w] == ~0u) continue;
    const size_t end = std::min(logits.size(), w * 32 + 32);
    for (size_t i = w * 32; i < end; ++i)
      if ((allowed[w] >> (i % 32) & 1) == 0) logits[i] = kDropped;
  }
}

}  // namespace

void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> prompt,
                              std::span<const int32_t> generated, float penalty,
                              TokenMarks* marks) {
  if (penalty == 1.0f) return;
  fit_marks(logits.size(), marks);
  const auto change = [&](size_t i) {
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  };
  mark_each(prompt, logits.size(), marks, change);
  mark_each(generated, logits.size(), marks, change);
  clear_marks(prompt, logits.size(), marks);
  clear_marks(generated, logits.size(), marks);
}

void apply_output_penalties(std::span<float> logits, std::span<const int32_t> generated,
                            float presence, float frequency, TokenMarks* marks) {
  if (presence == 0.0f && frequency == 0.0f) return;
  fit_marks(logits.size(), marks);
  for (const int32_t token : generated)
    if (static_cast<size_t>(token) < logits.size()) logits[static_cast<size_t>(token)] -= frequency;
  mark_each(generated, logits.size(), marks, [&](size_t i) { logits[i] -= presence; });
  clear_marks(generated, logits.size(), marks);
}

void apply_temperature(std::span<float> logits, float temperature) {
  if (temperature == 1.0f) return;
  for (float& x : logits) x /= temperature;
}

void apply_min_p(std::span<float> logits, float min_p) {
  if (min_p <= 0.0f) return;
  // p_i < min_p * p_max  <=>  x_i < x_max + log(min_p)
  const float threshold = largest_of(logits) + std::log(min_p);
  for (float& x : logits) x = x < threshold ? kDropped : x;
}

void apply_top_k(std::span<float> logits, int top_k, std::vector<float>* scratch) {
  const auto k = static_cast<size_t>(top_k);
  if (top_k <= 0 || k >= logits.size()) return;
  constexpr size_t kHeapLimit = 1024;
  if (k > kHeapLimit) {
    scratch->assign(logits.begin(), logits.end());
    const auto kth = scratch->begin() + (top_k - 1);
    std::nth_element(scratch->begin(), kth, scratch->end(), std::greater<>());
    scratch->resize(static_cast<size_t>(top_k));
  } else {
    scratch->assign(logits.begin(), logits.begin() + top_k);
    std::ranges::make_heap(*scratch, std::greater<>());
    for (const float x : logits.subspan(k)) {
      if (!(x > scratch->front())) continue;
      std::ranges::pop_heap(*scratch, std::greater<>());
      scratch->back() = x;
      std::ranges::push_heap(*scratch, std::greater<>());
    }
  }
  const float threshold = k > kHeapLimit ? scratch->back() : scratch->front();
  for (float& x : logits) x = x < threshold ? kDropped : x;
}

void select_largest(std::span<const float> logits, size_t count, std::vector<int32_t>* ids) {
  const auto value = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  const auto before = [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  };
  ids->clear();
  if (count == 0) return;
  float worst = kDropped;  // of a full heap; anything not above it is skipped
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > worst)) continue;
    if (ids->size() == count) {
      std::ranges::pop_heap(*ids, before);
      ids->pop_back();
    }
    ids->push_back(static_cast<int32_t>(i));
    std::ranges::push_heap(*ids, before);  // the worst one is in front
    if (ids->size() == count) worst = value(ids->front());
  }
  std::ranges::sort_heap(*ids, before);
}

void apply_top_p(std::span<float> logits, float top_p, std::vector<int32_t>* scratch) {
  if (top_p >= 1.0f) return;
  const float largest = largest_of(logits);
  if (largest == kDropped) return;
  // A token stays while the more likely ones together have less than top_p. The probability per
  // step of 1/48 in the logit says in which step that limit falls; only its tokens are sorted.
  constexpr size_t kSteps = 4096;
  const auto step_of = [&](float x) {
    const float below = largest - x;
    return below < 85.0f ? static_cast<size_t>(below * 48.0f) : kSteps - 1;
  };
  double mass[kSteps] = {};
  float powers[256];
  for (size_t start = 0; start < logits.size(); start += std::size(powers)) {
    const size_t count = std::min(std::size(powers), logits.size() - start);
    for (size_t i = 0; i < count; ++i) powers[i] = exp_of(logits[start + i] - largest);
    for (size_t i = 0; i < count; ++i)
      if (powers[i] > 0) mass[step_of(logits[start + i])] += powers[i];
  }
  const double limit = static_cast<double>(top_p) * std::accumulate(mass, mass + kSteps, 0.0);
  double before = 0;
  size_t step = 0;
  for (; step + 1 < kSteps && before + mass[step] < limit; ++step) before += mass[step];

  scratch->clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] > kDropped && step_of(logits[i]) == step)
      scratch->push_back(static_cast<int32_t>(i));
  if (scratch->empty()) return;
  const auto value = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::ranges::sort(*scratch, [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  });
  int32_t last = scratch->front();
  for (const int32_t id : *scratch) {
    if (id != scratch->front() && before >= limit) break;
    before += exp_of(value(id) - largest);
    last = id;
  }
  const float threshold = value(last);
  for (size_t i = 0; i < logits.size(); ++i) {
    const bool stays =
        logits[i] > threshold || (logits[i] == threshold && static_cast<int32_t>(i) <= last);
    if (!stays) logits[i] = kDropped;
  }
}

int32_t argmax(std::span<const float> logits) {
  const float largest = largest_of(logits);
  const auto it = std::ranges::find(logits, largest);
  return it == logits.end() ? 0 : static_cast<int32_t>(it - logits.begin());
}

float log_probability(std::span<const float> logits, int32_t token) {
  const float largest = largest_of(logits);
  return static_cast<float>(logits[static_cast<size_t>(token)] - static_cast<double>(largest) -
                            std::log(sum_exp(logits, largest)));
}

Result<LogprobsMode> parse_logprobs_mode(const std::string& name) {
  if (name == "raw_logprobs") return LogprobsMode::kRawLogprobs;
  if (name == "processed_logprobs") return LogprobsMode::kProcessedLogprobs;
  if (name == "raw_logits") return LogprobsMode::kRawLogits;
  if (name == "processed_logits") return LogprobsMode::kProcessedLogits;
  return make_error(ErrorCode::kInvalidArgument,
                    "--logprobs-mode {}: unknown; use raw_logprobs, processed_logprobs, raw_logits "
                    "or processed_logits",
                    name);
}

bool is_plain_greedy(const SamplingParams& params, bool constrained, float penalty) {
  return params.temperature < kGreedyBelow && !constrained && penalty == 0 &&
         params.repetition_penalty == 1 && params.presence_penalty == 0 &&
         params.frequency_penalty == 0 && params.logit_bias.empty() && params.min_tokens == 0 &&
         params.num_logprobs < 0 && params.bad_words.empty() && params.allowed_token_ids.empty() &&
         params.thinking_token_budget < 0;
}

Sampler::Sampler(int64_t vocab_size, LogprobsMode mode) : mode_(mode) {
  const auto size = static_cast<size_t>(vocab_size);
  kept_.reserve(size);
  float_scratch_.reserve(size);
  id_scratch_.reserve(size);
  allowed_.resize((size + 31) / 32);
  trial_.reserve(allowed_.size());
  fit_marks(size, &marks_);
}

// Steps 3 to 5a: ids and words, each rule only if it leaves a token.
void Sampler::mask_rules(const Input& input) {
  const SamplingParams& params = *input.params;
  const size_t vocab_size = input.logits.size();
  const auto try_rule = [&](auto rule) {
    trial_.assign(allowed_.begin(), allowed_.end());
    rule();
    if (!none_set(trial_)) allowed_.swap(trial_);
  };
  if (!params.allowed_token_ids.empty())
    try_rule([&] {
      // Only tokens that were allowed and are listed.
      std::ranges::fill(trial_, 0u);
      for (const int32_t id : params.allowed_token_ids) {
        const auto t = static_cast<size_t>(id);
        if (t < vocab_size) trial_[t / 32] |= allowed_[t / 32] & (1u << (t % 32));
      }
    });
  if (!params.bad_words.empty())
    try_rule([&] {
      for (const std::vector<int32_t>& word : params.bad_words) {
        if (word.empty() || word.size() - 1 > input.generated.size()) continue;
        const auto tail = input.generated.last(word.size() - 1);
        if (std::ranges::equal(tail, std::span(word).first(word.size() - 1)))
          clear_bit(&trial_, word.back());
      }
    });
  if (static_cast<int>(input.generated.size()) < params.min_tokens)
    try_rule([&] {
      for (const int32_t id : input.stop_token_ids) clear_bit(&trial_, id);
    });
}

TokenEvent Sampler::sample(const Input& input) {
  const SamplingParams& params = *input.params;
  const std::span<float> logits = input.logits;
  const size_t vocab_size = logits.size();
  const bool wants_logprobs = params.num_logprobs >= 0;
  const bool raw = mode_ == LogprobsMode::kRawLogprobs || mode_ == LogprobsMode::kRawLogits;

  allowed_.resize((vocab_size + 31) / 32);
  const bool constrained = input.constraint != nullptr && input.constraint->fill(allowed_);
  if (constrained) {
    trim(&allowed_, vocab_size);
    drop_unset(allowed_, logits);
  }
  if (wants_logprobs && raw) kept_.assign(logits.begin(), logits.end());

  const bool has_rules = !params.allowed_token_ids.empty() || !params.bad_words.empty() ||
                         static_cast<int>(input.generated.size()) < params.min_tokens;
  if (has_rules) {
    if (!constrained) {
      std::ranges::fill(allowed_, ~0u);
      trim(&allowed_, vocab_size);
    }
    mask_rules(input);
    drop_unset(allowed_, logits);
  }
  for (const auto& [token, bias] : params.logit_bias)
    if (static_cast<size_t>(token) < vocab_size) logits[static_cast<size_t>(token)] += bias;
  const float repetition =
      input.repetition_penalty != 0 ? input.repetition_penalty : params.repetition_penalty;
  apply_repetition_penalty(logits, input.prompt, input.generated, repetition, &marks_);
  apply_output_penalties(logits, input.generated, params.presence_penalty, params.frequency_penalty,
                         &marks_);
  const auto budget = static_cast<size_t>(std::max(0, params.thinking_token_budget));
  const auto end_of_thinking = static_cast<size_t>(params.end_of_thinking_id);
  if (params.thinking_token_budget >= 0 && end_of_thinking < vocab_size &&
      input.generated.size() >= budget &&
      std::ranges::find(input.generated.first(std::min(budget + 1, input.generated.size())),
                        params.end_of_thinking_id) ==
          input.generated.begin() +
              static_cast<ptrdiff_t>(std::min(budget + 1, input.generated.size()))) {
    std::ranges::fill(logits, kDropped);
    logits[end_of_thinking] = 0;
  }

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
  if (wants_logprobs) {
    if (!raw) kept_.assign(logits.begin(), logits.end());
    fill_logprobs(kept_, params.num_logprobs, &event);
  }
  return event;
}

void Sampler::fill_logprobs(std::span<const float> values, int num_logprobs, TokenEvent* event) {
  const float chosen = values[static_cast<size_t>(event->token)];
  const bool bare = mode_ == LogprobsMode::kRawLogits || mode_ == LogprobsMode::kProcessedLogits;
  const float largest = largest_of(values);
  const double offset =
      bare ? 0.0 : static_cast<double>(largest) + std::log(sum_exp(values, largest));
  event->logprob = static_cast<float>(chosen - offset);
  event->rank =
      1 + static_cast<int>(std::ranges::count_if(values, [&](float x) { return x > chosen; }));
  select_largest(values, std::min<size_t>(static_cast<size_t>(num_logprobs), values.size()),
                 &id_scratch_);
  event->top_logprobs.reserve(id_scratch_.size());
  for (const int32_t id : id_scratch_)
    event->top_logprobs.push_back(
        {id, static_cast<float>(values[static_cast<size_t>(id)] - offset)});
}

}  // namespace nibble
