// Runs the automata of a grammar over bytes and turns states into token masks.
//
// A *configuration* is everything the text so far can mean: a set of items (state, continuation).
// A *continuation* is where a rule's callers go on: a set of items again, so stacks that differ
// share what they have in common and ambiguous grammars stay polynomial. Both are interned: equal
// ones have one number, and the step (configuration, byte class) -> configuration is a table that
// fills itself, a deterministic automaton made on demand.
//
// A mask is found by walking the token trie along that table. Most of the work is shared: the items
// of one continuation are walked once with "whoever called" (kCaller) in its place. That local walk
// gives the tokens that stay inside the rule, and the trie nodes at which the rule ends; only what
// is below those nodes is walked again for each real caller. So the inside of a JSON string, where
// nearly the whole vocabulary is allowed, is walked once and not once per property.
#include <algorithm>
#include <bit>
#include <chrono>
#include <map>
#include <mutex>
#include <unordered_map>

#include "base/check.h"
#include "text/grammar.h"
#include "text/grammar_automaton.h"
#include "text/token_trie.h"

namespace nibble {
namespace {

using ConfigId = int32_t;
using ContinuationId = int32_t;
constexpr ContinuationId kCaller = 0;  // the caller of the start rule, or an unknown one
constexpr ConfigId kUnknown = -1;
constexpr ConfigId kDead = 0;

// Hostile grammars only: a configuration with more items is given up (its text cannot go on), and a
// walk that creates more configurations offers single bytes only.
constexpr size_t kMaxItems = 4096;
constexpr int64_t kMaxWalkWork = 2'000'000;  // items made in one fill()

struct Item {
  int32_t state;
  ContinuationId continuation;
  friend auto operator<=>(const Item&, const Item&) = default;
};

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
uint64_t hash_items(const std::vector<Item>& items, bool flag) {
  uint64_t hash = flag ? 0x9e3779b97f4a7c15u : 0x2545f4914f6cdd1du;
  for (const Item& item : items)
    hash = mix(hash ^ (static_cast<uint64_t>(static_cast<uint32_t>(item.state)) << 32 |
                       static_cast<uint32_t>(item.continuation)));
  return hash;
}

// A set of tokens: a list while short, a bitmap otherwise.
class TokenSet {
 public:
  void set_in(std::span<uint32_t> mask) const {
    for (size_t i = 0; i < std::min(words_.size(), mask.size()); ++i) mask[i] |= words_[i];
    for (const int32_t token : list_) {
      const auto t = static_cast<size_t>(token);
      if (t / 32 < mask.size()) mask[t / 32] |= 1u << (t % 32);
    }
  }
  // Takes what `list` holds.
  TokenSet(const std::vector<int32_t>& list, int32_t vocab_size) {
    const size_t num_words = (static_cast<size_t>(vocab_size) + 31) / 32;
    if (list.size() <= num_words) {
      list_.assign(list.begin(), list.end());
      return;
    }
    words_.resize(num_words);
    for (const int32_t token : list) words_[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
  }
  size_t bytes() const { return 4 * (list_.size() + words_.size()) + sizeof *this; }

 private:
  std::vector<int32_t> list_;
  std::vector<uint32_t> words_;
};

// Items met in one closure; cleared by counting up.
class SeenItems {
 public:
  void clear() {
    ++stamp_;
    count_ = 0;
  }
  bool insert(Item item) {
    if (2 * (count_ + 1) > slots_.size()) grow();
    const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(item.state)) << 32 |
                         static_cast<uint32_t>(item.continuation);
    size_t i = mix(key) & (slots_.size() - 1);
    for (; slots_[i].stamp == stamp_; i = (i + 1) & (slots_.size() - 1))
      if (slots_[i].key == key) return false;
    slots_[i] = {key, stamp_};
    ++count_;
    return true;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint64_t stamp = 0;
  };
  void grow() {
    std::vector<Slot> old = std::move(slots_);
    slots_.assign(std::max<size_t>(64, old.size() * 2), {});
    for (const Slot& slot : old) {
      if (slot.stamp != stamp_) continue;
      size_t i = mix(slot.key) & (slots_.size() - 1);
      while (slots_[i].stamp == stamp_) i = (i + 1) & (slots_.size() - 1);
      slots_[i] = slot;
    }
  }
  std::vector<Slot> slots_;
  uint64_t stamp_ = 1;
  size_t count_ = 0;
};

}  // namespace

struct CompiledGrammar::State {
  struct Continuation {
    std::vector<Item> returns;      // sorted
    bool to_caller = false;         // one of the callers is kCaller itself
    ConfigId popped = kUnknown;     // configuration when the rule ends here
    ContinuationId canonical = -1;  // with representatives in place of states
  };
  struct Config {
    std::vector<Item> items;  // states with byte edges; sorted
    bool complete = false;    // the rule of kCaller may end here
    ConfigId canonical = kUnknown;
    int32_t mask = -1;   // index into masks: the tokens allowed
    int32_t local = -1;  // index into locals: when all items continue with kCaller
  };
  struct Local {
    TokenSet tokens;
    std::vector<int32_t> ends;  // trie nodes at which the rule ends and the trie goes on
  };

