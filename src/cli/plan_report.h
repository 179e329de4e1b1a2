// What `nibble plan` says: the verdict, the table, the ladder and the pictures, as text, JSON and
// SVG. Pure functions of a plan, so that tests can hold the words.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/memory_plan.h"
#include "engine/roofline.h"

namespace nibble::cli {

// One context length: what it takes.
struct LadderRow {
  int64_t context = 0;
  int max_num_seqs = 0;
  double utilization = 0;         // that was asked for
  double needed_utilization = 0;  // the least that holds one such sequence; above 1: never
  size_t kv_bytes_per_sequence = 0;
  MemoryPlan plan{};
};

struct PlanReport {
  std::string model;
  int64_t model_limit = 0;  // max_position_embeddings
  MemoryTarget target;
  EngineOptions options;
  MemoryPlan plan{};
  std::vector<LadderRow> ladder;
  std::vector<PlanChange> changes;  // at most three
};

enum class Verdict { kFits, kFitsShorter, kDoesNotFit };
// Shorter: the context was left open and what fits is below the model's own limit.
Verdict verdict(const PlanReport& report);

std::string verdict_line(const PlanReport& report);
std::string plan_text(const PlanReport& report);  // 80 columns
Json plan_json(const PlanReport& report);
std::string plan_svg(const PlanReport& report);

std::string roofline_text(const CardSet& cards, const std::vector<RooflinePoint>& points);
Json roofline_json(const CardSet& cards, const std::vector<RooflinePoint>& points);

// The command that serves what was planned, or a systemd unit or a compose file around it.
std::string emit(const PlanReport& report, const std::string& what);

}  // namespace nibble::cli
