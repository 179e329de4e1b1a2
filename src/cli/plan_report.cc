// Words and tables of `nibble plan`.
#include "cli/plan_report.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"

namespace nibble::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

double gib(size_t bytes) {
  return static_cast<double>(bytes) / kGiB;
}

// "12.00 GiB", or smaller units below a hundredth of one.
std::string size_text(size_t bytes) {
  return bytes >= (size_t{16} << 20) ? format("{:.2f} GiB", gib(bytes)) : format_bytes(bytes);
}

std::string where(const PlanReport& report) {
  return report.target.num_devices > 1
             ? format("{} x {}", report.target.num_devices, report.target.name)
             : report.target.name;
}

std::string each(const PlanReport& report) {
  return report.target.num_devices > 1 ? " on each" : "";
}

// The terms as few segments of a picture.
struct Segment {
  char letter;
  std::string label;
  std::string colour;
  size_t bytes = 0;
};

std::vector<Segment> segments(const PlanReport& report) {
  const MemoryPlan& plan = report.plan;
  const size_t weights = plan.weights.total();
  const size_t states = plan.recurrent_bytes + plan.conv_bytes;
  const size_t reserves = plan.graph_bytes + plan.context_bytes + plan.margin_bytes;
  const size_t total = plan.total_bytes();
  const size_t rest = total - weights - states - reserves - plan.kv_bytes - plan.snapshot_bytes;
  std::vector<Segment> list;
  if (report.plan.others_bytes > 0)
    list.push_back({'o', "other programs", "#9aa0a6", plan.others_bytes});
  list.push_back({'W', "weights", "#3b6fb6", weights});
  list.push_back({'K', "KV cache", "#2e9e6b", plan.kv_bytes});
  list.push_back({'S', "states", "#c77d1e", states});
  list.push_back({'n', "snapshots", "#e3b36a", plan.snapshot_bytes});
  list.push_back({'A', "activations, logits, workspace", "#8e5fb0", rest});
  list.push_back({'r', "driver, graphs, margin", "#b05f6d", reserves});
  std::erase_if(list, [](const Segment& segment) { return segment.bytes == 0; });
  return list;
}

std::string bar(const PlanReport& report) {
  constexpr int kWidth = 72;
  const auto total = static_cast<double>(
      std::max(report.plan.device_bytes, report.plan.others_bytes + report.plan.total_bytes()));
  std::string cells;
  double sum = 0;
  std::string legend;
  for (const Segment& segment : segments(report)) {
    sum += static_cast<double>(segment.bytes);
    const auto end = static_cast<size_t>(std::lround(sum / total * kWidth));
    if (end > cells.size()) cells.append(end - cells.size(), segment.letter);
    legend += format("  {} {}", segment.letter, segment.label);
    if (legend.size() - (legend.rfind('\n') + 1) > 56) legend += "\n";
  }
  cells.resize(kWidth, '.');
  return format("  [{}]\n{}  . free\n", cells, legend);
}

std::string table(const PlanReport& report) {
  const MemoryPlan& plan = report.plan;
  const std::string title = (report.target.num_devices > 1 ? "on each of " : "on ") + where(report);
  std::string text = format("{:<50}{:>12}\n", title, "GiB");
  const auto row = [&](const std::string& name, size_t bytes) {
    text += format("  {:<48}{:>12.3f}\n", name, gib(bytes));
  };
  for (const MemoryTerm& term : plan.terms()) {
    if (term.bytes < (size_t{1} << 19)) continue;  // would print as 0.000
    const bool mapped = report.target.is_host && term.name.starts_with("weights.");
    row(term.detail + (mapped ? " (mapped file)" : ""), term.bytes);
  }
  row("total", plan.total_bytes());
  row(format("may be used: {:g} of the {}", report.options.gpu_memory_utilization,
             report.target.is_host ? "memory available" : "device"),
      plan.budget_bytes);
  if (plan.others_bytes > 0) row("other programs hold", plan.others_bytes);
  if (plan.fits()) {
    row(format("needed for one sequence of {} tokens", plan.max_model_len), plan.single_bytes());
    row("spare beside it", plan.spare_bytes());
  } else {
    row("missing", plan.shortfall_bytes);
  }
  return text;
}

