// tokenizer.json to tables, and the pipeline: added tokens on the raw text, NFC, words, bytes,
// merges.
#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <unordered_map>

#include "base/format.h"
#include "base/json.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr int32_t kMaxTokenId = 1 << 24;

// GPT-2's table: the code point that stands for each byte in vocabulary strings. Printable Latin-1
// stands for itself, the other bytes take U+0100 onwards in order.
const std::array<char32_t, 256>& byte_code_points() {
  static const std::array<char32_t, 256> table = [] {
    std::array<char32_t, 256> built{};
    char32_t next = 256;
    for (char32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      built[b] = printable ? b : next++;
    }
    return built;
  }();
  return table;
}

// Vocabulary string to raw bytes; false when a code point stands for no byte.
bool to_bytes(std::string_view piece, std::string* bytes) {
  static const std::map<char32_t, char> inverse = [] {
    std::map<char32_t, char> built;
    for (size_t b = 0; b < 256; ++b) built[byte_code_points()[b]] = static_cast<char>(b);
    return built;
  }();
  while (!piece.empty()) {
    const CodePoint c = decode_utf8(piece);
    const auto it = inverse.find(c.value);
    if (!c.valid || it == inverse.end()) return false;
    *bytes += it->second;
    piece.remove_prefix(static_cast<size_t>(c.num_bytes));
  }
  return true;
}

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool lstrip = false;  // takes white space before it along
  bool rstrip = false;
};

// Longest match at a position among the added tokens.
class AddedTokenTrie {
 public:
  void add(std::string_view content, int32_t index) {
    size_t node = 0;
    for (const char c : content) {
      const auto [it, inserted] =
          nodes_[node].next.try_emplace(static_cast<unsigned char>(c), nodes_.size());
      node = it->second;
      if (inserted) nodes_.emplace_back();
    }
    nodes_[node].token = index;
    first_bytes_[static_cast<unsigned char>(content[0])] = true;
  }
  // Index of the longest token that `text` starts with, or -1.
  int32_t match(std::string_view text) const {
    if (!first_bytes_[static_cast<unsigned char>(text[0])]) return -1;
    int32_t found = -1;
    size_t node = 0;
    for (const char c : text) {
      const auto it = nodes_[node].next.find(static_cast<unsigned char>(c));
      if (it == nodes_[node].next.end()) break;
      node = it->second;
      if (nodes_[node].token >= 0) found = nodes_[node].token;
    }
    return found;
  }

 private:
  struct Node {
    std::map<unsigned char, size_t> next;
    int32_t token = -1;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> first_bytes_{};
};

}  // namespace

struct Tokenizer::State {
  std::vector<std::string> bytes;  // by id; empty for unknown ids
  std::vector<uint8_t> flags;      // by id
  static constexpr uint8_t kKnown = 1, kAdded = 2, kSpecial = 4;
  std::unordered_map<std::string, int32_t> vocabulary;  // by vocabulary string
  std::vector<AddedToken> added;
  AddedTokenTrie trie;
  bool nfc = false;
  bool ignore_merges = false;
  std::optional<PreTokenizer> words;
  Bpe bpe;
  std::unordered_map<std::string, int32_t> whole_words;  // for ignore_merges: raw bytes to id
  std::optional<int32_t> eos;

  void put(int32_t id, std::string raw, uint8_t flag) {
    const auto index = static_cast<size_t>(id);
    if (bytes.size() <= index) {
      bytes.resize(index + 1);
      flags.resize(index + 1);
    }
    bytes[index] = std::move(raw);
    flags[index] = flag;
  }
  bool has(int32_t id, uint8_t flag) const {
    return id >= 0 && static_cast<size_t>(id) < flags.size() &&
           (flags[static_cast<size_t>(id)] & flag) != 0;
  }
};

namespace {

// Reads tokenizer.json into a State; each step refuses what nibble cannot reproduce exactly.
class Loader {
 public:
  Loader(Tokenizer::State& state, std::string_view what) : state_(state), what_(what) {}

