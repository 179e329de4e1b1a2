// Packing of integers into words: unpack(pack(x)) = x, and the layout of the first word.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "checkpoint/compressed_tensors.h"

namespace nibble {
namespace {

RC_GTEST_PROP(Packing, UnpackUndoesPack, ()) {
  const int bits = *rc::gen::element(4, 8);
  const auto rows = *rc::gen::inRange<int64_t>(0, 5);
  const auto columns = *rc::gen::inRange<int64_t>(1, 70);
  const int low = -(1 << (bits - 1));
  const auto values = *rc::gen::container<std::vector<int8_t>>(
      static_cast<size_t>(rows * columns),
      rc::gen::map(rc::gen::inRange(low, -low), [](int v) { return static_cast<int8_t>(v); }));
  std::vector<int32_t> packed(static_cast<size_t>(rows * packed_width(columns, bits)));
  pack_rows(values, rows, columns, bits, packed);
  std::vector<int8_t> unpacked(values.size());
  unpack_rows(packed, rows, columns, bits, unpacked);
  RC_ASSERT(unpacked == values);
}

TEST(Packing, LowestBitsFirstAndOffsetByHalfTheRange) {
  const std::vector<int8_t> values = {-8, -7, 0, 7, 1, 2, 3, 4, -1};
  std::vector<int32_t> packed(2);
  pack_rows(values, 1, 9, 4, packed);
  EXPECT_EQ(static_cast<uint32_t>(packed[0]), 0xcba9f810u);
  EXPECT_EQ(packed[1] & 0xf, 7);
}

}  // namespace
}  // namespace nibble
