// nibble inspect MODEL: layers, types, sizes, what is quantized.
#include <cstdio>
#include <map>

#include "base/format.h"
#include "checkpoint/model_dir.h"
#include "cli/command.h"
#include "model/architectures.h"

namespace nibble::cli {
namespace {

struct InspectFlags {
  std::string model;
  bool tensors = false;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory");
    v.option("tensors", &tensors, "list every tensor");
    v.option("json", &json, "print JSON");
  }
};

struct Summary {
  std::string architecture;
  ModelSpec spec;
  std::map<std::string, size_t> bytes_by_dtype;
  size_t total_bytes = 0;
  int64_t num_parameters = 0;  // of the tensors as stored, packed integers unpacked
  size_t quantized_bytes = 0;  // packed integers, scales and zero points
  int num_quantized_modules = 0;
};

Result<Summary> summarise(const ModelDir& dir) {
  Summary summary;
  NB_TRY(summary.spec, parse_model_config(dir.config()));
  summary.architecture = summary.spec.architecture;
  for (const SafetensorsFile& shard : dir.shards()) {
    for (const TensorInfo& info : shard.tensors()) {
      summary.total_bytes += info.num_bytes;
      summary.bytes_by_dtype[std::string(dtype_name(info.dtype))] += info.num_bytes;
      const bool packed = info.name.ends_with(".weight_packed");
      const bool companion = info.name.ends_with(".weight_scale") ||
                             info.name.ends_with(".weight_zero_point") ||
                             info.name.ends_with(".weight_shape");
      if (packed || companion) summary.quantized_bytes += info.num_bytes;
      if (packed) {
        const std::string base = info.name.substr(0, info.name.rfind('.'));
        NB_TRY(const Tensor shape, dir.tensor(base + ".weight_shape"));
        if (shape.dtype == DType::kI64 && shape.num_elements() == 2)
          summary.num_parameters += shape.as<const int64_t>()[0] * shape.as<const int64_t>()[1];
        ++summary.num_quantized_modules;
      } else if (!companion) {
        summary.num_parameters += info.shape.num_elements();
      }
    }
  }
  return summary;
}

void print(const ModelDir& dir, const Summary& summary) {
  const ModelSpec& spec = summary.spec;
  int num_full = 0;
  for (const LayerSpec& layer : spec.layers) num_full += layer.mixer == MixerKind::kFullAttention;
  std::printf("%s  %s\n", dir.path().string().c_str(), summary.architecture.c_str());
  std::printf("  parameters      %lld\n", static_cast<long long>(summary.num_parameters));
  std::printf("  layers          %zu (%d full attention, %zu linear attention)\n",
              spec.layers.size(), num_full, spec.layers.size() - static_cast<size_t>(num_full));
  std::printf(
      "  hidden          %lld, MLP %lld, vocabulary %lld%s\n",
      static_cast<long long>(spec.hidden_size), static_cast<long long>(spec.intermediate_size),
      static_cast<long long>(spec.vocab_size), spec.tie_word_embeddings ? " (tied head)" : "");
  std::printf("  attention       %d query, %d key/value heads of %d%s\n", spec.attention.num_heads,
              spec.attention.num_kv_heads, spec.attention.head_dim,
              spec.attention.output_gate ? ", output gate" : "");
  if (spec.hybrid())
    std::printf("  delta net       %d key heads of %d, %d value heads of %d, convolution %d\n",
                spec.delta_net.num_k_heads, spec.delta_net.head_k_dim, spec.delta_net.num_v_heads,
                spec.delta_net.head_v_dim, spec.delta_net.conv_kernel);
  if (spec.moe.num_experts > 0)
    std::printf("  experts         %d, %d per token\n", spec.moe.num_experts,
                spec.moe.num_experts_per_tok);
  std::printf("  context         %lld tokens\n",
              static_cast<long long>(spec.max_position_embeddings));
  std::printf("  files           %zu, %s of tensors:", dir.shards().size(),
              format_bytes(summary.total_bytes).c_str());
  for (const auto& [dtype, bytes] : summary.bytes_by_dtype)
    std::printf(" %s %s", dtype.c_str(), format_bytes(bytes).c_str());
  std::printf("\n");
  if (!dir.quantization()) {
    std::printf("  quantized       no\n");
    return;
  }
  for (const QuantizationGroup& group : dir.quantization()->groups)
    std::printf("  quantized       %d modules, %d bits, %s, %s, observer %s (%s)\n",
                summary.num_quantized_modules, group.format.num_bits,
                group.format.group_size < 0
                    ? "per channel"
                    : format("groups of {}", group.format.group_size).c_str(),
                group.format.symmetric ? "symmetric" : "asymmetric", group.observer.c_str(),
                format_bytes(summary.quantized_bytes).c_str());
}

}  // namespace

int inspect(Arguments arguments) {
  InspectFlags flags;
  OptionSet set("nibble inspect", "what is in a checkpoint: layers, types, sizes, quantization");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<ModelDir> dir = ModelDir::open(flags.model);
  if (!dir) return fail(dir.error());
  const Result<Summary> summary = summarise(*dir);
  if (!summary) return fail(summary.error());
  if (flags.json) {
    Json dtypes = Json::object();
    for (const auto& [dtype, bytes] : summary->bytes_by_dtype) dtypes[dtype] = bytes;
    std::puts(dump_json({{"architecture", summary->architecture},
                         {"num_parameters", summary->num_parameters},
                         {"num_layers", summary->spec.layers.size()},
                         {"tensor_bytes", summary->total_bytes},
                         {"bytes_by_dtype", std::move(dtypes)},
                         {"num_quantized_modules", summary->num_quantized_modules}})
                  .c_str());
    return 0;
  }
  print(*dir, *summary);
  if (flags.tensors)
    for (const SafetensorsFile& shard : dir->shards())
      for (const TensorInfo& info : shard.tensors())
        std::printf("  %-5s %-18s %s\n", dtype_name(info.dtype).data(),
                    info.shape.to_string().c_str(), info.name.c_str());
  return 0;
}

}  // namespace nibble::cli
