// Thompson's construction per rule, UTF-8 ranges for characters, Aho-Corasick for "any text
// until". Then: which rules can be empty, which can end at all, and an order without left
// recursion.
#include "text/grammar_automaton.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <tuple>

#include "base/format.h"

namespace nibble {

namespace {

using Kind = GrammarExpr::Kind;

constexpr int kMaxDepth = 600;  // of nested expressions; front ends have tighter limits

// One way to write some characters of a set: a range of bytes per position.
struct ByteRange {
  uint8_t first, last;
};
using ByteRanges = std::vector<ByteRange>;

int encode(char32_t c, uint8_t* out) {
  if (c < 0x80) {
    out[0] = static_cast<uint8_t>(c);
    return 1;
  }
  const int size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = size - 1; i > 0; --i, c >>= 6) out[i] = static_cast<uint8_t>(0x80 | (c & 0x3f));
  out[0] = static_cast<uint8_t>((size == 2 ? 0xc0 : size == 3 ? 0xe0 : 0xf0) | c);
  return size;
}

// Splits [first, last] until all encodings of a piece are the product of its byte ranges.
void split_utf8(char32_t first, char32_t last, std::vector<ByteRanges>* out) {
  for (const char32_t limit : {0x7fu, 0x7ffu, 0xffffu})
    if (first <= limit && last > limit) {
      split_utf8(first, limit, out);
      split_utf8(limit + 1, last, out);
      return;
    }
  for (int i = 1; i < 4 && last >= 0x80; ++i) {
    const char32_t low = (char32_t{1} << (6 * i)) - 1;
    if ((first & ~low) == (last & ~low)) break;
    if ((first & low) != 0) {
      split_utf8(first, first | low, out);
      split_utf8((first | low) + 1, last, out);
      return;
    }
    if ((last & low) != low) {
      split_utf8(first, (last & ~low) - 1, out);
      split_utf8(last & ~low, last, out);
      return;
    }
  }
  uint8_t a[4];
  uint8_t b[4];
  const int size = encode(first, a);
  encode(last, b);
  ByteRanges ranges;
  for (int i = 0; i < size; ++i) ranges.push_back({a[i], b[i]});
  out->push_back(std::move(ranges));
}

}  // namespace

class AutomatonBuilder {
 public:
  AutomatonBuilder(const GrammarRules& rules, int32_t longest_token)
      : rules_(rules), longest_token_(longest_token) {}

  Result<GrammarAutomaton> build() {
    out_.start_rule_ = rules_.start;
    out_.rules_.resize(rules_.rules().size());
    for (size_t r = 0; r < out_.rules_.size(); ++r) {
      const int32_t start = add_state();
      const int32_t end = add_state();
      out_.rules_[r].start = start;
      at(end).accepts = true;
      if (rules_.rules()[r].body >= 0) place(rules_.rules()[r].body, start, end, 0);
      if (failed_) return *failed_;
    }
    find_nullable();
    NB_TRY_STATUS(drop_unproductive());
    NB_TRY_STATUS(rank_rules());
    find_only_accepting();
    find_classes();
    return std::move(out_);
  }

 private:
  using State = GrammarAutomaton::State;
  State& at(int32_t s) { return out_.states_[static_cast<size_t>(s)]; }

  int32_t add_state() {
    const int32_t id = out_.num_states();
    if (id >= GrammarAutomaton::kMaxStates && !failed_)
      failed_ = make_error(ErrorCode::kInvalidArgument,
                           "grammar: needs more than {} states; use smaller repetition counts or "
                           "lengths",
                           GrammarAutomaton::kMaxStates);
    out_.states_.emplace_back();
    out_.representatives_.push_back(id);
    return id;
  }

