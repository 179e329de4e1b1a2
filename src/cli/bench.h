// nibble bench WHAT: one file per WHAT, one row in bench.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "device/measure.h"
#include "engine/memory_plan.h"
#include "model/synthetic_weights.h"

namespace nibble::cli {

int bench_serve(Arguments arguments);
int bench_decode(Arguments arguments);
int bench_prefill(Arguments arguments);
int bench_kernels(Arguments arguments);

// Flags that every measurement of a model has.
struct BenchModelFlags {
  std::string model;
  std::string like;
  bool quantized = true;
  int layers = 0;
  int seed = 0;
  int repeats = 20;
  EngineOptions engine;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.option("model", &model, "checkpoint directory");
    v.option("like", &like, "instead of a model: random weights of a shape, see nibble synth");
    v.option("quantized", &quantized, "with --like: 4-bit as the bundled recipes");
    v.option("layers", &layers, "with --like: only the first so many, 0 for all");
    v.option("seed", &seed, "with --like: of the weights");
    v.option("repeats", &repeats, "timed runs of each figure; the median counts", {.low = 1});
    v.option("device", &engine.device,
             "what computes: auto is the GPU if one is usable, else the CPU",
             {"auto", "cpu", "cuda", "reference"});
    v.option("dtype", &engine.dtype, "of activations");
    v.option("kv-cache-dtype", &engine.kv_cache_dtype, "as in nibble serve");
    v.option("block-size", &engine.block_size, "tokens in a KV block");
    v.option("compact-weights", &engine.compact_weights, "as in nibble serve",
             {"auto", "on", "off"});
    v.option("enforce-eager", &engine.enforce_eager, "never record steps as CUDA graphs");
    v.option("num-threads", &engine.num_threads, "threads, 0 for all");
    v.option("json", &json, "print JSON");
  }
};

// A model on its device, and what the device can do. Members in the order of their dependence.
struct BenchModel {
  std::unique_ptr<Device> device;
  DeviceRates rates;
  MemoryTarget target;  // before the weights came
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<ModelDir> dir;              // one of these two
  std::unique_ptr<SyntheticWeights> weights;  // no files: tens of gigabytes need not be written
  std::unique_ptr<Model> model;
  double load_seconds = 0;

  // "NVIDIA H100, ...: reads 3.1 TB/s, matrix products 700 TFLOP/s; ..."
  std::string heading(const BenchModelFlags& flags) const;
  // The same for --json; rows are added by the caller.
  Json json(const BenchModelFlags& flags) const;
};
Result<BenchModel> open_bench_model(const BenchModelFlags& flags);

// "1,16" or "4k,200k"; kInvalidArgument names the flag.
Result<std::vector<int32_t>> parse_counts(std::string_view flag, const std::string& text);

}  // namespace nibble::cli
