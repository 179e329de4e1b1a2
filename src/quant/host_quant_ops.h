// The quantizer's arithmetic on the host: the reference for every device's own.
#pragma once

#include "base/thread_pool.h"
#include "device/ops.h"
#include "device/quant_ops.h"

namespace nibble {

class HostQuantOps final : public QuantOps {
 public:
  // `ops` compute in host memory; both outlive this.
  HostQuantOps(Ops& ops, ThreadPool& pool) : ops_(ops), pool_(pool) {}

  void scale_columns(const Tensor& weight, std::span<const double> scales) override;
  void divide_last_rows(const Tensor& weight, std::span<const double> scales) override;
  void add_group_shares(const Tensor& weight, const QuantFormat& format,
                        std::span<double> sums) override;
  bool all_finite(const Tensor& weight) override;
  void round(const Tensor& weight, const QuantFormat& format, const RangeSearch& search,
             std::span<const float> importance, RoundedWeight* rounded) override;
  bool trial_weight(const Tensor& weight, std::span<const double> scales,
                    std::span<const double> factors, const QuantFormat& format,
                    const RangeSearch& search, std::span<const float> importance,
                    const Tensor& out) override;
  void scale_gram(const Tensor& gram, std::span<const double> factors) override;
  Result<RoundedWeight> compensate(const Tensor& weight, const Tensor& gram,
                                   const QuantFormat& format, const RangeSearch& search,
                                   std::span<const float> importance,
                                   const Compensation& compensation) override;
  size_t compensation_bytes(int64_t, int64_t, const QuantFormat&) const override { return 0; }
  void add_moments(const Tensor& x, const Tensor& sums) override;
  void add_gram(const Tensor& x, const Tensor& gram) override;
  void add_squared_difference(const Tensor& a, const Tensor& b, double* sum) override;
  double output_error(const Tensor& weight, const Tensor& trial, const Tensor& gram) override;

 private:
  Ops& ops_;
  ThreadPool& pool_;
};

}  // namespace nibble