std::string ladder(const PlanReport& report) {
  std::string text = format("{:>9}{:>6}{:>7}{:>7}{:>9}{:>9}{:>11}{:>9}{:>9}\n", "context", "seqs",
                            "share", "needs", "KV/seq", "KV", "snapshots", "spare", "at once");
  for (const LadderRow& row : report.ladder) {
    const MemoryPlan& plan = row.plan;
    const std::string needs =
        row.needed_utilization <= 1 ? format("{:.2f}", row.needed_utilization) : "> 1";
    text += format("{:>9}{:>6}{:>7.2f}{:>7}{:>9.2f}", row.context, row.max_num_seqs,
                   row.utilization, needs, gib(row.kv_bytes_per_sequence));
    text += plan.fits()
                ? format("{:>9.2f}{:>11.2f}{:>9.2f}{:>9.1f}\n", gib(plan.kv_bytes),
                         gib(plan.snapshot_bytes), gib(plan.spare_bytes()), plan.concurrency())
                : format("{:>9}{:>11}{:>9}{:>9}\n", "-", "-", "-", "does not");
  }
  return text +
         "  needs: the least share for one full-length sequence; spare: left beside one;\n"
         "  at once: full-length sequences in the KV cache; KV/seq to spare in GiB\n";
}

// The largest part of what one full-length sequence needs, and what grows.
std::string bottleneck(const PlanReport& report) {
  const MemoryPlan& plan = report.plan;
  const size_t all = plan.single_bytes();
  const size_t kv = all - (plan.total_bytes() - plan.kv_bytes - plan.snapshot_bytes);
  const std::pair<const char*, size_t> parts[] = {
      {"weights", plan.weights.total()},
      {"KV cache of one sequence", kv},
      {"states of running sequences", plan.recurrent_bytes + plan.conv_bytes},
      {"activations and logits", plan.activation_bytes + plan.logits_bytes}};
  const auto& largest =
      *std::ranges::max_element(parts, {}, [](const auto& part) { return part.second; });
  const std::string subject = plan.max_model_len < plan.caches.block_size
                                  ? "before any context"
                                  : format("at {} tokens", plan.max_model_len);
  std::string text = format("bottleneck: {}, {} of {} {} ({:.0f} %)\n", largest.first,
                            size_text(largest.second), size_text(all), subject,
                            100.0 * static_cast<double>(largest.second) / static_cast<double>(all));
  text += format("  a token takes {:.1f} KiB{}, a running sequence {} of state\n",
                 static_cast<double>(plan.kv_bytes_per_token) / 1024, each(report),
                 size_text(plan.state_bytes_per_seq));
  return text;
}

std::string changes(const PlanReport& report) {
  if (report.changes.empty()) return "";
  std::string text =
      report.plan.fits() ? "cheapest ways to more room:\n" : "cheapest ways to fit:\n";
  for (const PlanChange& change : report.changes)
    text += format("  {:<31}{:>10}  {}{}\n", change.flags,
                   change.freed_bytes > 0 ? size_text(change.freed_bytes) : "", change.cost,
                   report.plan.fits() ? ""
                   : change.fits      ? " (fits)"
                                      : format(" (not alone)"));
  return text;
}

