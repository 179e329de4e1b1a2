// U'U H = I for matrices of any size, and what is not positive definite is refused.
#include "quant/inverse_factor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace nibble {
namespace {

// X'X of random X, and something on the diagonal.
SquareMatrix second_moments(int64_t n, double diagonal) {
  std::mt19937 random(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  const int64_t tokens = n + 10;
  std::vector<double> x(static_cast<size_t>(tokens * n));
  for (double& value : x) value = normal(random);
  SquareMatrix h(n);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k)
        h.row(i)[k] += x[static_cast<size_t>(t * n + i)] * x[static_cast<size_t>(t * n + k)];
  for (int64_t i = 0; i < n; ++i) h.row(i)[i] += diagonal;
  return h;
}

TEST(InverseFactor, ItsSquareIsTheInverse) {
  ThreadPool pool(2);
  for (const int64_t n : {1, 2, 31, 32, 33, 100, 256, 257, 600}) {
    const SquareMatrix h = second_moments(n, 1.0);
    SquareMatrix work = h;
    const std::vector<float> u = inverse_factor(work, pool);
    ASSERT_EQ(u.size(), static_cast<size_t>(n * n)) << n;
    const auto at = [&](int64_t i, int64_t k) {
      return static_cast<double>(u[static_cast<size_t>(i * n + k)]);
    };
    // U h U' = I
    std::vector<double> uh(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = i; k < n; ++k)
        for (int64_t c = 0; c < n; ++c)
          uh[static_cast<size_t>(i * n + c)] += at(i, k) * h.row(k)[c];
    double worst = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k) {
        double sum = 0;
        for (int64_t c = k; c < n; ++c) sum += uh[static_cast<size_t>(i * n + c)] * at(k, c);
        worst = std::max(worst, std::abs(sum - (i == k ? 1.0 : 0.0)));
        if (k < i) {
          EXPECT_EQ(at(i, k), 0.0);
        }
      }
    EXPECT_LT(worst, 1e-4) << n;
  }
}

TEST(InverseFactor, RefusesWhatIsNotPositiveDefinite) {
  ThreadPool pool(2);
  SquareMatrix singular(40);  // all zeros
  EXPECT_TRUE(inverse_factor(singular, pool).empty());
  SquareMatrix negative = second_moments(70, 1.0);
  negative.row(3)[3] = -1;
  EXPECT_TRUE(inverse_factor(negative, pool).empty());
  SquareMatrix broken = second_moments(70, 1.0);
  broken.row(5)[60] = std::nan("");
  EXPECT_TRUE(inverse_factor(broken, pool).empty());
}

}  // namespace
}  // namespace nibble
