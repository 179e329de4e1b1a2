// What calibration has decided so far, layer by layer, on disk: so that a killed run goes on where
// it stopped and ends in the same bytes, and so that rounded weights need no memory. A folder
// beside the output: per layer one JSON file (written last: it makes the layer count), the rounded
// weights, and the activations that the next layer reads. One thread.
#pragma once

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "quant/packed_weight.h"

namespace nibble {

class CalibrationJournal {
 public:
  // `fingerprint` holds everything the result depends on. An interrupted run in `folder` is
  // continued when its fingerprint is the same; a difference is named in the error, so that nothing
  // is lost by accident.
  static Result<CalibrationJournal> open(const fs::path& folder, const Json& fingerprint);

  int num_finished() const { return static_cast<int>(layers_.size()); }
  const Json& decisions(int layer) const { return layers_[static_cast<size_t>(layer)]; }
  // Begins to write the next layer durably, beside what the caller does; `stream`, the activations
  // behind it, must stay until settle(). They are written when that takes a small part of the time
  // since they last were, and when this layer is the `last`: a run that is continued goes on from
  // there. The error of an earlier layer's writing is this one's.
  Status record(const Json& decisions, std::map<std::string, PackedWeight> rounded,
                const Tensor& stream, bool last);
  // Everything recorded so far is on disk, or the error.
  Status settle();
  // The activations behind the last finished layer, into a tensor of the same size.
  Status restore_stream(const Tensor& stream) const;

  bool has_rounded(const std::string& module) const { return modules_.contains(module); }
  Result<PackedWeight> rounded(const std::string& module) const;

  void remove();  // the folder, when its output is complete

 private:
  using Clock = std::chrono::steady_clock;

  CalibrationJournal() = default;
  fs::path file_of(std::string_view kind, int layer, std::string_view extension) const;
  void take(Json decisions);

  fs::path folder_;
  std::shared_ptr<void> lock_;
  std::vector<Json> layers_;
  std::map<std::string, int> modules_;  // the layer each rounded module is in
  int stream_layer_ = -1;               // whose activations are on disk
  Clock::time_point stream_written_ = Clock::now();
  std::shared_ptr<Clock::duration> stream_cost_ =
      std::make_shared<Clock::duration>();  // of writing them
  std::future<Status> writing_;
};

}  // namespace nibble