// Flags that reproduce the plan, chosen values filled in.
std::vector<std::string> serve_flags(const PlanReport& report) {
  const EngineOptions& o = report.options;
  const EngineOptions defaults;
  std::vector<std::string> flags = {
      format("--max-model-len {}", report.plan.max_model_len),
      format("--max-num-seqs {}", o.max_num_seqs),
      format("--max-num-batched-tokens {}", report.plan.max_num_batched_tokens),
      format("--gpu-memory-utilization {:g}", o.gpu_memory_utilization),
      format("--kv-cache-dtype {}", o.kv_cache_dtype)};
  if (o.tensor_parallel_size > 1)
    flags.push_back(format("--tensor-parallel-size {}", o.tensor_parallel_size));
  if (o.block_size != defaults.block_size) flags.push_back(format("--block-size {}", o.block_size));
  if (o.kv_cache_bytes > 0) flags.push_back(format("--kv-cache-memory-bytes {}", o.kv_cache_bytes));
  if (o.num_gpu_blocks_override > 0)
    flags.push_back(format("--num-gpu-blocks-override {}", o.num_gpu_blocks_override));
  if (o.kv_cache_auto_trim_ratio != defaults.kv_cache_auto_trim_ratio)
    flags.push_back(format("--kv-cache-auto-trim-ratio {:g}", o.kv_cache_auto_trim_ratio));
  if (o.num_state_snapshots >= 0)
    flags.push_back(format("--num-state-snapshots {}", o.num_state_snapshots));
  if (o.kv_offloading_size > 0)
    flags.push_back(format("--kv-offloading-size {:g}", o.kv_offloading_size));
  if (o.dtype != defaults.dtype) flags.push_back(format("--dtype {}", o.dtype));
  return flags;
}

std::string xml_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else
      out += c;
  }
  return out;
}

}  // namespace

Verdict verdict(const PlanReport& report) {
  if (!report.plan.fits()) return Verdict::kDoesNotFit;
  return report.plan.max_model_len < report.model_limit && report.options.max_model_len <= 0
             ? Verdict::kFitsShorter
             : Verdict::kFits;
}

std::string verdict_line(const PlanReport& report) {
  const MemoryPlan& plan = report.plan;
  const std::string place = where(report);
  switch (verdict(report)) {
    case Verdict::kFits:
      return format("fits: {} tokens of context, up to {} sequences, on {}; {} spare{}",
                    plan.max_model_len, plan.max_num_seqs, place, size_text(plan.spare_bytes()),
                    each(report));
    case Verdict::kFitsShorter:
      return format("fits with {} tokens less: {} of the model's {} tokens, {} sequences, on {}",
                    report.model_limit - plan.max_model_len, plan.max_model_len, report.model_limit,
                    plan.max_num_seqs, place);
    case Verdict::kDoesNotFit: break;
  }
  if (plan.fitting_model_len >= plan.caches.block_size &&
      plan.fitting_model_len < plan.max_model_len)
    return format("does not fit: {} too much{} for {} tokens on {}; fits with {} tokens less ({})",
                  size_text(plan.shortfall_bytes), each(report), plan.max_model_len, place,
                  plan.max_model_len - plan.fitting_model_len, plan.fitting_model_len);
  return format("does not fit: {} too much{} on {}, at any context length",
                size_text(plan.shortfall_bytes), each(report), place);
}

std::string plan_text(const PlanReport& report) {
  std::string text = verdict_line(report) + "\n\n" + table(report) + "\n" + bar(report) + "\n" +
                     bottleneck(report) + changes(report);
  if (!report.ladder.empty()) text += "\n" + ladder(report);
  return text;
}

