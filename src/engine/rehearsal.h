// The worst legal step, run once on the real buffers before the engine says it is ready: what
// would fail later fails now.
#pragma once

#include "engine/model_runner.h"

namespace nibble {

struct Rehearsal {
  int32_t num_sequences = 0;
  int32_t num_tokens = 0;  // of the step
  int32_t longest_context = 0;
  bool whole = true;  // false: cut to the time limit of a CPU, see below
};

// The largest batch (max_num_seqs sequences), the largest chunk (max_num_batched_tokens in one
// step) and the longest context (a sequence that fills max_model_len), with the last KV block and
// the last state slot in use. On a GPU all of it. On a CPU, where that step may take minutes, the
// chunk and the context are cut to about `max_flops` operations; every page of the scratch and of
// the logits is written, and the last block and slot are still used, so no buffer is left unproved:
// what remains untried is arithmetic that needs no further memory.
// kCorrupt when the logits are not finite.
Result<Rehearsal> rehearse(ModelRunner& runner, const Model& model, const MemoryPlan& plan,
                           bool is_host, double max_flops = 2e10);

}  // namespace nibble
