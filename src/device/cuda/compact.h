// 16-bit weights in 12 bits, without loss. Of a bfloat16, sign (1 bit) and mantissa (7) are noise,
// but the exponents (8) of a row of weights lie in few neighbouring values: 16 of them hold all but
// about one weight in ten thousand. So each row has a window of 16 exponents, a weight is its sign,
// its place in the window and its mantissa, and the few outside are listed beside.
//
//   words [out / 16, in / 64, 3, 32 lanes, 4]   tiles of 16 outputs x 64 inputs, 1536 bytes each
//   rows  [out padded to 16] CompactRow
//   rest  [capacity] u32: input << 16 | the bfloat16, by row, in a row by input
//
// Lane 4 g + t of a tile holds rows g and g + 8, inputs 32 j + 8 t .. + 7, as pairs for
// mma.m16n8k16; step s = 2 j + i uses inputs 32 j + 8 t + 4 i .. + 3, pairs as in linear.h. Word v
// of step s, v in 0..2, is pair v: of each weight bits 0..10 (place in the window << 7 | mantissa)
// and 15 (sign) where a bfloat16 has them; pair 3 is spread over bits 11..14 of both halves of the
// three: its bits 0..3, 4..7, and 8..10 with the sign above them.
//
// With 0x3800 in bits 11..14 a weight is a bfloat16 again, 2^(first - 112) too large or small by
// its row's window, which sums are multiplied by: exactly. A listed weight is place 0, mantissa 0.
// At most 65535 inputs, a multiple of 64.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

constexpr int kCompactAhead = 2;
struct alignas(16) CompactRow {
  uint32_t rest_begin;
  uint16_t first;       // smallest exponent of the window, as the 8 bits of a bfloat16; at least 1
  uint16_t rest_count;  // weights of this row in `rest`
  uint32_t ahead[kCompactAhead];  // the first of them once more: one load brings a usual row
};

constexpr int64_t kCompactTileWords = 384;

// A weight in this form; `to` of the launches below. `rest_used`: device, 0 before the first rows
// are packed; afterwards what all of them need, which may be more than there is room for: then the
// form is not to be used.
struct CompactWeight {
  uint32_t* words;
  CompactRow* rows;
  uint32_t* rest;
  uint32_t rest_capacity;
  int64_t out_features;
  int64_t in_features;
};

// Rows [begin, end) from bfloat16 [end - begin, in]; begin % 16 == 0, pieces in rising order.
void launch_compact(const uint16_t* from, int64_t begin, int64_t end, const CompactWeight& to,
                    uint32_t* rest_used, cudaStream_t stream);
// And back: bit for bit the same. begin % 16 == 0.
void launch_expand(const CompactWeight& from, int64_t begin, int64_t end, uint16_t* to,
                   cudaStream_t stream);

}  // namespace nibble::cuda