  Status load(const Json& root) {
    if (!root.is_object()) return corrupt("", "an object", root);
    if (const Json& type = member(member(root, "model"), "type"); !type.is_null() && type != "BPE")
      return unsupported("model.type", "BPE", type);
    NB_TRY_STATUS(load_normalizer(member(root, "normalizer")));
    NB_TRY_STATUS(load_pre_tokenizer(member(root, "pre_tokenizer")));
    NB_TRY_STATUS(load_model(member(root, "model")));
    NB_TRY_STATUS(load_decoder(member(root, "decoder")));
    const Json& added = member(root, "added_tokens");
    if (added.is_null()) return {};
    if (!added.is_array()) return corrupt("added_tokens", "a list", added);
    for (size_t i = 0; i < added.size(); ++i)
      NB_TRY_STATUS(load_added(added[i], format("added_tokens[{}]", i), std::nullopt));
    return {};
  }

  // tokenizer_config.json: tokens that tokenizer.json lacks, and the eos token.
  Status load_config(const Json& config) {
    const Json& decoder = member(config, "added_tokens_decoder");
    if (decoder.is_object()) {
      for (const auto& [key, entry] : decoder.items()) {
        int64_t id = -1;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        if (error != std::errc() || end != key.data() + key.size() || id < 0 || id > kMaxTokenId)
          return corrupt("added_tokens_decoder", "token ids as keys", Json(key));
        if (!state_.has(static_cast<int32_t>(id), Tokenizer::State::kKnown))
          NB_TRY_STATUS(
              load_added(entry, format("added_tokens_decoder.{}", id), static_cast<int32_t>(id)));
      }
    }
    const Json& eos = member(config, "eos_token");
    const Json& content = eos.is_object() ? member(eos, "content") : eos;
    if (content.is_string())
      if (const auto it = state_.vocabulary.find(content.get<std::string>());
          it != state_.vocabulary.end())
        state_.eos = it->second;
    return {};
  }

  void finish() {
    for (size_t i = 0; i < state_.added.size(); ++i)
      state_.trie.add(state_.added[i].content, static_cast<int32_t>(i));
  }

 private:
  static const Json& member(const Json& object, const char* name) {
    static const Json kNull;
    if (!object.is_object()) return kNull;
    const auto it = object.find(name);
    return it == object.end() ? kNull : *it;
  }
  Error corrupt(std::string_view field, std::string_view expected, const Json& found) const {
    std::string shown = found.is_null() ? "missing" : dump_json(found);
    if (shown.size() > 60) shown = shown.substr(0, 57) + "...";
    return make_error(ErrorCode::kCorrupt, "{}: {}{}expected {}, found {}", what_, field,
                      field.empty() ? "" : ": ", expected, repair_utf8(shown));
  }
  Error unsupported(std::string_view field, std::string_view supported, const Json& found) const {
    Error error = corrupt(field, supported, found);
    error.code = ErrorCode::kUnsupported;
    return error;
  }
  static bool is_false(const Json& value) { return value.is_null() || value == false; }
  static bool is_empty(const Json& value) { return value.is_null() || value == ""; }

  Status load_normalizer(const Json& normalizer) {
    if (normalizer.is_null()) return {};
    const Json& type = member(normalizer, "type");
    if (type == "NFC") {
      state_.nfc = true;
      return {};
    }
    if (type == "Sequence" && member(normalizer, "normalizers").is_array()) {
      for (const Json& step : member(normalizer, "normalizers"))
        NB_TRY_STATUS(load_normalizer(step));
      return {};
    }
    return unsupported("normalizer.type", "NFC, or none", type);
  }

  Status load_byte_level(const Json& step, bool pattern_given) {
    if (!is_false(member(step, "add_prefix_space")))
      return unsupported("pre_tokenizer.add_prefix_space", "false",
                         member(step, "add_prefix_space"));
    const Json& use_regex = member(step, "use_regex");
    if (pattern_given && use_regex == true)
      return unsupported("pre_tokenizer.use_regex", "false after a Split", use_regex);
    if (pattern_given) return {};
    // GPT-2's own pattern.
    return set_pattern(
        R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)");
  }

  Status set_pattern(std::string_view pattern) {
    Result<PreTokenizer> created = PreTokenizer::create(pattern);
    if (!created)
      return make_error(created.error().code, "{}: pre_tokenizer: {}", what_,
                        repair_utf8(created.error().message));
    state_.words = std::move(*created);
    return {};
  }