  State(GrammarAutomaton a, std::shared_ptr<const TokenTrie> t, size_t max_bytes)
      : automaton(std::move(a)), trie(std::move(t)), max_cache_bytes(max_bytes) {
    path.resize(static_cast<size_t>(trie->max_depth()) + 1);
    pending.resize(static_cast<size_t>(automaton.num_rules()));
    forget();
  }

  // Drops all that was learned; ids of before are void.
  void forget() {
    ++generation;
    configs.clear();
    continuations.clear();
    config_ids.clear();
    continuation_ids.clear();
    table.clear();
    masks.clear();
    locals.clear();
    bytes = 0;
    intern_config({}, false);       // kDead
    intern_continuation({}, true);  // kCaller
    std::vector<Item> seeds = {{automaton.rule_start(automaton.start_rule()), kCaller}};
    start = close(seeds);
  }
  void keep_within_cap() {
    if (bytes > max_cache_bytes) forget();
  }

  ConfigId intern_config(std::vector<Item> items, bool complete) {
    const uint64_t hash = hash_items(items, complete);
    const auto [first, last] = config_ids.equal_range(hash);
    for (auto it = first; it != last; ++it) {
      const Config& known = configs[static_cast<size_t>(it->second)];
      if (known.complete == complete && known.items == items) return it->second;
    }
    const auto id = static_cast<ConfigId>(configs.size());
    config_ids.emplace(hash, id);
    bytes += sizeof(Config) + items.size() * sizeof(Item) + 64 +
             static_cast<size_t>(automaton.num_classes()) * sizeof(ConfigId);
    configs.push_back({.items = std::move(items), .complete = complete});
    table.resize(table.size() + static_cast<size_t>(automaton.num_classes()),
                 id == kDead ? kDead : kUnknown);
    return id;
  }

  ContinuationId intern_continuation(std::vector<Item> returns, bool to_caller) {
    const uint64_t hash = hash_items(returns, to_caller);
    const auto [first, last] = continuation_ids.equal_range(hash);
    for (auto it = first; it != last; ++it) {
      const Continuation& known = continuations[static_cast<size_t>(it->second)];
      if (known.to_caller == to_caller && known.returns == returns) return it->second;
    }
    const auto id = static_cast<ContinuationId>(continuations.size());
    continuation_ids.emplace(hash, id);
    bytes += sizeof(Continuation) + returns.size() * sizeof(Item) + 64;
    continuations.push_back({.returns = std::move(returns), .to_caller = to_caller});
    return id;
  }

  // All that `seeds` lead to without reading a byte.
  ConfigId close(std::vector<Item>& seeds) {
    seen.clear();
    found.clear();
    bool complete = false;
    std::vector<Item>& stack = seeds;
    std::erase_if(stack, [&](const Item& item) { return !seen.insert(item); });
    const auto push = [&](Item item) {
      if (seen.insert(item)) stack.push_back(item);
    };
    const auto drain = [&] {
      while (!stack.empty()) {
        const Item item = stack.back();
        stack.pop_back();
        ++work;
        const GrammarAutomaton::State& state = automaton.state(item.state);
        if (!state.bytes.empty()) found.push_back(item);
        for (const int32_t target : state.empty) push({target, item.continuation});
        for (const auto& call : state.calls) {
          auto& callers = pending[static_cast<size_t>(call.rule)];
          if (callers.empty()) due.emplace(automaton.rule_rank(call.rule), call.rule);
          callers.push_back({call.target, item.continuation});
          if (automaton.rule_may_be_empty(call.rule)) push({call.target, item.continuation});
        }
        if (state.accepts) {
          const Continuation& next = continuations[static_cast<size_t>(item.continuation)];
          complete |= next.to_caller;
          for (const Item& back : next.returns) push(back);
        }
      }
    };
    drain();
    // In order of rank: when a rule's turn comes, all its callers here are known.
    while (!due.empty()) {
      const RuleId rule = due.begin()->second;
      due.erase(due.begin());
      std::vector<Item> returns;
      bool to_caller = false;
      for (const Item& caller : pending[static_cast<size_t>(rule)]) {
        if (!automaton.state(caller.state).only_accepts) {
          returns.push_back(caller);
          continue;
        }
        // A call in last place: the callee returns to the caller's own caller.
        const Continuation& next = continuations[static_cast<size_t>(caller.continuation)];
        to_caller |= next.to_caller;
        returns.insert(returns.end(), next.returns.begin(), next.returns.end());
      }
      pending[static_cast<size_t>(rule)].clear();
      std::ranges::sort(returns);
      returns.erase(std::unique(returns.begin(), returns.end()), returns.end());
      if (found.size() + returns.size() > kMaxItems) {
        found.clear();
        complete = false;
        for (const auto& [rank, other] : due) pending[static_cast<size_t>(other)].clear();
        due.clear();
        break;
      }
      push({automaton.rule_start(rule), intern_continuation(std::move(returns), to_caller)});
      drain();
    }
    if (found.size() > kMaxItems) {
      found.clear();
      complete = false;
    }
    std::ranges::sort(found);
    return intern_config(found, complete);
  }