  // Builds `id` between two states.
  void place(ExprId id, int32_t from, int32_t to, int depth) {
    if (failed_) return;
    if (depth > kMaxDepth) {
      failed_ =
          make_error(ErrorCode::kInvalidArgument, "grammar: nested deeper than {}", kMaxDepth);
      return;
    }
    const GrammarExpr& expr = rules_.expr(id);
    switch (expr.kind) {
      case Kind::kNever: return;
      case Kind::kBytes: return place_bytes(expr.bytes, from, to);
      case Kind::kChars: return place_chars(expr.chars, from, to);
      case Kind::kRule: at(from).calls.push_back({expr.rule, to}); return;
      case Kind::kSequence: {
        int32_t here = from;
        for (size_t i = 0; i < expr.parts.size() && !failed_; ++i) {
          const int32_t next = i + 1 == expr.parts.size() ? to : add_state();
          place(expr.parts[i], here, next, depth + 1);
          here = next;
        }
        if (expr.parts.empty()) at(from).empty.push_back(to);
        return;
      }
      case Kind::kChoice:
        // No expression adds an edge into its first state or out of its last: parts can share both.
        for (const ExprId part : expr.parts) place(part, from, to, depth + 1);
        return;
      case Kind::kRepeat: return place_repeat(expr, from, to, depth);
      case Kind::kUntil: return place_until(expr, from, to, depth);
    }
  }

  void place_bytes(std::string_view bytes, int32_t from, int32_t to) {
    int32_t here = from;
    for (size_t i = 0; i < bytes.size() && !failed_; ++i) {
      const int32_t next = i + 1 == bytes.size() ? to : add_state();
      const auto byte = static_cast<uint8_t>(bytes[i]);
      at(here).bytes.push_back({byte, byte, next});
      here = next;
    }
    if (bytes.empty()) at(from).empty.push_back(to);
  }

  // Encodings share their endings: a state is known by the byte ranges still to come.
  void place_chars(const CharSet& set, int32_t from, int32_t to) {
    std::vector<ByteRanges> encodings;
    for (const auto& [first, last] : set.ranges()) split_utf8(first, last, &encodings);
    std::map<std::vector<std::pair<uint8_t, uint8_t>>, int32_t> suffixes;
    suffixes[{}] = to;
    for (const ByteRanges& ranges : encodings) {
      int32_t target = to;
      std::vector<std::pair<uint8_t, uint8_t>> suffix;
      for (size_t i = ranges.size() - 1; i > 0; --i) {
        suffix.insert(suffix.begin(), {ranges[i].first, ranges[i].last});
        const auto [known, is_new] = suffixes.try_emplace(suffix, -1);
        if (is_new) {
          known->second = add_state();
          at(known->second).bytes.push_back({ranges[i].first, ranges[i].last, target});
        }
        target = known->second;
      }
      at(from).bytes.push_back({ranges[0].first, ranges[0].last, target});
    }
  }

  void place_repeat(const GrammarExpr& expr, int32_t from, int32_t to, int depth) {
    const ExprId part = expr.parts[0];
    int32_t here = from;
    int32_t canonical = -1;  // first state of the copy that stands for the others
    for (int32_t i = 0; i < expr.min && !failed_; ++i) {
      const int32_t base = out_.num_states();
      here = place_copy(part, here, depth);
      // While more copies must follow than a token can hold, all of them look alike.
      if (expr.min - i > longest_token_ && i > 0) share(base, canonical);
      if (i == 0) canonical = base;
    }
    if (expr.max < 0) {
      const int32_t loop = add_state();
      at(here).empty.push_back(loop);
      at(loop).empty.push_back(to);
      const int32_t end = place_copy(part, loop, depth);
      at(end).empty.push_back(loop);
      return;
    }
    canonical = -1;
    for (int32_t i = expr.min; i < expr.max && !failed_; ++i) {
      at(here).empty.push_back(to);
      const int32_t base = out_.num_states();
      here = place_copy(part, here, depth);
      if (expr.max - i > longest_token_ && i > expr.min) share(base, canonical);
      if (i == expr.min) canonical = base;
    }
    at(here).empty.push_back(to);
  }

  // One copy of a repeated part after `from`, in states of its own; returns its end.
  int32_t place_copy(ExprId part, int32_t from, int depth) {
    const int32_t start = add_state();
    const int32_t end = add_state();
    at(from).empty.push_back(start);
    place(part, start, end, depth + 1);
    return end;
  }

