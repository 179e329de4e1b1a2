// Three file formats, three record layouts, one list of token ids.
#include "quant/calibration_set.h"

#include <algorithm>
#include <numeric>

#include "base/format.h"
#include "base/json.h"

namespace nibble {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 30;

// What blank lines part, whichever ends lines have.
std::vector<Json> paragraphs(std::string_view text) {
  std::vector<Json> out;
  std::string paragraph;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t") != std::string_view::npos) {
      if (!paragraph.empty()) paragraph += '\n';
      paragraph += line;
    } else if (!paragraph.empty()) {
      out.emplace_back(std::move(paragraph));
      paragraph.clear();
    }
  }
  if (!paragraph.empty()) out.emplace_back(std::move(paragraph));
  return out;
}

// Records in file order: objects, or strings for plain text.
Result<std::vector<Json>> read_records(const fs::path& path) {
  NB_TRY(const std::string text, read_file(path, kMaxFileBytes));
  const std::string what = path.filename().string();
  const JsonLimits limits{.max_bytes = kMaxFileBytes, .allow_duplicate_keys = true};
  std::vector<Json> records;
  if (path.extension() == ".txt") return paragraphs(text);
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '[') {
    NB_TRY(Json list, parse_json(text, what, limits));
    for (Json& record : list) records.push_back(std::move(record));
    return records;
  }
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    ++line_number;
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    NB_TRY(Json record, parse_json(line, format("{}: line {}", what, line_number), limits));
    records.push_back(std::move(record));
  }
  return records;
}

Error bad_record(std::string_view reason) {
  return make_error(ErrorCode::kInvalidArgument, "{}", reason);
}

// {"from": "human", "value": ...} -> {"role": "user", "content": ...}
Result<Json> hermes_messages(const Json& conversations) {
  Json messages = Json::array();
  for (const Json& turn : conversations) {
    if (!turn.is_object() || !turn.contains("from") || !turn["from"].is_string() ||
        !turn.contains("value") || !turn["value"].is_string())
      return bad_record("a turn of `conversations` without text in `from` and `value`");
    std::string role = turn["from"].get<std::string>();
    if (role == "human") role = "user";
    if (role == "gpt") role = "assistant";
    messages.push_back({{"role", std::move(role)}, {"content", turn["value"]}});
  }
  return messages;
}

Result<std::string> render(const Json& record, const ChatTemplate* chat_template) {
  if (record.is_string()) return record.get<std::string>();
  if (!record.is_object()) return bad_record("not an object");
  if (record.contains("text") && record["text"].is_string())
    return record["text"].get<std::string>();
  Json variables = {{"add_generation_prompt", false}};
  if (record.contains("conversations") && record["conversations"].is_array()) {
    // The system turn of this layout spells its tools out already.
    NB_TRY(variables["messages"], hermes_messages(record["conversations"]));
  } else if (record.contains("messages") && record["messages"].is_array()) {
    variables["messages"] = record["messages"];
    if (record.contains("tools") && record["tools"].is_array())
      variables["tools"] = record["tools"];
  } else {
    return bad_record("none of `conversations`, `messages` and `text`");
  }
  if (chat_template == nullptr)
    return bad_record("a conversation, but the model has no chat template");
  return chat_template->render(variables);
}

// Fisher-Yates over SplitMix64: the same order on every machine.
void shuffle(std::vector<size_t>& order, uint64_t seed) {
  const auto next = [&seed] {
    seed += 0x9e3779b97f4a7c15u;
    uint64_t x = seed;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  for (size_t i = order.size(); i > 1; --i) {
    const auto wide = static_cast<unsigned __int128>(next()) * i;
    std::swap(order[i - 1], order[static_cast<size_t>(wide >> 64)]);
  }
}

}  // namespace

Result<CalibrationSet> load_calibration_set(const fs::path& path, const Tokenizer& tokenizer,
                                            const ChatTemplate* chat_template,
                                            const CalibrationOptions& options) {
  NB_TRY(const std::vector<Json> records, read_records(path));
  std::vector<size_t> order(records.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (options.shuffle) shuffle(order, options.seed);

  CalibrationSet set;
  size_t position = static_cast<size_t>(std::max(0, options.skip_samples));
  for (; position < order.size() && static_cast<int>(set.samples.size()) < options.num_samples;
       ++position) {
    const size_t index = order[position];
    Result<std::string> text = render(records[index], chat_template);
    if (!text) {
      std::string line =
          format("{}: sample {}: {}", path.filename().string(), index, text.error().message);
      if (!options.skip_bad_samples)
        return make_error(ErrorCode::kInvalidArgument, "{}; --skip-bad-samples passes it over",
                          line);
      set.skipped.push_back(std::move(line));
      continue;
    }
    std::vector<int32_t> ids = tokenizer.encode(*text);
    if (static_cast<int>(ids.size()) > options.max_seq_length)
      ids.resize(static_cast<size_t>(options.max_seq_length));
    if (ids.empty()) continue;
    set.num_tokens += ids.size();
    set.samples.push_back(std::move(ids));
  }
  if (set.samples.empty())
    return make_error(ErrorCode::kInvalidArgument, "{}: no usable sample among {} after {} skipped",
                      path.filename().string(), records.size(), options.skip_samples);
  return set;
}

Result<CalibrationSet> load_conversations(const ModelDir& dir, const fs::path& path,
                                          const CalibrationOptions& options) {
  NB_TRY(const std::string tokenizer_text, dir.tokenizer_json());
  NB_TRY(const Tokenizer tokenizer, Tokenizer::load(tokenizer_text, "", "tokenizer.json"));
  NB_TRY(const std::string template_text, dir.chat_template());
  if (template_text.empty()) return load_calibration_set(path, tokenizer, nullptr, options);
  NB_TRY(const ChatTemplate chat_template,
         ChatTemplate::parse(template_text, "chat_template.jinja"));
  return load_calibration_set(path, tokenizer, &chat_template, options);
}

}  // namespace nibble