  ConfigId step(ConfigId from, uint8_t byte) {
    const size_t cell = static_cast<size_t>(from) * static_cast<size_t>(automaton.num_classes()) +
                        static_cast<size_t>(automaton.class_of(byte));
    if (table[cell] != kUnknown) return table[cell];
    seeds.clear();
    for (const Item& item : configs[static_cast<size_t>(from)].items)
      for (const auto& edge : automaton.state(item.state).bytes)
        if (edge.first <= byte && byte <= edge.last)
          seeds.push_back({edge.target, item.continuation});
    const ConfigId to = close(seeds);
    table[cell] = to;
    return to;
  }

  // Tokens below `root` (-1: all) that `from` can read; appends to `allowed`, and to `ends` the
  // nodes where the outermost rule ends.
  void walk(ConfigId from, int32_t root, std::vector<int32_t>* allowed,
            std::vector<int32_t>* ends) {
    if (from == kDead) return;
    const TokenTrie& t = *trie;
    const int32_t base = root < 0 ? 0 : t.depth(root);
    const int32_t last = root < 0 ? t.num_nodes() : t.subtree_end(root);
    path[static_cast<size_t>(base)] = from;
    for (int32_t node = root + 1; node < last;) {
      const auto depth = static_cast<size_t>(t.depth(node));
      ConfigId config = step(path[depth - 1], t.byte(node));
      if (work > kMaxWalkWork && depth > static_cast<size_t>(base) + 1) config = kDead;
      if (config == kDead) {
        node = t.subtree_end(node);
        continue;
      }
      path[depth] = config;
      const std::span<const int32_t> tokens = t.tokens(node);
      allowed->insert(allowed->end(), tokens.begin(), tokens.end());
      if (ends != nullptr && configs[static_cast<size_t>(config)].complete &&
          t.subtree_end(node) > node + 1)
        ends->push_back(node);
      ++node;
    }
  }

  // Looks the same for the length of any token.
  ContinuationId canonical_continuation(ContinuationId id) {
    // Bottom-up without recursion: texts may nest deeply.
    std::vector<ContinuationId> todo = {id};
    while (!todo.empty()) {
      const ContinuationId current = todo.back();
      const Continuation& c = continuations[static_cast<size_t>(current)];
      if (c.canonical >= 0) {
        todo.pop_back();
        continue;
      }
      bool ready = true;
      for (const Item& item : c.returns)
        if (continuations[static_cast<size_t>(item.continuation)].canonical < 0) {
          todo.push_back(item.continuation);
          ready = false;
        }
      if (!ready) continue;
      std::vector<Item> returns;
      for (const Item& item : c.returns)
        returns.push_back({automaton.representative(item.state),
                           continuations[static_cast<size_t>(item.continuation)].canonical});
      std::ranges::sort(returns);
      returns.erase(std::unique(returns.begin(), returns.end()), returns.end());
      const ContinuationId canonical = intern_continuation(std::move(returns), c.to_caller);
      continuations[static_cast<size_t>(current)].canonical = canonical;
      continuations[static_cast<size_t>(canonical)].canonical = canonical;
      todo.pop_back();
    }
    return continuations[static_cast<size_t>(id)].canonical;
  }

