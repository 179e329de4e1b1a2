// nibble fidelity PARENT QUANTIZED: KL divergence and agreement on held-out conversations.
#include <cstdio>

#include "base/format.h"
#include "cli/command.h"
#include "eval/fidelity.h"
#include "quant/calibration_set.h"

namespace nibble::cli {
namespace {

struct FidelityFlags {
  std::string parent;
  std::string quantized;
  std::string prompts;
  CalibrationOptions samples{.num_samples = 32, .skip_samples = 256, .max_seq_length = 1024};
  std::string device = "auto";
  std::string dtype = "float32";  // the same everywhere, so that figures compare
  int num_threads = 0;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("PARENT", &parent, "the model before quantization");
    v.positional("QUANTIZED", &quantized, "the model after it");
    v.option("prompts", &prompts, "conversations to judge by: JSON, JSONL or text");
    v.option("num-samples", &samples.num_samples, "conversations to score");
    v.option("skip-samples", &samples.skip_samples,
             "conversations passed over first, so that calibration samples are not judged by");
    v.option("max-seq-length", &samples.max_seq_length, "tokens per conversation");
    v.option("device", &device, "what computes", {"auto", "cpu", "cuda", "reference"});
    v.option("dtype", &dtype, "of activations");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("json", &json, "print JSON");
  }
};

Result<FidelityReport> compare(const FidelityFlags& flags) {
  if (flags.prompts.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "nibble fidelity: --prompts is missing; give held-out conversations, for "
                      "example models/calibration/hermes-style.json of the source tree");
  NB_TRY(const ModelDir parent_dir, ModelDir::open(flags.parent));
  NB_TRY(const ModelDir quantized_dir, ModelDir::open(flags.quantized));
  NB_TRY(const CalibrationSet set, load_conversations(parent_dir, flags.prompts, flags.samples));
  EngineOptions options;
  options.device = flags.device;
  options.dtype = flags.dtype;
  options.num_threads = flags.num_threads;
  NB_TRY(Scorer parent, Scorer::open(parent_dir, options, flags.samples.max_seq_length));
  NB_TRY(Scorer quantized, Scorer::open(quantized_dir, options, flags.samples.max_seq_length));
  return compare_models(parent, quantized, set.samples);
}

}  // namespace

int fidelity(Arguments arguments) {
  FidelityFlags flags;
  OptionSet set("nibble fidelity", "how far a quantized model is from its parent");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<FidelityReport> report = compare(flags);
  if (!report) return fail(report.error());
  if (flags.json) {
    std::puts(dump_json({{"num_tokens", report->num_tokens},
                         {"mean_kl", report->mean_kl},
                         {"median_kl", report->median_kl},
                         {"p99_kl", report->p99_kl},
                         {"top1_agreement", report->top1_agreement},
                         {"parent_loss", report->parent_loss},
                         {"quantized_loss", report->quantized_loss}})
                  .c_str());
    return 0;
  }
  std::printf("tokens compared   %lld\n", static_cast<long long>(report->num_tokens));
  std::printf("KL divergence     mean %.5f, median %.5f, 99th percentile %.4f nats\n",
              report->mean_kl, report->median_kl, report->p99_kl);
  std::printf("same best token   %.2f %%\n", 100 * report->top1_agreement);
  std::printf("loss              %.4f parent, %.4f quantized\n", report->parent_loss,
              report->quantized_loss);
  return 0;
}

}  // namespace nibble::cli