Json plan_json(const PlanReport& report) {
  static constexpr const char* kVerdicts[] = {"fits", "fits_shorter", "does_not_fit"};
  const auto describe = [](const MemoryPlan& plan) {
    Json terms = Json::array();
    for (const MemoryTerm& term : plan.terms())
      terms.push_back({{"name", term.name}, {"bytes", term.bytes}});
    return Json{{"fits", plan.fits()},
                {"max_model_len", plan.max_model_len},
                {"fitting_model_len", plan.fitting_model_len},
                {"max_num_seqs", plan.max_num_seqs},
                {"max_num_batched_tokens", plan.max_num_batched_tokens},
                {"num_kv_blocks", plan.caches.num_blocks},
                {"block_size", plan.caches.block_size},
                {"kv_dtype", dtype_name(plan.caches.kv_dtype)},
                {"kv_tokens", plan.kv_tokens()},
                {"kv_bytes_per_token", plan.kv_bytes_per_token},
                {"num_snapshots", plan.caches.num_snapshot_slots},
                {"state_bytes_per_sequence", plan.state_bytes_per_seq},
                {"concurrency", plan.concurrency()},
                {"terms", std::move(terms)},
                {"total_bytes", plan.total_bytes()},
                {"host_bytes", plan.staging_bytes + plan.tier_bytes},
                {"device_bytes", plan.device_bytes},
                {"others_bytes", plan.others_bytes},
                {"budget_bytes", plan.budget_bytes},
                {"headroom_bytes", plan.headroom_bytes()},
                {"shortfall_bytes", plan.shortfall_bytes}};
  };
  Json ladder = Json::array();
  for (const LadderRow& row : report.ladder)
    ladder.push_back({{"context", row.context},
                      {"max_num_seqs", row.max_num_seqs},
                      {"utilization", std::round(row.utilization * 1e4) / 1e4},
                      {"needed_utilization", row.needed_utilization},
                      {"kv_bytes_per_sequence", row.kv_bytes_per_sequence},
                      {"plan", describe(row.plan)}});
  Json changes = Json::array();
  for (const PlanChange& change : report.changes)
    changes.push_back({{"flags", change.flags},
                       {"cost", change.cost},
                       {"freed_bytes", change.freed_bytes},
                       {"fits", change.fits},
                       {"fitting_model_len", change.fitting_model_len}});
  return {{"verdict", kVerdicts[static_cast<size_t>(verdict(report))]},
          {"message", verdict_line(report)},
          {"model", report.model},
          {"device", report.target.name},
          {"num_devices", report.target.num_devices},
          {"plan", describe(report.plan)},
          {"changes", std::move(changes)},
          {"ladder", std::move(ladder)}};
}

std::string plan_svg(const PlanReport& report) {
  constexpr double kWidth = 720;
  const auto total = static_cast<double>(
      std::max(report.plan.device_bytes, report.plan.others_bytes + report.plan.total_bytes()));
  const std::vector<Segment> list = segments(report);
  const size_t height = 120 + 20 * list.size();
  std::string svg = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{0}\" viewBox=\"0 0 760 "
      "{0}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"760\" height=\"{0}\" fill=\"#ffffff\"/>\n"
      "<text x=\"20\" y=\"28\" font-size=\"15\">{1}</text>\n"
      "<rect x=\"20\" y=\"44\" width=\"720\" height=\"36\" fill=\"#eceff1\"/>\n",
      height, xml_escaped(verdict_line(report)));
  double sum = 0;
  double y = 118;
  for (const Segment& segment : list) {
    const double width = static_cast<double>(segment.bytes) / total * kWidth;
    svg += format("<rect x=\"{:.1f}\" y=\"44\" width=\"{:.1f}\" height=\"36\" fill=\"{}\"/>\n",
                  20 + sum, width, segment.colour);
    svg += format(
        "<rect x=\"20\" y=\"{:.0f}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"40\" "
        "y=\"{:.0f}\">{}, {}</text>\n",
        y - 11, segment.colour, y, segment.label, size_text(segment.bytes));
    sum += width;
    y += 20;
  }
  const double limit = static_cast<double>(report.target.is_host
                                               ? report.plan.others_bytes + report.plan.budget_bytes
                                               : report.plan.budget_bytes) /
                       total * kWidth;
  svg += format(
      "<line x1=\"{0:.1f}\" y1=\"38\" x2=\"{0:.1f}\" y2=\"86\" stroke=\"#202124\" "
      "stroke-width=\"2\"/>\n</svg>\n",
      20 + std::min(limit, kWidth));
  return svg;
}

