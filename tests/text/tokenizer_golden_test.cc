// Ids, decoding and streaming against tests/golden/text/tokenizer_goldens.jsonl, which
// tools/make_tokenizer_goldens.py made with Hugging Face `tokenizers`.
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <random>

#include "support/golden_file.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

struct Row {
  std::string text;
  std::vector<int32_t> ids;
  std::string decoded;  // NFC of each stretch between added tokens
};
struct Section {
  std::string path;  // of tokenizer.json, in the source tree
  Tokenizer tokenizer;
  std::vector<Row> rows;
};

// A header line names a tokenizer and how many rows follow.
std::vector<Section> load_sections() {
  const std::string text =
      read_file(test::golden("text/tokenizer_goldens.jsonl"), size_t{16} << 20).value();
  std::vector<Section> sections;
  size_t expected_rows = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    const Json json = parse_json(text.substr(at, end - at), "tokenizer_goldens.jsonl").value();
    at = end + 1;
    if (json.contains("tokenizer")) {
      const auto path = json["tokenizer"].get<std::string>();
      const std::string side =
          read_file(std::filesystem::path(NIBBLE_SOURCE_DIR) / path, size_t{64} << 20).value();
      sections.push_back({path, Tokenizer::load(side, "", path).value(), {}});
      expected_rows += json["num_rows"].get<size_t>();
      continue;
    }
    Row row{json["text"].get<std::string>(), json["ids"].get<std::vector<int32_t>>(), ""};
    row.decoded = json.value("decoded", row.text);
    sections.back().rows.push_back(std::move(row));
  }
  size_t num_rows = 0;
  for (const Section& section : sections) num_rows += section.rows.size();
  EXPECT_EQ(num_rows, expected_rows);
  return sections;
}

const std::vector<Section>& sections() {
  static const std::vector<Section> loaded = load_sections();
  return loaded;
}

// Pushes the ids one by one. Every piece is whole characters, all pieces together are the text, and
// no more than an unfinished character is ever held back.
void expect_streams_like_whole(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                               bool skip_special_tokens) {
  Detokenizer detokenizer(tokenizer, skip_special_tokens);
  std::string streamed;
  std::string bytes;
  for (const int32_t id : ids) {
    const std::string piece = detokenizer.push(id);
    ASSERT_TRUE(is_valid_utf8(piece)) << "id " << id;
    streamed += piece;
    if (!skip_special_tokens || !tokenizer.is_special(id)) bytes += tokenizer.token_bytes(id);
    // What is missing so far would read as one U+FFFD at the end.
    const std::string now = repair_utf8(bytes);
    ASSERT_TRUE(now == streamed || now == streamed + "\xef\xbf\xbd") << "id " << id;
  }
  const std::string rest = detokenizer.flush();
  ASSERT_TRUE(is_valid_utf8(rest));
  EXPECT_EQ(streamed + rest, tokenizer.decode(ids, skip_special_tokens));
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(TokenizerGolden, TheFileHoldsTwoThousandTexts) {
  ASSERT_FALSE(sections().empty());
  EXPECT_EQ(sections()[0].path, "models/nibble-demo-14m/tokenizer.json");
  EXPECT_GE(sections()[0].rows.size(), 2000u);
}

TEST(TokenizerGolden, IdsEqualThoseOfHuggingFace) {
  for (const Section& section : sections())
    for (const Row& row : section.rows)
      EXPECT_EQ(section.tokenizer.encode(row.text), row.ids)
          << section.path << " " << dump_json_python(Json(row.text));
}

TEST(TokenizerGolden, DecodingGivesTheNormalizedText) {
  for (const Section& section : sections()) {
    for (const Row& row : section.rows) {
      SCOPED_TRACE(dump_json_python(Json(row.text)));
      EXPECT_EQ(section.tokenizer.decode(row.ids), row.decoded);
      EXPECT_EQ(section.tokenizer.decode(section.tokenizer.encode(row.text)), row.decoded);
      // With added tokens read as plain characters, normalization crosses them.
      const std::vector<int32_t> plain = section.tokenizer.encode(row.text, false);
      EXPECT_EQ(section.tokenizer.decode(plain), normalize_nfc(row.text));
      EXPECT_TRUE(
          std::ranges::none_of(plain, [&](int32_t id) { return section.tokenizer.is_added(id); }));
    }
  }
}

TEST(TokenizerGolden, SkippingSpecialTokensLeavesTheOtherText) {
  for (const Section& section : sections()) {
    for (const Row& row : section.rows) {
      std::vector<int32_t> kept;
      for (const int32_t id : row.ids)
        if (!section.tokenizer.is_special(id)) kept.push_back(id);
      EXPECT_EQ(section.tokenizer.decode(row.ids, true), section.tokenizer.decode(kept));
    }
  }
}

TEST(TokenizerGolden, StreamingGivesTheSameTextAndWholeCharacters) {
  for (const Section& section : sections()) {
    for (const Row& row : section.rows) {
      SCOPED_TRACE(dump_json_python(Json(row.text)));
      expect_streams_like_whole(section.tokenizer, row.ids, false);
      expect_streams_like_whole(section.tokenizer, row.ids, true);
    }
  }
}

// Ids in an order no encoder would write: halves of characters, stray continuation bytes.
TEST(TokenizerGolden, StreamingOfRandomIdsGivesTheSameText) {
  const char* const given = std::getenv("NIBBLE_TEST_SEED");
  const uint64_t base = given != nullptr ? std::strtoull(given, nullptr, 10) : 1;
  for (const Section& section : sections()) {
    for (uint64_t seed = base; seed < base + 300; ++seed) {
      SCOPED_TRACE("NIBBLE_TEST_SEED=" + std::to_string(seed));
      std::mt19937_64 random(seed);
      std::vector<int32_t> ids(1 + random() % 40);
      for (int32_t& id : ids) {
        // Half of them single bytes; now and then one that does not exist.
        const auto limit = static_cast<uint64_t>(section.tokenizer.vocab_size());
        id = static_cast<int32_t>(random() % (random() % 2 == 0 ? 256 : limit + 2));
      }
      expect_streams_like_whole(section.tokenizer, ids, random() % 2 == 0);
    }
  }
}

}  // namespace
}  // namespace nibble
