// Cost of constrained decoding: compiling, the first mask of each state, masks once known, and
// whole texts; for the demo tokenizer and for a synthetic vocabulary of 248,320 tokens. And the
// sampler over as many logits.
//
//   build/bench/benchmarks/bench_grammar [TOKENIZER.JSON]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "base/file.h"
#include "engine/sampler.h"
#include "text/grammar.h"
#include "text/token_trie.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}
double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

// Bytes, and pieces of made-up words with the lengths of a real vocabulary: a leading space in
// half of them, some with quotes and brackets inside.
std::shared_ptr<const TokenTrie> synthetic_trie(size_t vocab_size) {
  std::mt19937 random(1);
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  static constexpr std::string_view kMarks[] = {"\"", "\",", "\":", "\"}", "{\"",
                                                "\n", "}",   "]",   " \"", "_"};
  while (tokens.size() + 1 < vocab_size) {
    std::string text = random() % 2 == 0 ? " " : "";
    const size_t length = 2 + random() % 5 + random() % 5;
    for (size_t i = 0; i < length; ++i) {
      if (random() % 40 == 0)
        text += kMarks[random() % std::size(kMarks)];
      else if (random() % 12 == 0)
        text += "\xc3\xa9";
      else
        text += "etaoinshrdlucmfwypvbgkjqxz"[std::min(random() % 26, random() % 26)];
    }
    tokens.push_back(text);
  }
  tokens.emplace_back();
  const int32_t end[] = {static_cast<int32_t>(vocab_size) - 1};
  return std::make_shared<const TokenTrie>(tokens, end);
}

constexpr std::string_view kSchema = R"({"type": "object", "properties": {
  "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
  "email": {"type": "string", "maxLength": 64}, "tags": {"type": "array", "items":
  {"type": "string"}}, "address": {"type": "object", "properties": {"street": {"type": "string"},
  "city": {"type": "string"}}, "required": ["street", "city"]}},
  "required": ["name", "age", "email", "tags", "address"]})";

void measure(const char* vocabulary, const char* name, const Result<Grammar>& grammar,
             const std::shared_ptr<const TokenTrie>& trie) {
  std::mt19937 random(7);
  Clock::time_point start = Clock::now();
  const auto compiled = CompiledGrammar::compile(grammar.value(), trie).value();
  const double compile_us = us_since(start);
  std::vector<double> first, again;
  std::vector<uint32_t> mask((static_cast<size_t>(trie->vocab_size()) + 31) / 32);
  for (int text = 0; text < 40; ++text) {
    GrammarMatcher matcher(compiled);
    for (int i = 0; i < 80 && !matcher.ended(); ++i) {
      start = Clock::now();
      matcher.fill(mask);
      (text == 0 ? first : again).push_back(us_since(start));
      // A token of the mask: one of the first after a random place.
      const auto size = static_cast<size_t>(trie->vocab_size());
      const size_t from = random() % 3 == 0 ? random() % 256 : random() % size;
      size_t token = from;
      while ((mask[token / 32] >> (token % 32) & 1) == 0) token = (token + 1) % size;
      if (!matcher.accept(static_cast<int32_t>(token))) return;
    }
  }
  std::printf("%-10s %-12s %10.0f %12.1f %12.1f %12.1f %12.1f %10zu\n", vocabulary, name,
              compile_us, quantile(first, 0.5), quantile(first, 1.0), quantile(again, 0.5),
              quantile(again, 0.99), compiled->cache_bytes() >> 10);
}

void measure_all(const char* vocabulary, const std::shared_ptr<const TokenTrie>& trie) {
  measure(vocabulary, "json object", Grammar::json_object(), trie);
  measure(vocabulary, "schema", Grammar::json_schema(parse_json(kSchema, "schema").value()), trie);
  measure(vocabulary, "regex", Grammar::regex("([a-z]+ ?){3,40}[.!]"), trie);
  measure(vocabulary, "ebnf",
          Grammar::ebnf("root ::= e\ne ::= t ([+*] t)*\nt ::= [0-9]+ | \"(\" e \")\""), trie);
}

void measure_sampler() {
  constexpr size_t kVocab = 248'320;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(kVocab);
  for (float& x : logits) x = normal(random);
  std::vector<int32_t> prompt(2000);
  for (int32_t& id : prompt) id = static_cast<int32_t>(random() % kVocab);
  Sampler sampler(kVocab);
  struct Row {
    const char* name;
    SamplingParams params;
  };
  std::vector<Row> rows(7);
  rows[0].name = "greedy";
  rows[0].params.temperature = 0;
  rows[1].name = "temperature 1";
  rows[2].name = "top_k 20, top_p 0.95";
  rows[2].params.top_k = 20;
  rows[2].params.top_p = 0.95f;
  rows[3].name = "top_p 0.95";
  rows[3].params.top_p = 0.95f;
  rows[4].name = "min_p 0.05";
  rows[4].params.min_p = 0.05f;
  rows[5].name = "repetition 1.05, 2000 tokens";
  rows[5].params.temperature = 0;
  rows[5].params.repetition_penalty = 1.05f;
  rows[6].name = "greedy, 20 logprobs";
  rows[6].params.temperature = 0;
  rows[6].params.num_logprobs = 20;
  std::printf("\nsampler over %zu logits, median of 51\n%-30s %10s\n", kVocab, "request", "us");
  for (const Row& row : rows) {
    std::vector<double> times;
    for (uint64_t i = 0; i < 51; ++i) {
      std::vector<float> copy = logits;
      const Clock::time_point start = Clock::now();
      (void)sampler.sample({.logits = copy,
                            .params = &row.params,
                            .prompt = prompt,
                            .generated = {},
                            .stop_token_ids = {},
                            .seed = i});
      times.push_back(us_since(start));
    }
    std::printf("%-30s %10.0f\n", row.name, quantile(times, 0.5));
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  const std::string path = argc > 1 ? argv[1] : "models/nibble-demo-14m/tokenizer.json";
  std::printf("first: masks of the first text; again: of the next 39. Times in us, cache in KiB\n");
  std::printf("%-10s %-12s %10s %12s %12s %12s %12s %10s\n", "vocabulary", "grammar", "compile",
              "first p50", "first max", "again p50", "again p99", "cache");
  const Result<std::string> text = read_file(path);
  if (text) {
    const Result<Tokenizer> tokenizer = Tokenizer::load(*text, "", path);
    if (!tokenizer) {
      std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
      return 2;
    }
    const int32_t end[] = {tokenizer->vocab_size() - 1};
    measure_all("demo", TokenTrie::of(*tokenizer, end));
  } else {
    std::fprintf(stderr, "%s\n", text.error().message.c_str());
  }
  const Clock::time_point start = Clock::now();
  const auto trie = synthetic_trie(248'320);
  std::printf("trie of 248320 tokens: %d nodes, built in %.0f ms\n", trie->num_nodes(),
              us_since(start) / 1000);
  measure_all("248k", trie);
  measure_sampler();
}