  // The states from `base` on mirror those from `canonical` on, one by one.
  void share(int32_t base, int32_t canonical) {
    for (int32_t s = base; s < out_.num_states(); ++s)
      out_.representatives_[static_cast<size_t>(s)] =
          out_.representatives_[static_cast<size_t>(canonical + (s - base))];
  }

  void place_until(const GrammarExpr& expr, int32_t from, int32_t to, int depth) {
    // Aho-Corasick. Node 0 has read nothing that matters.
    struct Node {
      std::array<int32_t, 256> next;
      int32_t fail = 0;
      int32_t ends = -1;  // a trigger's index; -2: an excluded string
    };
    constexpr int32_t kExcluded = -2;
    std::vector<Node> nodes(1);
    nodes[0].next.fill(-1);
    const auto insert = [&](std::string_view text, int32_t mark) {
      int32_t node = 0;
      for (const char c : text) {
        const auto byte = static_cast<uint8_t>(c);
        if (nodes[static_cast<size_t>(node)].next[byte] < 0) {
          nodes[static_cast<size_t>(node)].next[byte] = static_cast<int32_t>(nodes.size());
          nodes.emplace_back();
          nodes.back().next.fill(-1);
        }
        node = nodes[static_cast<size_t>(node)].next[byte];
      }
      if (nodes[static_cast<size_t>(node)].ends == -1) nodes[static_cast<size_t>(node)].ends = mark;
    };
    size_t total = 0;
    for (const auto& list : {expr.triggers, expr.excluded})
      for (const std::string& text : list) total += text.size();
    if (total > 8192) {
      failed_ = make_error(ErrorCode::kInvalidArgument,
                           "grammar: {} bytes of tag triggers, at most 8192", total);
      return;
    }
    for (size_t i = 0; i < expr.triggers.size(); ++i)
      insert(expr.triggers[i], static_cast<int32_t>(i));
    for (const std::string& text : expr.excluded) insert(text, kExcluded);
    std::deque<int32_t> queue = {0};
    while (!queue.empty()) {
      const int32_t id = queue.front();
      queue.pop_front();
      for (int byte = 0; byte < 256; ++byte) {
        auto& node = nodes[static_cast<size_t>(id)];
        const auto b = static_cast<size_t>(byte);
        const int32_t fallback = id == 0 ? 0 : nodes[static_cast<size_t>(node.fail)].next[b];
        const int32_t child = node.next[b];
        if (child < 0) {
          node.next[b] = fallback;
          continue;
        }
        auto& next = nodes[static_cast<size_t>(child)];
        next.fail = id == 0 ? 0 : fallback;
        if (next.ends == -1) next.ends = nodes[static_cast<size_t>(next.fail)].ends;
        queue.push_back(child);
      }
    }
    std::vector<int32_t> states(nodes.size());
    for (int32_t& state : states) state = add_state();
    at(from).empty.push_back(states[0]);
    for (size_t n = 0; n < nodes.size() && !failed_; ++n) {
      const Node& node = nodes[n];
      if (node.ends == kExcluded) continue;
      if (node.ends >= 0) {
        const int32_t start = add_state();
        const int32_t end = add_state();
        at(states[n]).empty.push_back(start);
        place(expr.parts[static_cast<size_t>(node.ends)], start, end, depth + 1);
        at(end).empty.push_back(to);
        continue;
      }
      if (expr.may_end) at(states[n]).empty.push_back(to);
      for (int byte = 0; byte < 256;) {
        const int32_t target = node.next[static_cast<size_t>(byte)];
        int last = byte;
        while (last < 255 && node.next[static_cast<size_t>(last + 1)] == target) ++last;
        if (nodes[static_cast<size_t>(target)].ends != kExcluded)
          at(states[n]).bytes.push_back({static_cast<uint8_t>(byte), static_cast<uint8_t>(last),
                                         states[static_cast<size_t>(target)]});
        byte = last + 1;
      }
    }
  }

