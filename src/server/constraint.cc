// A matcher behind the engine's interface, asleep while the model still reasons.
#include "server/constraint.h"

#include <algorithm>
#include <list>
#include <mutex>
#include <optional>

#include "base/format.h"
#include "server/fields.h"
#include "text/token_trie.h"

namespace nibble {

class GrammarCache {
 public:
  GrammarCache(const Tokenizer& tokenizer, std::vector<int32_t> stop_token_ids)
      : tokenizer_(tokenizer), stop_token_ids_(std::move(stop_token_ids)) {}

  // The trie is built by the first request that needs it.
  std::shared_ptr<const TokenTrie> trie() {
    std::lock_guard lock(mutex_);
    if (trie_ == nullptr) trie_ = TokenTrie::of(tokenizer_, stop_token_ids_);
    return trie_;
  }

  template <class Make>
  Result<std::shared_ptr<CompiledGrammar>> get(const std::string& key, Make make) {
    {
      std::lock_guard lock(mutex_);
      for (auto it = entries_.begin(); it != entries_.end(); ++it) {
        if (it->key != key) continue;
        entries_.splice(entries_.begin(), entries_, it);
        return it->grammar;
      }
    }
    // Outside the lock: others need not wait. Two requests may compile the same grammar.
    NB_TRY(const Grammar grammar, make());
    NB_TRY(std::shared_ptr<CompiledGrammar> compiled,
           CompiledGrammar::compile(grammar, trie(), kBytesPerGrammar));
    compiled->warm_up(kWarmUpMs);
    std::lock_guard lock(mutex_);
    entries_.push_front({key, compiled});
    size_t bytes = 0;
    for (auto it = entries_.begin(); it != entries_.end();) {
      bytes += it->grammar->cache_bytes() + it->key.size();
      const bool keep = it == entries_.begin() || bytes <= kMaxBytes;
      it = keep ? std::next(it) : entries_.erase(it);
    }
    return compiled;
  }

 private:
  static constexpr size_t kBytesPerGrammar = size_t{32} << 20;
  static constexpr size_t kMaxBytes = size_t{128} << 20;
  static constexpr int kWarmUpMs = 100;
  struct Entry {
    std::string key;
    std::shared_ptr<CompiledGrammar> grammar;
  };
  const Tokenizer& tokenizer_;
  std::vector<int32_t> stop_token_ids_;
  std::mutex mutex_;  // guards the rest
  std::shared_ptr<const TokenTrie> trie_;
  std::list<Entry> entries_;  // most recently used first
};

namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";
constexpr std::string_view kToolCall = "<tool_call>";

class GrammarConstraint final : public TokenConstraint {
 public:
  struct Setup {
    std::shared_ptr<CompiledGrammar> grammar;
    std::shared_ptr<const TokenTrie> trie;
    std::vector<int32_t> end_tokens;  // of the model and the request
    bool in_reasoning = false;
    bool writes_tool_calls = false;
    std::optional<int32_t> tool_call_token = {};
  };
  explicit GrammarConstraint(Setup setup)
      : setup_(std::move(setup)), matcher_(setup_.grammar), in_reasoning_(setup_.in_reasoning) {}

  bool fill(std::span<uint32_t> allowed) override {
    if (in_reasoning_) {
      // Anything but an end: the answer is still to come. <tool_call> would end the reasoning for
      // the reader of the reply, so it must fit the grammar.
      std::ranges::fill(allowed, ~0u);
      for (const int32_t token : setup_.end_tokens) set(allowed, token, false);
      if (setup_.tool_call_token && !setup_.writes_tool_calls)
        set(allowed, *setup_.tool_call_token, false);
      return true;
    }
    matcher_.fill(allowed);
    // No token of the vocabulary can go on: end here rather than write what is wrong.
    const bool stuck = std::ranges::all_of(allowed, [](uint32_t word) { return word == 0; });
    if (stuck || matcher_.complete())
      for (const int32_t token : setup_.end_tokens) set(allowed, token, true);
    return true;
  }

  void accept(int32_t token) override {
    if (!in_reasoning_) {
      matcher_.accept(token);
      return;
    }
    tail_ += setup_.trie->token_bytes(token);
    size_t rest = std::string::npos;
    if (const size_t close = tail_.find(kThinkClose); close != std::string::npos)
      rest = close + kThinkClose.size();
    else if (const size_t call = tail_.find(kToolCall);
             call != std::string::npos && setup_.writes_tool_calls)
      rest = call;
    if (rest != std::string::npos) {
      in_reasoning_ = false;
      matcher_.accept_bytes(std::string_view(tail_).substr(rest));
      tail_.clear();
    } else if (tail_.size() > 2 * kToolCall.size()) {
      tail_.erase(0, tail_.size() - kToolCall.size());
    }
  }

 private:
  static void set(std::span<uint32_t> words, int32_t token, bool on) {
    const auto t = static_cast<size_t>(token);
    if (t / 32 >= words.size()) return;
    const uint32_t bit = 1u << (t % 32);
    words[t / 32] = on ? words[t / 32] | bit : words[t / 32] & ~bit;
  }