std::string roofline_text(const CardSet& cards, const std::vector<RooflinePoint>& points) {
  const double peak = std::max(cards.card.fp16_tflops, cards.card.bf16_tflops);
  std::string text = format(
      "upper bounds on {} x {}: {:g} GB/s and {:g} TFLOP/s together (data sheet),\n"
      "before communication and launch gaps; per device and step\n",
      cards.count, cards.card.name, cards.card.bandwidth_gb_s * cards.count, peak * cards.count);
  bool was_prefill = true;
  for (const RooflinePoint& point : points) {
    if (point.prefill != was_prefill || &point == points.data()) {
      text += point.prefill ? format("\n{:<10}{:>8}{:>12}{:>12}{:>12}{:>12}  {}\n", "prefill", "",
                                     "prompt", "TFLOP", "seconds", "tokens/s", "bound by")
                            : format("\n{:<10}{:>8}{:>12}{:>12}{:>12}{:>12}  {}\n", "decode",
                                     "batch", "context", "GB", "ms", "tokens/s", "bound by");
      was_prefill = point.prefill;
    }
    const char* bound = point.memory_bound ? "memory" : "compute";
    text += point.prefill
                ? format("{:<10}{:>8}{:>12}{:>12.1f}{:>12.2f}{:>12.0f}  {}\n", "", "",
                         point.context, static_cast<double>(point.cost.flops()) / 1e12,
                         point.seconds, point.tokens_per_second, bound)
                : format("{:<10}{:>8}{:>12}{:>12.2f}{:>12.2f}{:>12.0f}  {}\n", "", point.batch,
                         point.context, static_cast<double>(point.cost.bytes()) / 1e9,
                         point.seconds * 1e3, point.tokens_per_second, bound);
  }
  return text;
}

Json roofline_json(const CardSet& cards, const std::vector<RooflinePoint>& points) {
  Json rows = Json::array();
  for (const RooflinePoint& point : points)
    rows.push_back({{"phase", point.prefill ? "prefill" : "decode"},
                    {"batch", point.batch},
                    {"context", point.context},
                    {"weight_bytes", point.cost.linear_weight_bytes},
                    {"kv_bytes", point.cost.kv_bytes},
                    {"state_bytes", point.cost.state_bytes},
                    {"flops", point.cost.flops()},
                    {"seconds", point.seconds},
                    {"tokens_per_second", point.tokens_per_second},
                    {"bound", point.memory_bound ? "memory" : "compute"}});
  return {{"device", cards.card.name},
          {"num_devices", cards.count},
          {"bandwidth_gb_s", cards.card.bandwidth_gb_s},
          {"fp16_tflops", cards.card.fp16_tflops},
          {"bf16_tflops", cards.card.bf16_tflops},
          {"points", std::move(rows)}};
}

std::string emit(const PlanReport& report, const std::string& what) {
  const std::vector<std::string> flags = serve_flags(report);
  if (what == "serve")
    return format("nibble serve {} \\\n  {}\n", report.model, join(flags, " \\\n  "));
  if (what == "systemd")
    return format(
        "[Unit]\nDescription=nibble serving {0}\nAfter=network-online.target\n"
        "Wants=network-online.target\n\n[Service]\n"
        "ExecStart=/usr/local/bin/nibble serve {0} --host 127.0.0.1 --port 8000 \\\n    {1}\n"
        "# 3: the plan does not fit; starting again would not help.\n"
        "Restart=on-failure\nRestartPreventExitStatus=2 3\nDynamicUser=yes\nProtectSystem=strict\n"
        "ProtectHome=read-only\nNoNewPrivileges=yes\nLimitNOFILE=65536\n\n"
        "[Install]\nWantedBy=multi-user.target\n",
        report.model, join(flags, " \\\n    "));
  std::string command;
  for (const std::string& flag : flags) {
    const size_t space = flag.find(' ');
    command +=
        format("      - \"{}\"\n      - \"{}\"\n", flag.substr(0, space), flag.substr(space + 1));
  }
  std::string devices;
  if (!report.target.is_host)
    devices = format(
        "    deploy:\n      resources:\n        reservations:\n          devices:\n"
        "            - driver: nvidia\n              count: {}\n              capabilities: "
        "[gpu]\n",
        report.target.num_devices);
  return format(
      "services:\n  nibble:\n    image: nibble\n    ports:\n      - \"127.0.0.1:8000:8000\"\n"
      "    volumes:\n      - \"{}:/model:ro\"\n    shm_size: 1gb\n    restart: on-failure\n"
      "    command:\n      - serve\n      - /model\n      - \"--host\"\n      - \"0.0.0.0\"\n"
      "      - \"--insecure\"  # the port above is published on the loopback only\n{}{}",
      report.model, command, devices);
}

}  // namespace nibble::cli
