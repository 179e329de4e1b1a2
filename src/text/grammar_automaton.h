// The rules of a grammar as nondeterministic automata over bytes that may call each other. States
// of all rules share one numbering. Built once, then read only.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "text/grammar_rules.h"

namespace nibble {

class GrammarAutomaton {
 public:
  static constexpr int32_t kMaxStates = 200'000;

  struct ByteEdge {
    uint8_t first, last;
    int32_t target;
  };
  struct CallEdge {
    RuleId rule;
    int32_t target;  // where the caller goes on
  };
  struct State {
    std::vector<ByteEdge> bytes;
    std::vector<CallEdge> calls;
    std::vector<int32_t> empty;  // edges that read nothing
    bool accepts = false;        // its rule may end here
    bool only_accepts = false;   // and can do nothing else
  };

  // `longest_token` bounds how far ahead a mask looks: states of a long repetition that cannot be
  // told apart within so many bytes get one representative.
  static Result<GrammarAutomaton> build(const GrammarRules& rules, int32_t longest_token);

  const State& state(int32_t s) const { return states_[static_cast<size_t>(s)]; }
  int32_t num_states() const { return static_cast<int32_t>(states_.size()); }
  int32_t rule_start(RuleId rule) const { return rules_[static_cast<size_t>(rule)].start; }
  bool rule_may_be_empty(RuleId rule) const { return rules_[static_cast<size_t>(rule)].nullable; }
  // A rule is ranked after every rule that may call it before reading a byte.
  int32_t rule_rank(RuleId rule) const { return rules_[static_cast<size_t>(rule)].rank; }
  int32_t num_rules() const { return static_cast<int32_t>(rules_.size()); }
  RuleId start_rule() const { return start_rule_; }
  int32_t representative(int32_t s) const { return representatives_[static_cast<size_t>(s)]; }

  // Bytes that no edge tells apart are one class.
  int32_t num_classes() const { return num_classes_; }
  int32_t class_of(uint8_t byte) const { return classes_[byte]; }

 private:
  friend class AutomatonBuilder;
  struct Rule {
    int32_t start = -1;
    bool nullable = false;
    bool productive = false;
    int32_t rank = 0;
  };
  std::vector<State> states_;
  std::vector<int32_t> representatives_;
  std::vector<Rule> rules_;
  RuleId start_rule_ = 0;
  std::array<uint8_t, 256> classes_{};
  int32_t num_classes_ = 0;
};

}  // namespace nibble
