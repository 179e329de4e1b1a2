// nibble verify DIR: hashes, tensors, values, a forward pass; with --against, the distance too.
#include "eval/verify.h"

#include <cstdio>

#include "base/format.h"
#include "checkpoint/model_dir.h"
#include "cli/command.h"
#include "quant/calibration_set.h"

namespace nibble::cli {
namespace {

struct VerifyFlags {
  std::string path;
  std::string against;
  std::string prompts;
  CalibrationOptions samples{.num_samples = 4, .skip_samples = 0, .max_seq_length = 256};
  int num_threads = 0;

  template <class V>
  void visit(V& v) {
    v.positional("DIR", &path, "checkpoint directory");
    v.option("against", &against, "the model it was made from: compare their outputs");
    v.option("prompts", &prompts, "conversations to run: JSON, JSONL or text");
    v.option("num-samples", &samples.num_samples, "conversations to run");
    v.option("num-threads", &num_threads, "threads, 0 for all");
  }
};

Result<VerifyReport> verify_with(const VerifyFlags& flags) {
  VerifyOptions options;
  options.parent = flags.against;
  options.num_threads = flags.num_threads;
  if (!flags.prompts.empty()) {
    NB_TRY(const ModelDir dir, ModelDir::open(flags.path));
    NB_TRY(CalibrationSet set, load_conversations(dir, flags.prompts, flags.samples));
    options.samples = std::move(set.samples);
  }
  return verify_checkpoint(flags.path, options);
}

}  // namespace

int verify(Arguments arguments) {
  VerifyFlags flags;
  OptionSet set("nibble verify", "check that a checkpoint is whole and computes");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<VerifyReport> report = verify_with(flags);
  if (!report) return fail(report.error());
  for (const std::string& problem : report->problems)
    std::fprintf(stderr, "nibble: %s\n", problem.c_str());
  if (!report->problems.empty()) return exit_code(ErrorCode::kCorrupt);
  if (report->has_manifest)
    std::printf("%d files as written, ", report->num_files);
  else
    std::printf("no manifest.json, so no hashes checked; ");
  std::printf("%d tensors in place and finite, forward pass finite\n", report->num_tensors);
  if (report->compared)
    std::printf(
        "against the parent: mean KL %.5f nats, same best token at %.1f %% of %lld positions\n",
        report->fidelity.mean_kl, 100 * report->fidelity.top1_agreement,
        static_cast<long long>(report->fidelity.num_tokens));
  return 0;
}

}  // namespace nibble::cli
