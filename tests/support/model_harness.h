// Drives one loaded model by hand: any number of sequences, any chunking, every state readable.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "model/model.h"

namespace nibble::test {

struct Piece {
  int sequence = 0;  // its state slot; blocks are handed out on demand
  std::vector<int32_t> ids;
};

class ModelHarness {
 public:
  explicit ModelHarness(const fs::path& path, Backend backend = Backend::kReference,
                        DType activation = DType::kF32, int num_blocks = 256, int num_slots = 8,
                        std::optional<DType> kv_dtype = {}) {
    // A failed Result aborts the test with its message.
    dir_ = std::make_unique<ModelDir>(ModelDir::open(path).value());
    device_ = open_device(backend).value();
    model_ = std::make_unique<Model>(Model::load(*dir_, *device_, activation).value());
    shape_ = {.num_blocks = num_blocks,
              .block_size = 16,
              .num_state_slots = num_slots,
              .kv_dtype = kv_dtype.value_or(activation)};
    Arena counter;
    place_caches(model_->spec(), shape_, activation, counter);
    memory_ = device_->allocate(counter.used(), "test caches").value();
    Arena arena(memory_.data(), memory_.size());
    caches_ = place_caches(model_->spec(), shape_, activation, arena);
    blocks_.resize(static_cast<size_t>(num_slots));
    lengths_.resize(static_cast<size_t>(num_slots));
    for (int block = num_blocks; block-- > 0;) free_blocks_.push_back(block);
  }

  const ModelSpec& spec() const { return model_->spec(); }
  const Model& model() const { return *model_; }
  const ModelDir& dir() const { return *dir_; }
  const ModelCaches& caches() const { return caches_; }
  int length(int sequence) const { return lengths_[static_cast<size_t>(sequence)]; }
  const std::vector<int32_t>& blocks(int sequence) const {
    return blocks_[static_cast<size_t>(sequence)];
  }
  int block_size() const { return shape_.block_size; }

  // Forgets a sequence; its next piece starts from nothing.
  void reset(int sequence) {
    auto& blocks = blocks_[static_cast<size_t>(sequence)];
    free_blocks_.insert(free_blocks_.end(), blocks.begin(), blocks.end());
    blocks.clear();
    lengths_[static_cast<size_t>(sequence)] = 0;
  }

  // Runs all pieces in one step; logits of every token, [num_tokens, vocab_size].
  std::vector<float> run(const std::vector<Piece>& pieces,
                         std::function<void(const char*, int, const Tensor&)> observe = {}) {
    std::vector<int32_t> ids, positions, query_start = {0}, context_len, slots;
    std::vector<uint8_t> fresh;
    for (const Piece& piece : pieces) {
      const auto s = static_cast<size_t>(piece.sequence);
      context_len.push_back(lengths_[s]);
      fresh.push_back(lengths_[s] == 0);
      slots.push_back(piece.sequence);
      for (const int32_t id : piece.ids) {
        ids.push_back(id);
        positions.push_back(lengths_[s]++);
      }
      query_start.push_back(static_cast<int32_t>(ids.size()));
      while (static_cast<int>(blocks_[s].size()) * shape_.block_size < lengths_[s]) {
        blocks_[s].push_back(free_blocks_.back());
        free_blocks_.pop_back();
      }
    }
    std::vector<int32_t> table(pieces.size() * static_cast<size_t>(shape_.num_blocks), -1);
    for (size_t i = 0; i < pieces.size(); ++i)
      std::ranges::copy(blocks_[static_cast<size_t>(pieces[i].sequence)],
                        table.begin() + static_cast<ptrdiff_t>(i) * shape_.num_blocks);
    const size_t num_tokens = ids.size();
    const auto on_device = [&](const auto& values) {
      return upload(values.data(), values.size() * sizeof(values[0]));
    };
    uploads_.clear();
    std::vector<int32_t> axes;
    for (int axis = 0; axis < 3; ++axis)
      axes.insert(axes.end(), positions.begin(), positions.end());
    std::vector<int32_t> rows(num_tokens);
    std::iota(rows.begin(), rows.end(), 0);
    std::vector<float> logits(num_tokens * static_cast<size_t>(spec().vocab_size));
    const auto count = static_cast<int32_t>(num_tokens);
    const size_t scratch_bytes = model_->activation_bytes(count, count);
    const DeviceMemory scratch_memory =
        device_->allocate(scratch_bytes + Arena::kAlignment, "test scratch").value();
    Arena scratch(scratch_memory.data(), scratch_bytes);
    const DeviceMemory logits_memory =
        device_->allocate(logits.size() * sizeof(float) + 1, "test logits").value();
    Step step;
    step.ops = &device_->ops();
    step.batch = {.num_tokens = count,
                  .num_seqs = static_cast<int32_t>(pieces.size()),
                  .query_start = on_device(query_start),
                  .context_len = on_device(context_len),
                  .block_table = on_device(table),
                  .max_blocks = shape_.num_blocks,
                  .block_size = shape_.block_size,
                  .state_slot = on_device(slots),
                  .state_is_fresh = on_device(fresh)};
    step.token_ids = on_device(ids);
    step.positions = on_device(axes);
    step.logit_rows = on_device(rows);
    step.num_logit_rows = count;
    step.caches = &caches_;
    step.scratch = &scratch;
    if (observe)
      step.observe = [&](const char* what, int layer, const Tensor& value) {
        const std::vector<std::byte> host = download(value);
        observe(what, layer, {const_cast<std::byte*>(host.data()), value.dtype, value.shape});
      };
    const Tensor device_logits{logits_memory.data(), DType::kF32, {count, spec().vocab_size}};
    model_->forward(step, device_logits);
    device_->download(logits.data(), device_logits.data, device_logits.num_bytes());
    device_->synchronize();
    peak_scratch_ = scratch.peak();
    planned_scratch_ = scratch_bytes;
    return logits;
  }

  // A tensor of the model's (caches, activations) as host floats or bytes.
  std::vector<float> floats(const Tensor& value) const {
    const std::vector<std::byte> host = download(value);
    std::vector<float> values(static_cast<size_t>(value.num_elements()));
    to_float({const_cast<std::byte*>(host.data()), value.dtype, value.shape}, values.data());
    return values;
  }
  std::vector<std::byte> download(const Tensor& value) const {
    std::vector<std::byte> host(value.num_bytes());
    device_->download(host.data(), value.data, host.size());
    device_->synchronize();
    return host;
  }

  size_t peak_scratch() const { return peak_scratch_; }
  size_t planned_scratch() const { return planned_scratch_; }

 private:
  // A copy on the device that lives until the next run.
  template <class T>
  const T* upload(const T* values, size_t bytes) {
    uploads_.push_back(device_->allocate(bytes + 1, "test batch").value());
    device_->upload(uploads_.back().data(), values, bytes);
    device_->synchronize();
    return static_cast<const T*>(uploads_.back().data());
  }

  std::unique_ptr<ModelDir> dir_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Model> model_;
  DeviceMemory memory_;
  CacheShape shape_;
  ModelCaches caches_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<int32_t> lengths_;
  std::vector<int32_t> free_blocks_;
  std::vector<DeviceMemory> uploads_;
  size_t peak_scratch_ = 0;
  size_t planned_scratch_ = 0;
};

inline float max_abs_diff(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;  // NaN sticks
  }
  return largest;
}

}  // namespace nibble::test