  Status load_pre_tokenizer(const Json& pre) {
    const Json& type = member(pre, "type");
    if (type == "ByteLevel") return load_byte_level(pre, false);
    const Json& steps = member(pre, "pretokenizers");
    if (type != "Sequence" || !steps.is_array() || steps.size() != 2 ||
        member(steps[0], "type") != "Split" || member(steps[1], "type") != "ByteLevel")
      return unsupported("pre_tokenizer", "ByteLevel, or a Sequence of Split and ByteLevel", pre);
    if (member(steps[0], "behavior") != "Isolated" || !is_false(member(steps[0], "invert")))
      return unsupported("pre_tokenizer Split", "behavior Isolated without invert", steps[0]);
    const Json& pattern = member(member(steps[0], "pattern"), "Regex");
    if (!pattern.is_string())
      return unsupported("pre_tokenizer Split", "a Regex pattern", member(steps[0], "pattern"));
    NB_TRY_STATUS(set_pattern(pattern.get_ref<const std::string&>()));
    return load_byte_level(steps[1], true);
  }

  Status load_decoder(const Json& decoder) {
    if (member(decoder, "type") == "ByteLevel") return {};
    return unsupported("decoder.type", "ByteLevel", member(decoder, "type"));
  }

  Status load_model(const Json& model) {
    if (!model.is_object()) return corrupt("model", "an object", model);
    for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!is_empty(member(model, field)))
        return unsupported(format("model.{}", field), "none", member(model, field));
    for (const char* field : {"byte_fallback", "fuse_unk"})
      if (!is_false(member(model, field)))
        return unsupported(format("model.{}", field), "false", member(model, field));
    if (const Json& dropout = member(model, "dropout"); !dropout.is_null() && dropout != 0.0)
      return unsupported("model.dropout", "none", dropout);
    const Json& ignore_merges = member(model, "ignore_merges");
    state_.ignore_merges = ignore_merges == true;

    const Json& vocab = member(model, "vocab");
    if (!vocab.is_object() || vocab.empty())
      return corrupt("model.vocab", "an object of pieces and ids", vocab);
    for (const auto& [piece, value] : vocab.items()) {
      if (!value.is_number_integer() || value < 0 || value > kMaxTokenId)
        return corrupt(format("model.vocab \"{}\"", piece),
                       format("an id from 0 to {}", kMaxTokenId), value);
      const auto id = value.get<int32_t>();
      if (state_.has(id, Tokenizer::State::kKnown))
        return corrupt(format("model.vocab \"{}\"", piece), "an id of its own", value);
      // A piece that is no byte string can only be an added token's; it decodes to itself.
      std::string raw;
      if (!to_bytes(piece, &raw)) raw = piece;
      if (state_.ignore_merges) state_.whole_words[raw] = id;
      state_.put(id, std::move(raw), Tokenizer::State::kKnown);
      state_.vocabulary[piece] = id;
    }
    std::vector<int32_t> byte_ids(256);
    for (size_t b = 0; b < 256; ++b) {
      std::string piece;
      append_utf8(byte_code_points()[b], &piece);
      const auto it = state_.vocabulary.find(piece);
      if (it == state_.vocabulary.end())
        return corrupt("model.vocab", format("a piece for byte {:#04x} (\"{}\")", b, piece),
                       Json());
      byte_ids[b] = it->second;
    }
    state_.bpe.set_byte_ids(byte_ids);
    return load_merges(member(model, "merges"));
  }

  Status load_merges(const Json& merges) {
    if (!merges.is_array()) return corrupt("model.merges", "a list", merges);
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const Json& merge = merges[rank];
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const std::string& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
          return corrupt(format("model.merges[{}]", rank), "\"left right\"", merge);
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      } else {
        return corrupt(format("model.merges[{}]", rank), "two pieces", merge);
      }
      int32_t ids[3] = {};
      const std::string pieces[3] = {left, right, left + right};
      for (size_t i = 0; i < 3; ++i) {
        const auto it = state_.vocabulary.find(pieces[i]);
        if (it == state_.vocabulary.end())
          return corrupt(format("model.merges[{}]", rank),
                         format("pieces of the vocabulary, \"{}\" is none", pieces[i]), merge);
        ids[i] = it->second;
      }
      state_.bpe.add_merge(ids[0], ids[1], static_cast<int32_t>(rank), ids[2]);
    }
    return {};
  }

  Status load_added(const Json& entry, const std::string& field, std::optional<int32_t> known_id) {
    if (!entry.is_object()) return corrupt(field, "an object", entry);
    const Json& content = member(entry, "content");
    if (!content.is_string() || content == "") return corrupt(field + ".content", "text", content);
    AddedToken token;
    token.content = content.get<std::string>();
    if (known_id) {
      token.id = *known_id;
    } else {
      const Json& id = member(entry, "id");
      if (!id.is_number_integer() || id < 0 || id > kMaxTokenId)
        return corrupt(field + ".id", format("an id from 0 to {}", kMaxTokenId), id);
      token.id = id.get<int32_t>();
    }
    token.special = member(entry, "special") == true;
    token.lstrip = member(entry, "lstrip") == true;
    token.rstrip = member(entry, "rstrip") == true;
    if (member(entry, "single_word") == true)
      return unsupported(field + ".single_word", "false", member(entry, "single_word"));
    for (const AddedToken& other : state_.added)
      if (other.id == token.id || other.content == token.content)
        return corrupt(field, "an id and content of its own", entry);
    if (state_.has(token.id, Tokenizer::State::kKnown)) {
      // Also in the vocabulary: fine when it names the same text.
      const auto it = state_.vocabulary.find(token.content);
      if (it == state_.vocabulary.end() || it->second != token.id)
        return corrupt(field + ".id", "an id that model.vocab does not use", Json(token.id));
    }
    using State = Tokenizer::State;
    const auto flag =
        static_cast<uint8_t>(State::kKnown | State::kAdded | (token.special ? State::kSpecial : 0));
    state_.put(token.id, token.content, flag);
    state_.vocabulary[token.content] = token.id;
    state_.added.push_back(std::move(token));
    return {};
  }

  Tokenizer::State& state_;
  std::string_view what_;
};