  // Stamps every state reachable from `start`; follow(s, visit) visits the neighbours of s.
  template <class Follow>
  void reach(int32_t start, std::vector<int32_t>* stamp, int32_t mark, Follow follow) {
    std::vector<int32_t> stack = {start};
    (*stamp)[static_cast<size_t>(start)] = mark;
    while (!stack.empty()) {
      const int32_t s = stack.back();
      stack.pop_back();
      follow(s, [&](int32_t target) {
        if ((*stamp)[static_cast<size_t>(target)] == mark) return;
        (*stamp)[static_cast<size_t>(target)] = mark;
        stack.push_back(target);
      });
    }
  }

  // Which rules match nothing-at-all: a worklist backwards over empty edges and calls.
  void find_nullable() {
    propagate([](const State& s, auto&& edge) { (void)s, (void)edge; },
              &GrammarAutomaton::Rule::nullable, nullptr);
  }

  // Backwards from accepting states: `bytes_too(state, edge)` names further edges to go along. A
  // call edge counts once its rule has the property. `good` (may be null) receives the states.
  template <class BytesToo>
  void propagate(BytesToo bytes_too, bool GrammarAutomaton::Rule::*property,
                 std::vector<char>* good) {
    const size_t n = out_.states_.size();
    std::vector<char> local;
    std::vector<char>& reached = good != nullptr ? *good : local;
    reached.assign(n, 0);
    std::vector<std::vector<int32_t>> back(n);
    std::vector<std::vector<std::pair<int32_t, int32_t>>> callers(out_.rules_.size());
    std::vector<RuleId> rule_of_start(n, -1);
    for (size_t r = 0; r < out_.rules_.size(); ++r)
      rule_of_start[static_cast<size_t>(out_.rules_[r].start)] = static_cast<RuleId>(r);
    std::vector<int32_t> work;
    const auto reach_state = [&](int32_t s) {
      if (reached[static_cast<size_t>(s)]) return;
      reached[static_cast<size_t>(s)] = 1;
      work.push_back(s);
    };
    for (int32_t s = 0; s < out_.num_states(); ++s) {
      const State& state = at(s);
      for (const int32_t t : state.empty) back[static_cast<size_t>(t)].push_back(s);
      bytes_too(state, [&](int32_t t) { back[static_cast<size_t>(t)].push_back(s); });
      for (const auto& call : state.calls)
        callers[static_cast<size_t>(call.rule)].emplace_back(s, call.target);
      if (state.accepts) reach_state(s);
    }
    std::vector<std::vector<int32_t>> waiting(n);  // callers whose rule is known, by target
    while (!work.empty()) {
      const int32_t s = work.back();
      work.pop_back();
      for (const int32_t from : back[static_cast<size_t>(s)]) reach_state(from);
      for (const int32_t from : waiting[static_cast<size_t>(s)]) reach_state(from);
      const RuleId rule = rule_of_start[static_cast<size_t>(s)];
      if (rule < 0) continue;
      out_.rules_[static_cast<size_t>(rule)].*property = true;
      for (const auto& [from, target] : callers[static_cast<size_t>(rule)]) {
        if (reached[static_cast<size_t>(target)])
          reach_state(from);
        else
          waiting[static_cast<size_t>(target)].push_back(from);
      }
    }
  }

  // Edges into states that can never end their rule would offer tokens that lead nowhere.
  Status drop_unproductive() {
    std::vector<char> good;
    propagate(
        [](const State& s, auto&& edge) {
          for (const auto& byte : s.bytes) edge(byte.target);
        },
        &GrammarAutomaton::Rule::productive, &good);
    if (!out_.rules_[static_cast<size_t>(out_.start_rule_)].productive)
      return make_error(ErrorCode::kInvalidArgument,
                        "grammar: no text matches it (rule {} can never end)",
                        rules_.rules()[static_cast<size_t>(out_.start_rule_)].name);
    const auto is_bad = [&](int32_t target) { return !good[static_cast<size_t>(target)]; };
    for (State& s : out_.states_) {
      std::erase_if(s.bytes, [&](const auto& e) { return is_bad(e.target); });
      std::erase_if(s.empty, [&](int32_t t) { return is_bad(t); });
      std::erase_if(s.calls, [&](const auto& e) {
        return is_bad(e.target) || !out_.rules_[static_cast<size_t>(e.rule)].productive;
      });
    }
    return {};
  }

