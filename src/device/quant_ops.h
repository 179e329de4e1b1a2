// The arithmetic of the quantizer on weights and activations where a device holds them.
// quant/host_quant_ops.h is the reference, for memory of the host; a GPU brings its own.
//
// Rules for every call. Tensors are contiguous and lie in the device's memory; spans and results
// are the host's. Weights are [rows, columns] F32, BF16 or F16, columns a multiple of the group
// size; activations any of these types. What a contract rounds to the weight's dtype is the same in
// every bit on every device for 16-bit weights; sums over many values may differ in their last
// bits. Calls are in order with the device's operations; one that returns something waits for it.
#pragma once

#include <optional>
#include <span>

#include "base/result.h"
#include "tensor/quant_format.h"
#include "tensor/quantized_weight.h"
#include "tensor/tensor.h"

namespace nibble {

// What makes one range of a group better than another.
enum class RangeError {
  kPower,           // |error|^2.4, the exponent and each operation rounded to the weight's dtype
  kCubeImportance,  // importance * |error|^3 in f32
};

// How the range of each group is found: the smallest and largest weight, shrunk in steps of
// 1 / grid; of all steps the one with the smallest error.
struct RangeSearch {
  int num_steps = 0;  // 0: no search, the whole range
  int grid = 1;
  int patience = 5;  // ends after so many steps that improved no group of the whole weight
  RangeError error = RangeError::kPower;
  // kPower: its value for each bit pattern of a 16-bit |error| [2^15], in host memory that lives as
  // long as the process; null for F32 weights.
  const float* powers = nullptr;
};

// Rounding column by column, where the columns still to come make good what each rounding did to
// the output: quant/gptq.h.
struct GptqSettings {
  float dampening = 0.01f;  // added to the diagonal, as a part of its mean
  // Most important columns first. Group ranges then come from the weight as it was.
  bool act_order = true;
};

// Changes of single integers and scales that lower the error of the output: quant/refine.h.
struct RefineSettings {
  int sweeps = 4;           // over all integers and scales of a row; a sweep without change ends it
  float dampening = 0.01f;  // added to the diagonal, as a part of its mean
};

// How QuantOps::compensate() rounds.
struct Compensation {
  GptqSettings gptq = {};
  std::optional<RefineSettings> refinement = {};
  void* room = nullptr;  // compensation_bytes() of the device's memory
};

class QuantOps {
 public:
  virtual ~QuantOps() = default;

  // W[:, c] *= scales[c], rounded to the weight's dtype.
  virtual void scale_columns(const Tensor& weight, std::span<const double> scales) = 0;
  // The last rows: W[rows - scales.size() + i] /= scales[i].
  virtual void divide_last_rows(const Tensor& weight, std::span<const double> scales) = 0;

  // sums[c] += over rows, |w| / (max |w| of its group + 1e-6), each operation in the weight's
  // dtype.
  virtual void add_group_shares(const Tensor& weight, const QuantFormat& format,
                                std::span<double> sums) = 0;

  virtual bool all_finite(const Tensor& weight) = 0;

  // Every weight becomes the value of the nearest step of its group; `rounded`, unless null, what
  // is stored. Finite weights; importance [columns] of mean 1, or empty where the search does not
  // ask.
  virtual void round(const Tensor& weight, const QuantFormat& format, const RangeSearch& search,
                     std::span<const float> importance, RoundedWeight* rounded) = 0;
  // out = the values of round(W * scales), times factors by column, rounded to the weight's dtype:
  // what a smoothing candidate makes of a weight. False, and `out` undefined, where W * scales is
  // not finite.
  virtual bool trial_weight(const Tensor& weight, std::span<const double> scales,
                            std::span<const double> factors, const QuantFormat& format,
                            const RangeSearch& search, std::span<const float> importance,
                            const Tensor& out) = 0;

  // gram F32 [n, n]: sum of x'x; gram[i, k] *= factors[i] * factors[k].
  virtual void scale_gram(const Tensor& gram, std::span<const double> factors) = 0;
  // As round(), by GPTQ and, if asked, refined; gram [columns, columns] of the inputs.
  // kInvalidArgument, and the weight as it was, when the gram is not finite or no dampening
  // makes it positive definite.
  virtual Result<RoundedWeight> compensate(const Tensor& weight, const Tensor& gram,
                                           const QuantFormat& format, const RangeSearch& search,
                                           std::span<const float> importance,
                                           const Compensation& compensation) = 0;
  // What compensate() takes of the device's memory beside its operands; never less for more rows or
  // columns.
  virtual size_t compensation_bytes(int64_t rows, int64_t columns,
                                    const QuantFormat& format) const = 0;

  // sums F64 [2, n]: sums[0, c] += |x|, sums[1, c] += x^2 over the rows of x [tokens, n].
  virtual void add_moments(const Tensor& x, const Tensor& sums) = 0;
  // gram F32 [n, n] += x'x, x [tokens, n].
  virtual void add_gram(const Tensor& x, const Tensor& gram) = 0;
  // sum += (a - b)^2 over all elements; same shape and dtype.
  virtual void add_squared_difference(const Tensor& a, const Tensor& b, double* sum) = 0;
  // The sum over rows of d gram d', d a row of weight - trial: what replacing the weight changes of
  // its output, summed over the tokens of the gram.
  virtual double output_error(const Tensor& weight, const Tensor& trial, const Tensor& gram) = 0;
};

}  // namespace nibble