bool ends_in_space(std::string_view text, size_t* length) {
  if (text.empty()) return false;
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
  *length = text.size() - begin;
  return is_space(decode_utf8(text.substr(begin)).value);
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(std::string_view tokenizer_json,
                                  std::string_view tokenizer_config_json, std::string_view what) {
  auto state = std::make_unique<State>();
  Loader loader(*state, what);
  {
    NB_TRY(const Json root, parse_json(tokenizer_json, what, {.max_depth = 32}));
    NB_TRY_STATUS(loader.load(root));
  }
  if (!tokenizer_config_json.empty()) {
    NB_TRY(const Json config, parse_json(tokenizer_config_json, "tokenizer_config.json",
                                         {.max_depth = 32, .allow_duplicate_keys = true}));
    NB_TRY_STATUS(loader.load_config(config));
  }
  loader.finish();
  return Tokenizer(std::move(state));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_added_tokens) const {
  const State& state = *state_;
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = repair_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 1);
  std::vector<std::string_view> words;
  const auto encode_plain = [&](std::string_view piece) {
    if (piece.empty()) return;
    std::string normalized;
    if (state.nfc) {
      normalized = normalize_nfc(piece);
      piece = normalized;
    }
    words.clear();
    state.words->split(piece, &words);
    for (const std::string_view word : words) {
      if (state.ignore_merges)
        if (const auto it = state.whole_words.find(std::string(word));
            it != state.whole_words.end()) {
          ids.push_back(it->second);
          continue;
        }
      state.bpe.encode(word, &ids);
    }
  };
  size_t plain_begin = 0;
  for (size_t at = 0; parse_added_tokens && at < text.size();) {
    const int32_t index = state.trie.match(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = state.added[static_cast<size_t>(index)];
    std::string_view before = text.substr(plain_begin, at - plain_begin);
    for (size_t length = 0; token.lstrip && ends_in_space(before, &length);)
      before.remove_suffix(length);
    encode_plain(before);
    ids.push_back(token.id);
    at += token.content.size();
    while (token.rstrip && at < text.size()) {
      const CodePoint c = decode_utf8(text.substr(at));
      if (!is_space(c.value)) break;
      at += static_cast<size_t>(c.num_bytes);
    }
    plain_begin = at;
  }
  encode_plain(text.substr(plain_begin));
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!skip_special_tokens || !is_special(id)) bytes += token_bytes(id);
  return repair_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return state_->has(id, State::kKnown) ? state_->bytes[static_cast<size_t>(id)]
                                        : std::string_view();
}
bool Tokenizer::is_special(int32_t id) const {
  return state_->has(id, State::kSpecial);
}
bool Tokenizer::is_added(int32_t id) const {
  return state_->has(id, State::kAdded);
}

std::optional<int32_t> Tokenizer::token_id(std::string_view content) const {
  const auto it = state_->vocabulary.find(std::string(content));
  if (it == state_->vocabulary.end()) return std::nullopt;
  return it->second;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(state_->bytes.size());
}
std::optional<int32_t> Tokenizer::eos_token_id() const {
  return state_->eos;
}

}  // namespace nibble
