// Runs a syntax tree. One evaluator renders once; it counts steps, output and time.
#pragma once

#include <chrono>
#include <string>

#include "text/chat_template.h"
#include "text/jinja/syntax.h"

namespace nibble::jinja {

// Names of one level; inner levels shadow outer ones.
struct Scope {
  std::map<std::string, Value, std::less<>> names;
  std::shared_ptr<Scope> parent;
};

class Evaluator {
 public:
  Evaluator(const TemplateLimits& limits, std::map<std::string, Value, std::less<>> variables);

  std::string render(const Node& root);

  // For filters and functions that call back, and to account for work done in builtins.
  Value call(const Value& callee, const Arguments& arguments);
  Value apply_filter(const std::string& name, const Value& subject, const Arguments& arguments);
  bool apply_test(const std::string& name, const Value& subject, const Arguments& arguments);
  Value attribute(const Value& object, const Value& key);
  void count_steps(size_t steps);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;

  Flow run(const Node& node);
  Flow run_for(const Node& node);
  Value evaluate(const Node& node);
  Value evaluate_binary(const Node& node);
  Value evaluate_slice(const Node& node);
  Arguments evaluate_arguments(const Node& node);
  bool compare_with(const std::string& op, const Value& left, const Value& right) const;
  const Value* look_up(const std::string& name) const;
  void assign(const Node& target, const Value& value);
  Value make_macro(const Node& node, const std::string& name);
  std::string capture(const Node& body, const ScopePtr& scope);
  void emit(std::string_view text);

  struct DepthGuard {
    explicit DepthGuard(Evaluator& evaluator);
    ~DepthGuard() { --evaluator_.depth_; }
    Evaluator& evaluator_;
  };

  const TemplateLimits& limits_;
  std::chrono::steady_clock::time_point deadline_;
  size_t steps_ = 0;
  size_t output_bytes_ = 0;  // over all buffers ever filled
  int depth_ = 0;
  ScopePtr scope_;
  std::string* out_ = nullptr;
  const std::string* captured_ = nullptr;
};

// methods.cc: methods of strings, dicts and lists; null when the object has no such method.
Value bound_method(const Value& object, const std::string& name);
// functions.cc: range, dict, namespace, raise_exception, strftime_now.
void add_globals(std::map<std::string, Value, std::less<>>* names);

}  // namespace nibble::jinja