  Setup setup_;
  GrammarMatcher matcher_;
  bool in_reasoning_;
  std::string tail_;  // newest text of the reasoning, long enough to find a tag in
};

Error error(std::string_view place, std::string_view what) {
  return make_error(ErrorCode::kInvalidArgument, "{}: {}", place, what);
}

// A field that holds JSON, or JSON as a string.
Result<Json> json_field(const Json& value, std::string_view place) {
  if (!value.is_string()) return value;
  if (value.get_ref<const std::string&>().empty()) return error(place, "an empty text");
  return parse_request_json(value.get_ref<const std::string&>(), place);
}

Result<std::string> text_field(const Json& value, std::string_view place) {
  if (!value.is_string()) return error(place, "must be a string");
  std::string text = value.get<std::string>();
  if (text.empty()) return error(place, "an empty text");
  return text;
}

Result<StructuredOutput> parse_response_format(const Json& given) {
  StructuredOutput output;
  if (!given.is_object() || !given.value("type", Json()).is_string())
    return error("response_format", "must be an object with a type");
  const auto type = given["type"].get<std::string>();
  if (type == "text") return output;
  if (type == "json_object") {
    output.kind = StructuredOutput::Kind::kJsonObject;
    return output;
  }
  if (type == "json_schema") {
    const Json wrapper = given.value("json_schema", Json());
    const Json schema = wrapper.is_object() ? wrapper.value("schema", Json()) : Json();
    if (schema.is_null())
      return error("response_format.json_schema.schema", "is missing; give the JSON Schema here");
    output.kind = StructuredOutput::Kind::kJsonSchema;
    output.json = schema;
    return output;
  }
  if (type == "structural_tag") {
    output.kind = StructuredOutput::Kind::kStructuralTag;
    output.json = given;
    return output;
  }
  return error(
      "response_format.type",
      format("\"{}\" is not known; use text, json_object, json_schema or structural_tag", type));
}

Result<StructuredOutput> parse_structured_outputs(const Json& given) {
  if (!given.is_object()) return error("structured_outputs", "must be an object");
  using Kind = StructuredOutput::Kind;
  static constexpr std::pair<const char*, Kind> kFields[] = {
      {"json", Kind::kJsonSchema},        {"regex", Kind::kRegex},
      {"choice", Kind::kChoice},          {"grammar", Kind::kGrammar},
      {"json_object", Kind::kJsonObject}, {"structural_tag", Kind::kStructuralTag}};
  StructuredOutput output;
  const Json* value = nullptr;
  std::string place;
  for (const auto& [name, kind] : kFields) {
    const auto it = given.find(name);
    if (it == given.end() || it->is_null() || (kind == Kind::kJsonObject && *it == false)) continue;
    if (value != nullptr)
      return error("structured_outputs",
                   "give exactly one of json, regex, choice, grammar, json_object, structural_tag");
    value = &*it;
    output.kind = kind;
    place = format("structured_outputs.{}", name);
  }
  if (value == nullptr)
    return error("structured_outputs",
                 "give one of json, regex, choice, grammar, json_object, structural_tag");
  switch (output.kind) {
    case Kind::kJsonSchema:
    case Kind::kStructuralTag: {
      NB_TRY(output.json, json_field(*value, place));
      break;
    }
    case Kind::kRegex:
    case Kind::kGrammar: {
      NB_TRY(output.text, text_field(*value, place));
      break;
    }
    case Kind::kChoice:
      if (!value->is_array() || value->empty())
        return error(place, "must be a list with at least one text");
      for (const Json& choice : *value) {
        NB_TRY(std::string text, text_field(choice, place));
        output.choices.push_back(std::move(text));
      }
      break;
    case Kind::kJsonObject:
      if (*value != true) return error(place, "must be true");
      break;
    default: break;
  }
  if (const Json pattern = given.value("whitespace_pattern", Json()); !pattern.is_null())
    return make_error(ErrorCode::kUnsupported,
                      "structured_outputs.whitespace_pattern: not supported; "
                      "disable_any_whitespace false allows any white space");
  output.any_whitespace = given.value("disable_any_whitespace", Json()) == false;
  output.open_objects = given.value("disable_additional_properties", Json()) == false;
  return output;
}

Result<Grammar> make_grammar(const StructuredOutput& output) {
  const GrammarOptions options{.any_whitespace = output.any_whitespace,
                               .open_objects = output.open_objects};
  using Kind = StructuredOutput::Kind;
  switch (output.kind) {
    case Kind::kJsonSchema: return Grammar::json_schema(output.json, options);
    case Kind::kJsonObject: return Grammar::json_object(options);
    case Kind::kRegex: return Grammar::regex(output.text);
    case Kind::kChoice: return Grammar::choice(output.choices);
    case Kind::kGrammar: return Grammar::ebnf(output.text);
    case Kind::kStructuralTag: return Grammar::structural_tag(output.json, options);
    case Kind::kToolCalls:
      return Grammar::tool_calls(output.json, output.tool_style, output.parallel_tool_calls,
                                 options);
    case Kind::kNone: break;
  }
  return error("structured output", "none asked for");
}

// All that the grammar depends on.
std::string cache_key(const StructuredOutput& output) {
  return dump_json(
      Json::array({static_cast<int>(output.kind), output.json, output.text, output.choices,
                   static_cast<int>(output.tool_style), output.parallel_tool_calls,
                   output.any_whitespace, output.open_objects}));
}

// As the reply parser decides it: the last think tag of the prompt; without one, reasoning is open.
bool starts_in_reasoning(const Tokenizer& tokenizer, std::span<const int32_t> prompt) {
  const std::optional<int32_t> open = tokenizer.token_id(kThinkOpen);
  const std::optional<int32_t> close = tokenizer.token_id(kThinkClose);
  if (open && close) {
    for (size_t i = prompt.size(); i > 0; --i) {
      if (prompt[i - 1] == *close) return false;
      if (prompt[i - 1] == *open) return true;
    }
    return true;
  }
  const std::string text = tokenizer.decode(prompt);
  const size_t last_close = text.rfind(kThinkClose);
  if (last_close == std::string::npos) return true;
  const size_t last_open = text.rfind(kThinkOpen);
  return last_open != std::string::npos && last_open > last_close;
}

}  // namespace