  ConfigId canonical_config(ConfigId id) {
    if (configs[static_cast<size_t>(id)].canonical != kUnknown)
      return configs[static_cast<size_t>(id)].canonical;
    std::vector<Item> items = configs[static_cast<size_t>(id)].items;
    for (Item& item : items)
      item = {automaton.representative(item.state), canonical_continuation(item.continuation)};
    std::ranges::sort(items);
    items.erase(std::unique(items.begin(), items.end()), items.end());
    const ConfigId canonical =
        intern_config(std::move(items), configs[static_cast<size_t>(id)].complete);
    configs[static_cast<size_t>(id)].canonical = canonical;
    configs[static_cast<size_t>(canonical)].canonical = canonical;
    return canonical;
  }

  ConfigId popped(ContinuationId id) {
    if (continuations[static_cast<size_t>(id)].popped == kUnknown) {
      std::vector<Item> seeds = continuations[static_cast<size_t>(id)].returns;
      const ConfigId config = close(seeds);
      continuations[static_cast<size_t>(id)].popped = config;
    }
    return continuations[static_cast<size_t>(id)].popped;
  }

  int32_t local_mask(ConfigId id) {
    if (configs[static_cast<size_t>(id)].local >= 0) return configs[static_cast<size_t>(id)].local;
    std::vector<int32_t> allowed;
    std::vector<int32_t> ends;
    walk(id, -1, &allowed, &ends);
    Local local{.tokens = TokenSet(allowed, trie->vocab_size()), .ends = std::move(ends)};
    bytes += local.tokens.bytes() + local.ends.size() * sizeof(int32_t) + sizeof(Local);
    locals.push_back(std::move(local));
    return configs[static_cast<size_t>(id)].local = static_cast<int32_t>(locals.size()) - 1;
  }

  const TokenSet& mask_of(ConfigId any) {
    const ConfigId id = canonical_config(any);
    if (configs[static_cast<size_t>(id)].mask >= 0)
      return masks[static_cast<size_t>(configs[static_cast<size_t>(id)].mask)];
    work = 0;
    // Items come grouped by state; group them by continuation.
    std::map<ContinuationId, std::vector<Item>> groups;
    for (const Item& item : configs[static_cast<size_t>(id)].items)
      groups[item.continuation].push_back({item.state, kCaller});
    std::vector<int32_t> allowed;
    std::vector<uint32_t> words((static_cast<size_t>(trie->vocab_size()) + 31) / 32);
    for (auto& [continuation, items] : groups) {
      const int32_t local = local_mask(intern_config(std::move(items), false));
      locals[static_cast<size_t>(local)].tokens.set_in(words);
      if (continuations[static_cast<size_t>(continuation)].returns.empty()) continue;
      const ConfigId after = popped(continuation);
      const std::vector<int32_t>& ends = locals[static_cast<size_t>(local)].ends;
      for (const int32_t node : ends) walk(after, node, &allowed, nullptr);
    }
    for (const int32_t token : allowed)
      words[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
    std::vector<int32_t> list;
    for (size_t w = 0; w < words.size(); ++w)
      for (uint32_t rest = words[w]; rest != 0; rest &= rest - 1)
        list.push_back(static_cast<int32_t>(w * 32) + std::countr_zero(rest));
    masks.emplace_back(list, trie->vocab_size());
    bytes += masks.back().bytes();
    configs[static_cast<size_t>(id)].mask = static_cast<int32_t>(masks.size()) - 1;
    return masks.back();
  }

  GrammarAutomaton automaton;
  std::shared_ptr<const TokenTrie> trie;
  size_t max_cache_bytes;

  std::mutex mutex;  // guards the rest
  uint64_t generation = 0;
  size_t bytes = 0;
  ConfigId start = kDead;
  std::vector<Config> configs;
  std::vector<Continuation> continuations;
  std::unordered_multimap<uint64_t, ConfigId> config_ids;
  std::unordered_multimap<uint64_t, ContinuationId> continuation_ids;
  std::vector<ConfigId> table;  // [config, byte class]
  std::vector<TokenSet> masks;
  std::vector<Local> locals;

  // Scratch.
  int64_t work = 0;
  SeenItems seen;
  std::vector<Item> found;
  std::vector<Item> seeds;
  std::vector<std::vector<Item>> pending;  // callers, by rule
  std::map<int32_t, RuleId> due;           // rules with pending callers, by rank
  std::vector<ConfigId> path;              // configuration at each depth of the trie
};

CompiledGrammar::CompiledGrammar(std::unique_ptr<State> state) : state_(std::move(state)) {}
CompiledGrammar::~CompiledGrammar() = default;

Result<std::shared_ptr<CompiledGrammar>> CompiledGrammar::compile(
    const Grammar& grammar, std::shared_ptr<const TokenTrie> trie, size_t max_cache_bytes) {
  NB_TRY(GrammarAutomaton automaton, GrammarAutomaton::build(grammar.rules(), trie->max_depth()));
  return std::shared_ptr<CompiledGrammar>(new CompiledGrammar(
      std::make_unique<State>(std::move(automaton), std::move(trie), max_cache_bytes)));
}

size_t CompiledGrammar::cache_bytes() const {
  std::lock_guard lock(state_->mutex);
  return state_->bytes;
}

void CompiledGrammar::warm_up(int milliseconds) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(milliseconds);
  State& s = *state_;
  std::lock_guard lock(s.mutex);
  // Breadth first over what single bytes lead to; one byte stands for its class.
  std::vector<uint8_t> bytes;
  for (int byte = 0; byte < 256; ++byte)
    if (byte == 0 || s.automaton.class_of(static_cast<uint8_t>(byte)) !=
                         s.automaton.class_of(static_cast<uint8_t>(byte - 1)))
      bytes.push_back(static_cast<uint8_t>(byte));
  std::vector<ConfigId> order = {s.start};
  std::vector<bool> met;
  const auto meet = [&](ConfigId config) {
    if (static_cast<size_t>(config) >= met.size()) met.resize(static_cast<size_t>(config) + 1);
    const bool is_new = !met[static_cast<size_t>(config)];
    met[static_cast<size_t>(config)] = true;
    return is_new;
  };
  meet(kDead);
  for (size_t i = 0; i < order.size() && s.bytes < s.max_cache_bytes / 2; ++i) {
    if (Clock::now() >= end) return;
    s.mask_of(order[i]);
    for (const uint8_t byte : bytes)
      if (const ConfigId next = s.step(order[i], byte); meet(next)) order.push_back(next);
  }
}

struct GrammarMatcher::State {
  std::shared_ptr<CompiledGrammar> grammar;
  std::string text;  // accepted so far: finds the configuration again when the cache was dropped
  ConfigId config = kDead;
  uint64_t generation = 0;
  bool ended = false;

