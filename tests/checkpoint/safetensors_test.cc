// Headers that lie: each is refused with one line that names the file, none is followed.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support/temp_dir.h"

namespace nibble {
namespace {

std::string file_bytes(std::string_view header, size_t num_data, uint64_t claimed_length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &claimed_length, 8);
  bytes += header;
  bytes.append(num_data, '\1');
  return bytes;
}
std::string file_bytes(std::string_view header, size_t num_data) {
  return file_bytes(header, num_data, header.size());
}

class Safetensors : public testing::Test {
 protected:
  Result<SafetensorsFile> open(const std::string& bytes) {
    const fs::path path = dir_.path() / "x.safetensors";
    std::FILE* file = std::fopen(path.c_str(), "wb");
    EXPECT_NE(file, nullptr);
    EXPECT_EQ(std::fwrite(bytes.data(), 1, bytes.size(), file), bytes.size());
    std::fclose(file);
    return SafetensorsFile::open(path);
  }
  test::TempDir dir_;
};

TEST_F(Safetensors, AGoodFileIsReadAndViewed) {
  const Result<SafetensorsFile> file =
      open(file_bytes(R"({"__metadata__":{"format":"pt"},)"
                      R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                      R"("b":{"dtype":"BF16","shape":[0],"data_offsets":[24,24]},)"
                      R"("c":{"dtype":"U8","shape":[],"data_offsets":[24,25]}})",
                      25));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->metadata().at("format"), "pt");
  ASSERT_NE(file->find("a"), nullptr);
  EXPECT_EQ(file->view(*file->find("a")).shape, Shape({2, 3}));
  EXPECT_EQ(file->find("d"), nullptr);
}

TEST_F(Safetensors, EveryLieIsRefusedInOneLineThatNamesTheFile) {
  struct Row {
    const char* name;
    std::string bytes;
  };
  const auto one = [](std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return std::string(R"({"a":{"dtype":)") + std::string(dtype) + R"(,"shape":)" +
           std::string(shape) + R"(,"data_offsets":)" + std::string(offsets) + "}}";
  };
  const std::string good = one("\"F32\"", "[2]", "[0,8]");
  const Row rows[] = {
      {"empty file", ""},
      {"seven bytes", std::string(7, '\0')},
      {"a length alone", file_bytes("", 0, 100)},
      {"length beyond the file", file_bytes(good, 8, good.size() + 1000)},
      {"length near 2^64", file_bytes(good, 8, ~uint64_t{0})},
      {"length of 2^63", file_bytes(good, 8, uint64_t{1} << 63)},
      {"length over the cap", file_bytes(good, 8, SafetensorsFile::kMaxHeaderBytes + 1)},
      {"zero length", file_bytes("", 8, 0)},
      {"no JSON", file_bytes("hello, world", 8)},
      {"cut JSON", file_bytes(good.substr(0, good.size() - 2), 8)},
      {"a list", file_bytes("[]", 0)},
      {"a tensor that is a number", file_bytes(R"({"a":1})", 0)},
      {"no dtype", file_bytes(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8)},
      {"no shape", file_bytes(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8)},
      {"no offsets", file_bytes(R"({"a":{"dtype":"F32","shape":[2]}})", 8)},
      {"unknown dtype", file_bytes(one("\"F31\"", "[2]", "[0,8]"), 8)},
      {"dtype that is a number", file_bytes(one("32", "[2]", "[0,8]"), 8)},
      {"negative dimension", file_bytes(one("\"F32\"", "[-2]", "[0,8]"), 8)},
      {"fractional dimension", file_bytes(one("\"F32\"", "[2.5]", "[0,8]"), 8)},
      {"text dimension", file_bytes(one("\"F32\"", "[\"2\"]", "[0,8]"), 8)},
      {"shape that is no list", file_bytes(one("\"F32\"", "2", "[0,8]"), 8)},
      {"product overflows", file_bytes(one("\"F32\"", "[4294967296,4294967296]", "[0,8]"), 8)},
      {"bytes overflow", file_bytes(one("\"F32\"", "[4611686018427387904]", "[0,8]"), 8)},
      {"too many dimensions", file_bytes(one("\"F32\"", "[1,1,1,1,1,2]", "[0,8]"), 8)},
      {"one offset", file_bytes(one("\"F32\"", "[2]", "[0]"), 8)},
      {"three offsets", file_bytes(one("\"F32\"", "[2]", "[0,8,8]"), 8)},
      {"negative offset", file_bytes(one("\"F32\"", "[2]", "[-8,0]"), 8)},
      {"end before begin", file_bytes(one("\"F32\"", "[2]", "[8,0]"), 8)},
      {"past the end", file_bytes(one("\"F32\"", "[4]", "[0,16]"), 8)},
      {"length is not the shape's", file_bytes(one("\"F32\"", "[3]", "[0,8]"), 8)},
      {"a gap in front", file_bytes(one("\"F32\"", "[2]", "[4,12]"), 12)},
      {"trailing bytes", file_bytes(good, 9)},
      {"missing bytes", file_bytes(good, 7)},
      {"overlap", file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                             12)},
      {"a gap between", file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                   R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})",
                                   16)},
      {"the same name twice", file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                         R"("a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                         8)},
      {"metadata that is no text", file_bytes(R"({"__metadata__":{"n":1}})", 0)},
  };
  EXPECT_GE(std::size(rows), 30u);
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const Result<SafetensorsFile> file = open(row.bytes);
    ASSERT_FALSE(file.has_value());
    EXPECT_NE(file.error().message.find("x.safetensors"), std::string::npos)
        << file.error().message;
    EXPECT_EQ(file.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(exit_code(file.error().code), 2) << file.error().message;
  }
}

}  // namespace
}  // namespace nibble