std::shared_ptr<GrammarCache> make_grammar_cache(const Tokenizer& tokenizer,
                                                 const std::vector<int32_t>& stop_token_ids) {
  return std::make_shared<GrammarCache>(tokenizer, stop_token_ids);
}

Result<StructuredOutput> parse_structured_output(const Json& body) {
  StructuredOutput output;
  const Json* formats[] = {nullptr, nullptr};
  const char* names[] = {"response_format", "structured_outputs"};
  for (int i = 0; i < 2; ++i)
    if (const auto it = body.find(names[i]); body.is_object() && it != body.end() && !it->is_null())
      formats[i] = &*it;
  if (formats[0] != nullptr) {
    NB_TRY(output, parse_response_format(*formats[0]));
  }
  if (formats[1] == nullptr) return output;
  if (output.kind != StructuredOutput::Kind::kNone)
    return error("structured_outputs", "give either this or response_format, not both");
  return parse_structured_outputs(*formats[1]);
}

Result<StructuredOutput> require_tools(const Json& tools, const std::string& name,
                                       const std::string& tool_parser, bool parallel) {
  StructuredOutput output;
  output.kind = StructuredOutput::Kind::kToolCalls;
  output.parallel_tool_calls = parallel && name.empty();
  if (tool_parser == "qwen3_coder")
    output.tool_style = ToolCallStyle::kQwenXml;
  else if (tool_parser == "hermes")
    output.tool_style = ToolCallStyle::kHermes;
  else
    return error("tool_choice",
                 tool_parser.empty()
                     ? "this server reads no tool calls; start it with --tool-call-parser"
                     : format("the tool parser {} has no grammar", tool_parser));
  if (!tools.is_array() || tools.empty())
    return error("tool_choice", "When using `tool_choice`, `tools` must be set.");
  if (name.empty()) {
    output.json = tools;
    return output;
  }
  output.json = Json::array();
  for (const Json& tool : tools) {
    const Json function = tool.is_object() ? tool.value("function", Json()) : Json();
    if (function.is_object() && function.value("name", Json()) == name) output.json.push_back(tool);
  }
  if (output.json.empty())
    return error("tool_choice.function.name", format("\"{}\" is not one of the tools", name));
  return output;
}

Result<std::shared_ptr<TokenConstraint>> make_constraint(const StructuredOutput& output,
                                                         const ServedModel& model,
                                                         const ConstraintOptions& options) {
  if (output.kind == StructuredOutput::Kind::kNone) return std::shared_ptr<TokenConstraint>();
  GrammarCache& cache = *model.grammars;
  NB_TRY(std::shared_ptr<CompiledGrammar> grammar,
         cache.get(cache_key(output), [&] { return make_grammar(output); }));
  GrammarConstraint::Setup setup{
      .grammar = std::move(grammar), .trie = cache.trie(), .end_tokens = model.stop_token_ids};
  setup.end_tokens.insert(setup.end_tokens.end(), options.extra_stop_tokens.begin(),
                          options.extra_stop_tokens.end());
  setup.in_reasoning =
      !options.reasoning_parser.empty() && starts_in_reasoning(model.tokenizer, options.prompt);
  setup.writes_tool_calls = output.kind == StructuredOutput::Kind::kToolCalls;
  setup.tool_call_token = model.tokenizer.token_id(kToolCall);
  return std::shared_ptr<TokenConstraint>(std::make_shared<GrammarConstraint>(std::move(setup)));
}

}  // namespace nibble