  // Topological order of "may call before reading a byte"; a cycle is left recursion.
  Status rank_rules() {
    const size_t n = out_.rules_.size();
    std::vector<std::vector<RuleId>> callees(n);
    std::vector<int32_t> stamp(out_.states_.size(), -1);
    for (size_t r = 0; r < n; ++r)
      reach(out_.rules_[r].start, &stamp, static_cast<int32_t>(r), [&](int32_t s, auto&& visit) {
        for (const int32_t t : at(s).empty) visit(t);
        for (const auto& call : at(s).calls) {
          callees[r].push_back(call.rule);
          if (out_.rules_[static_cast<size_t>(call.rule)].nullable) visit(call.target);
        }
      });
    std::vector<int32_t> num_callers(n, 0);
    for (const auto& list : callees)
      for (const RuleId callee : list) ++num_callers[static_cast<size_t>(callee)];
    std::vector<RuleId> ready;
    for (size_t r = 0; r < n; ++r)
      if (num_callers[r] == 0) ready.push_back(static_cast<RuleId>(r));
    int32_t rank = 0;
    while (!ready.empty()) {
      const RuleId rule = ready.back();
      ready.pop_back();
      out_.rules_[static_cast<size_t>(rule)].rank = rank++;
      for (const RuleId callee : callees[static_cast<size_t>(rule)])
        if (--num_callers[static_cast<size_t>(callee)] == 0) ready.push_back(callee);
    }
    if (rank == static_cast<int32_t>(n)) return {};
    // Every rule left has a caller that is left: going back from one ends on a cycle.
    std::vector<size_t> caller_of(n);
    for (size_t r = 0; r < n; ++r)
      for (const RuleId callee : callees[r])
        if (num_callers[r] > 0) caller_of[static_cast<size_t>(callee)] = r;
    auto stuck = static_cast<size_t>(
        std::ranges::find_if(num_callers, [](int32_t c) { return c > 0; }) - num_callers.begin());
    for (size_t i = 0; i < n; ++i) stuck = caller_of[stuck];
    return make_error(ErrorCode::kInvalidArgument,
                      "grammar: rule {} may start with itself (left recursion); write the "
                      "repetition with * or +",
                      rules_.rules()[stuck].name);
  }

  void find_only_accepting() {
    std::vector<int32_t> stamp(out_.states_.size(), -1);
    for (int32_t s = 0; s < out_.num_states(); ++s) {
      bool accepts = false;
      bool more = !at(s).bytes.empty() || !at(s).calls.empty();
      // Most states do more; look further only where this one does not.
      if (more || at(s).empty.size() > 4) continue;
      reach(s, &stamp, s, [&](int32_t t, auto&& visit) {
        accepts |= at(t).accepts;
        more |= !at(t).bytes.empty() || !at(t).calls.empty();
        if (more) return;
        for (const int32_t next : at(t).empty) visit(next);
      });
      at(s).only_accepts = accepts && !more;
    }
  }

  void find_classes() {
    std::array<bool, 257> starts{};
    starts[0] = true;
    for (const State& s : out_.states_)
      for (const auto& edge : s.bytes) {
        starts[edge.first] = true;
        starts[static_cast<size_t>(edge.last) + 1] = true;
      }
    int32_t current = -1;
    for (size_t byte = 0; byte < 256; ++byte) {
      current += starts[byte];
      out_.classes_[byte] = static_cast<uint8_t>(current);
    }
    out_.num_classes_ = current + 1;
  }

  const GrammarRules& rules_;
  int32_t longest_token_;
  GrammarAutomaton out_;
  std::optional<Error> failed_;
};

Result<GrammarAutomaton> GrammarAutomaton::build(const GrammarRules& rules, int32_t longest_token) {
  return AutomatonBuilder(rules, longest_token).build();
}

}  // namespace nibble
