// Writes a checkpoint crash-safely: into OUT.partial/ under a lock, shard by shard, then index,
// config and side files, then a manifest of SHA-256 sums, then one rename to OUT that refuses to
// overwrite. A Writer dropped before finish() leaves OUT untouched (OUT.partial/ stays for a
// resume). One thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/json.h"
#include "tensor/tensor.h"

namespace nibble {

struct WriterOptions {
  size_t max_shard_bytes = 20'000'000'000;  // decimal, as other tools count; tensor bytes only
  // When known, create() refuses at once if the file system has less room than this.
  size_t expected_bytes = 0;
  // Without manifest.json finish() need not read everything again.
  bool manifest = true;
};

class CheckpointWriter {
 public:
  // Refuses when `out` exists, when its parent is not writable, or when another process holds the
  // lock. Removes leftovers of an abandoned run.
  static Result<CheckpointWriter> create(const fs::path& out, WriterOptions options = {});
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;
  ~CheckpointWriter();

  // Appends a tensor to the current shard; the bytes are on their way to disk when it returns.
  // Resident memory does not grow with the shard. After a failed add every later call fails too.
  Status add(std::string_view name, const Tensor& tensor);
  // A side file (config.json, recipe.yaml...): written at finish().
  Status add_file(std::string_view file_name, std::string bytes);
  // Shard names and index, side files, manifest.json, final rename. Last call on this object.
  Status finish();
  // Removes OUT.partial/: for a run that failed in a way that trying again will not mend.
  void discard();

  size_t total_tensor_bytes() const;

 private:
  struct State;
  explicit CheckpointWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