  // Under the grammar's mutex.
  void refresh() {
    CompiledGrammar::State& s = *grammar->state_;
    if (generation == s.generation) return;
    generation = s.generation;
    config = s.start;
    for (const char c : text) config = s.step(config, static_cast<uint8_t>(c));
  }
};

GrammarMatcher::GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar)
    : state_(std::make_unique<State>()) {
  state_->grammar = std::move(grammar);
  std::lock_guard lock(state_->grammar->state_->mutex);
  state_->refresh();
}
GrammarMatcher::GrammarMatcher(const GrammarMatcher& other)
    : state_(std::make_unique<State>(*other.state_)) {}
GrammarMatcher& GrammarMatcher::operator=(const GrammarMatcher& other) {
  if (this != &other) *state_ = *other.state_;
  return *this;
}
GrammarMatcher::~GrammarMatcher() = default;

void GrammarMatcher::fill(std::span<uint32_t> mask) {
  std::ranges::fill(mask, 0u);
  CompiledGrammar::State& s = *state_->grammar->state_;
  std::lock_guard lock(s.mutex);
  s.keep_within_cap();
  state_->refresh();
  if (!state_->ended) s.mask_of(state_->config).set_in(mask);
  if (!state_->ended && !s.configs[static_cast<size_t>(state_->config)].complete) return;
  for (const int32_t token : s.trie->end_tokens()) {
    const auto t = static_cast<size_t>(token);
    if (t / 32 < mask.size()) mask[t / 32] |= 1u << (t % 32);
  }
}

bool GrammarMatcher::accept(int32_t token) {
  const TokenTrie& trie = *state_->grammar->state_->trie;
  if (trie.is_end_token(token)) {
    if (!complete()) return false;
    state_->ended = true;
    return true;
  }
  const std::string_view bytes = trie.token_bytes(token);
  return !bytes.empty() && accept_bytes(bytes);
}

bool GrammarMatcher::accept_bytes(std::string_view bytes) {
  if (state_->ended) return bytes.empty();
  CompiledGrammar::State& s = *state_->grammar->state_;
  std::lock_guard lock(s.mutex);
  s.keep_within_cap();
  state_->refresh();
  ConfigId config = state_->config;
  for (const char c : bytes) config = s.step(config, static_cast<uint8_t>(c));
  if (config == kDead) return false;
  state_->config = config;
  state_->text += bytes;
  return true;
}

bool GrammarMatcher::complete() const {
  if (state_->ended) return true;
  CompiledGrammar::State& s = *state_->grammar->state_;
  std::lock_guard lock(s.mutex);
  state_->refresh();
  return s.configs[static_cast<size_t>(state_->config)].complete;
}

bool GrammarMatcher::ended() const {
  return state_->ended;
}

}  // namespace nibble
