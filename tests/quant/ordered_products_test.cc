// Blocks change no bit of what one product after the other gives, and GPTQ in blocks none of what
// the paper's loop over columns gives.
#include "quant/ordered_products.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "quant/gptq.h"
#include "quant/inverse_factor.h"
#include "support/random.h"

namespace nibble {
namespace {

template <class T>
std::vector<T> normal(std::mt19937& random, int64_t count) {
  std::normal_distribution<double> distribution;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(distribution(random));
  return values;
}

template <class T, class B>
void expect_ordered(std::mt19937& random, int64_t rows, int64_t depth, int64_t columns) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(depth) + " x " +
               std::to_string(columns));
  // Wider than what takes part.
  const int64_t a_pitch = depth + 3;
  const int64_t pitch = columns + 5;
  std::vector<T> a = normal<T>(random, rows * a_pitch);
  for (T& value : a)
    if (random() % 3 == 0) value = 0;
  for (int64_t k = 0; k < depth; k += 7)  // of all rows
    for (int64_t i = 0; i < rows; ++i) a[static_cast<size_t>(i * a_pitch + k)] = 0;
  const std::vector<B> b = normal<B>(random, depth * pitch);
  std::vector<T> c = normal<T>(random, rows * pitch);
  std::vector<T> expected = c;
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        expected[static_cast<size_t>(i * pitch + j)] -=
            a[static_cast<size_t>(i * a_pitch + k)] *
            static_cast<T>(b[static_cast<size_t>(k * pitch + j)]);
  subtract_products(MatrixRows<const T>{a.data(), a_pitch}, MatrixRows<const B>{b.data(), pitch},
                    MatrixRows<T>{c.data(), pitch}, rows, depth, columns);
  EXPECT_EQ(c, expected);
}

TEST(OrderedProducts, EqualOneAfterTheOther) {
  std::mt19937 random(test::test_seed());
  for (const auto& [rows, depth, columns] :
       {std::tuple(1, 1, 1), std::tuple(4, 128, 32), std::tuple(5, 300, 33), std::tuple(7, 0, 9),
        std::tuple(3, 17, 0), std::tuple(0, 4, 4), std::tuple(64, 600, 70)}) {
    expect_ordered<float, float>(random, rows, depth, columns);
    expect_ordered<double, float>(random, rows, depth, columns);
    expect_ordered<double, double>(random, rows, depth, columns);
  }
}

// Algorithm 1 of arXiv:2210.17323 with blocks of one column, the most important first.
std::vector<int8_t> column_by_column(const Tensor& weight, const Tensor& hessian,
                                     const QuantFormat& format, const GroupParameters& parameters,
                                     ThreadPool& pool) {
  const int64_t n = weight.shape[1];
  const auto* h = hessian.as<const float>();
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(), [&](int64_t c) { return h[c * n + c]; });
  double mean = 0;
  for (int64_t c = 0; c < n; ++c) mean += static_cast<double>(h[c * n + c]);
  mean /= static_cast<double>(n);
  SquareMatrix dampened(n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < n; ++k)
      dampened.row(i)[k] = h[order[static_cast<size_t>(i)] * n + order[static_cast<size_t>(k)]];
    dampened.row(i)[i] += static_cast<double>(0.01f) * mean;
  }
  const std::vector<float> u = inverse_factor(dampened, pool);
  std::vector<int8_t> integers(static_cast<size_t>(weight.num_elements()));
  for (int64_t r = 0; r < weight.shape[0]; ++r) {
    std::vector<float> w;
    for (const int64_t c : order) w.push_back(weight.as<const float>()[r * n + c]);
    for (size_t c = 0; c < w.size(); ++c) {
      const auto at = static_cast<size_t>(r * format.num_groups(n) + order[c] / format.group_size);
      const int8_t q = quantize_value(w[c], parameters.scale[at], parameters.zero_point[at],
                                      DType::kF32, format);
      integers[static_cast<size_t>(r * n + order[c])] = q;
      const float* factors = u.data() + c * w.size();
      const float error = (w[c] - dequantize_value(q, parameters.scale[at],
                                                   parameters.zero_point[at], DType::kF32)) /
                          factors[c];
      for (size_t k = c + 1; k < w.size(); ++k) w[k] -= error * factors[k];
    }
  }
  return integers;
}

TEST(Gptq, BlocksChangeNoBit) {
  std::mt19937 random(test::test_seed());
  constexpr int64_t kOut = 70;
  constexpr int64_t kIn = 320;
  std::vector<float> w = normal<float>(random, kOut * kIn);
  const std::vector<float> x = normal<float>(random, 2 * kIn * kIn);
  std::vector<float> gram(static_cast<size_t>(kIn * kIn));
  for (int64_t t = 0; t < 2 * kIn; ++t)
    for (int64_t i = 0; i < kIn; ++i)
      for (int64_t k = 0; k < kIn; ++k)
        gram[static_cast<size_t>(i * kIn + k)] +=
            x[static_cast<size_t>(t * kIn + i)] * x[static_cast<size_t>(t * kIn + k)];
  const Tensor weight{w.data(), DType::kF32, {kOut, kIn}};
  const Tensor hessian{gram.data(), DType::kF32, {kIn, kIn}};
  ThreadPool pool(2);
  for (const int group_size : {32, 64, 160}) {
    const QuantFormat format{4, group_size, false};
    const auto rounded = gptq(weight, hessian, format, {}, {}, {}, pool);
    ASSERT_TRUE(rounded) << rounded.error().message;
    EXPECT_EQ(rounded->integers,
              column_by_column(weight, hessian, format, rounded->parameters, pool))
        << group_size;
  }
}

}  // namespace
}  // namespace nibble
