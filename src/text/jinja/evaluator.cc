// Statements and expressions.
#include "text/jinja/evaluator.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"

namespace nibble::jinja {
namespace {

[[noreturn]] void too_large() {
  fail("integer result is too large");
}

Value arithmetic(const std::string& op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b})
    if (side->is<Undefined>()) fail(format("'{}' is undefined", side->as<Undefined>().name));
  if (op == "+") {
    if (a.is<std::string>() && b.is<std::string>())
      return a.as<std::string>() + b.as<std::string>();
    if (a.is<Sequence>() && b.is<Sequence>() && a.as<Sequence>().tuple == b.as<Sequence>().tuple) {
      List joined = *a.as<Sequence>().items;
      const List& more = *b.as<Sequence>().items;
      joined.insert(joined.end(), more.begin(), more.end());
      return a.as<Sequence>().tuple ? Value::tuple(std::move(joined))
                                    : Value::list(std::move(joined));
    }
  }
  if (op == "*" && (a.is_integer() || b.is_integer()) && !(a.is_number() && b.is_number())) {
    const Value& repeated = a.is_integer() ? b : a;
    const int64_t times = std::max<int64_t>(0, (a.is_integer() ? a : b).integer());
    if (repeated.is<std::string>()) {
      const std::string& text = repeated.as<std::string>();
      if (!text.empty() && times > (int64_t{1} << 24) / static_cast<int64_t>(text.size()))
        fail("string result is too long");
      std::string out;
      for (int64_t i = 0; i < times; ++i) out += text;
      return out;
    }
    if (repeated.is<Sequence>()) {
      const List& items = *repeated.as<Sequence>().items;
      if (!items.empty() && times > (int64_t{1} << 20) / static_cast<int64_t>(items.size()))
        fail("list result is too long");
      List out;
      for (int64_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
      return repeated.as<Sequence>().tuple ? Value::tuple(std::move(out))
                                           : Value::list(std::move(out));
    }
  }
  if (!a.is_number() || !b.is_number())
    fail(format("unsupported operand type(s) for {}: '{}' and '{}'", op, a.type_name(),
                b.type_name()));
  if (op == "/") {
    if (b.number() == 0) fail("division by zero");
    return a.number() / b.number();
  }
  if (a.is_integer() && b.is_integer()) {
    const int64_t x = a.integer();
    const int64_t y = b.integer();
    int64_t r = 0;
    if (op == "+" || op == "-" || op == "*") {
      const bool overflow = op == "+"   ? __builtin_add_overflow(x, y, &r)
                            : op == "-" ? __builtin_sub_overflow(x, y, &r)
                                        : __builtin_mul_overflow(x, y, &r);
      if (overflow) too_large();
      return r;
    }
    if (op == "//" || op == "%") {
      if (y == 0) fail("integer division or modulo by zero");
      if (y == -1) {
        if (op == "%") return 0;
        if (__builtin_sub_overflow(int64_t{0}, x, &r)) too_large();
        return r;
      }
      const int64_t remainder = x % y;
      const bool adjust = remainder != 0 && (remainder < 0) != (y < 0);
      if (op == "%") return adjust ? remainder + y : remainder;
      return adjust ? x / y - 1 : x / y;
    }
    if (y >= 0) {
      r = 1;
      for (int64_t i = 0; i < y; ++i) {
        if (r == 0 || x == 1 || x == 0) return x == 0 && y > 0 ? Value(0) : Value(r);
        if (__builtin_mul_overflow(r, x, &r)) too_large();
      }
      return r;
    }
  }
  const double x = a.number();
  const double y = b.number();
  if (op == "+") return x + y;
  if (op == "-") return x - y;
  if (op == "*") return x * y;
  if (op == "**") return std::pow(x, y);
  if (y == 0) fail("float division by zero");
  if (op == "//") return std::floor(x / y);
  return x - std::floor(x / y) * y;
}

// The members of `loop`.
Value loop_object(const List& items, size_t i) {
  Dict loop;
  const auto n = static_cast<int64_t>(items.size());
  const auto index = static_cast<int64_t>(i);
  loop.set("index", index + 1);
  loop.set("index0", index);
  loop.set("revindex", n - index);
  loop.set("revindex0", n - index - 1);
  loop.set("first", i == 0);
  loop.set("last", index + 1 == n);
  loop.set("length", n);
  if (i > 0) loop.set("previtem", items[i - 1]);
  if (index + 1 < n) loop.set("nextitem", items[i + 1]);
  loop.set("cycle", Value::function("cycle", [i](Evaluator&, const Arguments& arguments) {
             if (arguments.positional.empty()) fail("no items for cycling given");
             return arguments.positional[i % arguments.positional.size()];
           }));
  return Value::dict(std::move(loop));
}

}  // namespace

Evaluator::DepthGuard::DepthGuard(Evaluator& evaluator) : evaluator_(evaluator) {
  if (++evaluator_.depth_ > evaluator_.limits_.max_depth * 4)
    fail("evaluation is nested too deeply");
}

Evaluator::Evaluator(const TemplateLimits& limits,
                     std::map<std::string, Value, std::less<>> variables)
    : limits_(limits),
      deadline_(std::chrono::steady_clock::now() +
                std::chrono::milliseconds(limits.max_milliseconds)),
      scope_(std::make_shared<Scope>()) {
  auto globals = std::make_shared<Scope>();
  add_globals(&globals->names);
  scope_->names = std::move(variables);
  scope_->parent = std::move(globals);
}

void Evaluator::count_steps(size_t steps) {
  const size_t before = steps_;
  steps_ += steps;
  if (steps_ > limits_.max_steps)
    fail(format("rendering takes more than {} steps", limits_.max_steps));
  if (before / 1024 != steps_ / 1024 && std::chrono::steady_clock::now() > deadline_)
    fail(format("rendering takes longer than {} ms", limits_.max_milliseconds));
}

void Evaluator::emit(std::string_view text) {
  output_bytes_ += text.size();
  if (output_bytes_ > limits_.max_output_bytes)
    fail(format("output is longer than {} bytes", limits_.max_output_bytes));
  *out_ += text;
}

std::string Evaluator::render(const Node& root) {
  std::string out;
  out_ = &out;
  run(root);
  return out;
}

std::string Evaluator::capture(const Node& body, const ScopePtr& scope) {
  std::string text;
  std::string* const outer_out = std::exchange(out_, &text);
  const ScopePtr outer_scope = std::exchange(scope_, scope);
  run(body);
  out_ = outer_out;
  scope_ = outer_scope;
  return text;
}

const Value* Evaluator::look_up(const std::string& name) const {
  for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get())
    if (const auto it = scope->names.find(name); it != scope->names.end()) return &it->second;
  return nullptr;
}

void Evaluator::assign(const Node& target, const Value& value) {
  if (target.kind == Node::Kind::kName) {
    scope_->names[target.text] = value;
  } else if (target.kind == Node::Kind::kAttribute) {
    const Value object = evaluate(*target.a);
    if (!object.is<Namespace>()) fail("cannot assign attribute on non-namespace object");
    (*object.as<Namespace>().members)[target.text] = value;
  } else {
    const List items = iterate(value);
    if (items.size() != target.children.size())
      fail(format("cannot unpack {} values into {} names", items.size(), target.children.size()));
    for (size_t i = 0; i < items.size(); ++i) assign(*target.children[i], items[i]);
  }
}

Evaluator::Flow Evaluator::run(const Node& node) {
  const DepthGuard guard(*this);
  count_steps(1);
  try {
    switch (node.kind) {
      case Node::Kind::kBlock:
        for (const NodePtr& child : node.children)
          if (const Flow flow = run(*child); flow != Flow::kNormal) return flow;
        return Flow::kNormal;
      case Node::Kind::kData: emit(node.text); return Flow::kNormal;
      case Node::Kind::kOutput: emit(to_string(evaluate(*node.a))); return Flow::kNormal;
      case Node::Kind::kIf:
        if (evaluate(*node.a).truthy()) return run(*node.b);
        return node.c != nullptr ? run(*node.c) : Flow::kNormal;
      case Node::Kind::kFor: return run_for(node);
      case Node::Kind::kSet: assign(*node.target, evaluate(*node.a)); return Flow::kNormal;
      case Node::Kind::kSetBlock:
      case Node::Kind::kFilterBlock: {
        auto inner = std::make_shared<Scope>();
        inner->parent = scope_;
        const std::string text = capture(*node.b, inner);
        const std::string* const outer = std::exchange(captured_, &text);
        const Value value = evaluate(*node.a);
        captured_ = outer;
        if (node.kind == Node::Kind::kSetBlock) {
          assign(*node.target, value);
        } else {
          emit(to_string(value));
        }
        return Flow::kNormal;
      }
      case Node::Kind::kMacro:
        scope_->names[node.text] = make_macro(node, node.text);
        return Flow::kNormal;
      case Node::Kind::kCallBlock: {
        Arguments arguments = evaluate_arguments(*node.a);
        arguments.named.emplace_back("caller", make_macro(node, "caller"));
        emit(to_string(call(evaluate(*node.a->a), arguments)));
        return Flow::kNormal;
      }
      case Node::Kind::kBreak: return Flow::kBreak;
      case Node::Kind::kContinue: return Flow::kContinue;
      default: fail("not a statement");
    }
  } catch (TemplateError& error) {
    if (error.line == 0) error.line = node.line;
    throw;
  }
}

Evaluator::Flow Evaluator::run_for(const Node& node) {
  List items = iterate(evaluate(*node.a));
  const ScopePtr outer = scope_;
  const auto enter = [&](const Value& item) {
    scope_ = std::make_shared<Scope>();
    scope_->parent = outer;
    assign(*node.target, item);
  };
  if (node.d != nullptr) {
    List kept;
    for (const Value& item : items) {
      enter(item);
      const bool keep = evaluate(*node.d).truthy();
      scope_ = outer;
      if (keep) kept.push_back(item);
    }
    items = std::move(kept);
  }
  Flow flow = Flow::kNormal;
  for (size_t i = 0; i < items.size() && flow != Flow::kBreak; ++i) {
    enter(items[i]);
    scope_->names["loop"] = loop_object(items, i);
    flow = run(*node.b);
    scope_ = outer;
  }
  if (items.empty() && node.c != nullptr) return run(*node.c);
  return Flow::kNormal;
}

Value Evaluator::make_macro(const Node& node, const std::string& name) {
  // The tree outlives every render; the scope is shared, so later assignments are seen.
  const std::weak_ptr<Scope> defined_in = scope_;
  return Value::function(
      name, [&node, name, defined_in](Evaluator& self, const Arguments& arguments) -> Value {
        const DepthGuard guard(self);
        auto scope = std::make_shared<Scope>();
        scope->parent = defined_in.lock();
        const size_t num_parameters = node.named.size();
        if (arguments.positional.size() > num_parameters)
          fail(format("macro '{}' takes not more than {} argument(s)", name, num_parameters));
        for (const auto& argument : arguments.named) {
          const std::string& key = argument.first;
          const bool known =
              std::ranges::any_of(node.named, [&](const auto& p) { return p.first == key; });
          if (!known && key != "caller")
            fail(format("macro '{}' takes no keyword argument '{}'", name, key));
          if (!known) scope->names[key] = argument.second;
        }
        for (size_t i = 0; i < num_parameters; ++i) {
          const std::string& parameter = node.named[i].first;
          const NodePtr& fallback = node.named[i].second;
          Value value = Undefined{parameter};
          const auto named = std::ranges::find_if(
              arguments.named, [&](const auto& p) { return p.first == parameter; });
          if (i < arguments.positional.size()) {
            if (named != arguments.named.end())
              fail(format("macro '{}' got multiple values for argument '{}'", name, parameter));
            value = arguments.positional[i];
          } else if (named != arguments.named.end()) {
            value = named->second;
          } else if (fallback != nullptr) {
            const ScopePtr outer = std::exchange(self.scope_, scope);
            value = self.evaluate(*fallback);
            self.scope_ = outer;
          }
          scope->names[parameter] = std::move(value);
        }
        return self.capture(*node.b, scope);
      });
}

Value Evaluator::call(const Value& callee, const Arguments& arguments) {
  if (callee.is<Undefined>()) fail(format("'{}' is undefined", callee.as<Undefined>().name));
  if (!callee.is<Callable>()) fail(format("'{}' object is not callable", callee.type_name()));
  return (*callee.as<Callable>().call)(*this, arguments);
}

Value Evaluator::attribute(const Value& object, const Value& key) {
  if (object.is<Undefined>()) fail(format("'{}' is undefined", object.as<Undefined>().name));
  const std::string name = to_string(key);
  if (object.is<Mapping>()) {
    if (const Value* item = object.as<Mapping>().items->find(key)) return *item;
  } else if (object.is<Namespace>()) {
    const auto& members = *object.as<Namespace>().members;
    if (const auto it = members.find(name); it != members.end()) return it->second;
  } else if (key.is_integer()) {
    const auto at = [&](int64_t size) {
      const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
      return index >= 0 && index < size ? index : -1;
    };
    if (object.is<Sequence>()) {
      const List& items = *object.as<Sequence>().items;
      const int64_t index = at(static_cast<int64_t>(items.size()));
      if (index >= 0) return items[static_cast<size_t>(index)];
    } else if (object.is<std::string>()) {
      const std::vector<std::string_view> all = characters(object.as<std::string>());
      const int64_t index = at(static_cast<int64_t>(all.size()));
      if (index >= 0) return all[static_cast<size_t>(index)];
    }
  }
  return Undefined{format("{} object has no attribute {}", object.type_name(), name)};
}

Arguments Evaluator::evaluate_arguments(const Node& node) {
  Arguments arguments;
  for (const NodePtr& child : node.children) arguments.positional.push_back(evaluate(*child));
  for (const auto& [name, value] : node.named) arguments.named.emplace_back(name, evaluate(*value));
  return arguments;
}

bool Evaluator::compare_with(const std::string& op, const Value& left, const Value& right) const {
  if (op == "==") return equal(left, right);
  if (op == "!=") return !equal(left, right);
  if (op == "in") return contains(right, left);
  if (op == "not in") return !contains(right, left);
  const int order = compare(left, right);
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

Value Evaluator::evaluate_binary(const Node& node) {
  if (node.text == "and") {
    Value left = evaluate(*node.a);
    return left.truthy() ? evaluate(*node.b) : left;
  }
  if (node.text == "or") {
    Value left = evaluate(*node.a);
    return left.truthy() ? left : evaluate(*node.b);
  }
  const Value left = evaluate(*node.a);
  const Value right = evaluate(*node.b);
  if (node.text != "~") {
    Value result = arithmetic(node.text, left, right);
    if (result.is<std::string>()) count_steps(result.as<std::string>().size() / 64);
    return result;
  }
  std::string text = to_string(left) + to_string(right);
  count_steps(text.size() / 64);
  if (text.size() > limits_.max_output_bytes)
    fail(format("output is longer than {} bytes", limits_.max_output_bytes));
  return text;
}

// Python's slice over code points or items.
Value Evaluator::evaluate_slice(const Node& node) {
  const Value object = evaluate(*node.a);
  const auto bound = [&](const NodePtr& part) -> std::pair<bool, int64_t> {
    if (part == nullptr) return {false, 0};
    const Value value = evaluate(*part);
    if (value.is<None>()) return {false, 0};
    if (!value.is_integer()) fail("slice indices must be integers or None");
    return {true, value.integer()};
  };
  const auto [has_begin, begin_value] = bound(node.b);
  const auto [has_end, end_value] = bound(node.c);
  const auto [has_step, step_value] = bound(node.d);
  const int64_t step = has_step ? step_value : 1;
  if (step == 0) fail("slice step cannot be zero");
  std::vector<std::string_view> text;
  if (object.is<std::string>()) {
    text = characters(object.as<std::string>());
  } else if (object.is<Undefined>()) {
    fail(format("'{}' is undefined", object.as<Undefined>().name));
  } else if (!object.is<Sequence>()) {
    return Undefined{format("{} object cannot be sliced", object.type_name())};
  }
  const auto n = static_cast<int64_t>(
      object.is<std::string>() ? text.size() : object.as<Sequence>().items->size());
  const auto clamp = [&](int64_t value) {
    if (value < 0) value += n;
    return step > 0 ? std::clamp<int64_t>(value, 0, n) : std::clamp<int64_t>(value, -1, n - 1);
  };
  const int64_t begin = has_begin ? clamp(begin_value) : (step > 0 ? 0 : n - 1);
  const int64_t end = has_end ? clamp(end_value) : (step > 0 ? n : -1);
  std::string out;
  List items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    count_steps(1);
    if (object.is<std::string>()) {
      out += text[static_cast<size_t>(i)];
    } else {
      items.push_back((*object.as<Sequence>().items)[static_cast<size_t>(i)]);
    }
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (object.is<std::string>()) return out;
  return object.as<Sequence>().tuple ? Value::tuple(std::move(items))
                                     : Value::list(std::move(items));
}

Value Evaluator::evaluate(const Node& node) {
  const DepthGuard guard(*this);
  count_steps(1);
  switch (node.kind) {
    case Node::Kind::kLiteral: return node.literal;
    case Node::Kind::kName:
      if (const Value* found = look_up(node.text)) return *found;
      return Undefined{node.text};
    case Node::Kind::kCaptured: return captured_ == nullptr ? Value("") : Value(*captured_);
    case Node::Kind::kList:
    case Node::Kind::kTuple: {
      List items;
      for (const NodePtr& child : node.children) items.push_back(evaluate(*child));
      return node.kind == Node::Kind::kTuple ? Value::tuple(std::move(items))
                                             : Value::list(std::move(items));
    }
    case Node::Kind::kDict: {
      Dict items;
      for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
        const Value key = evaluate(*node.children[i]);
        if ((key.is<Sequence>() && !key.as<Sequence>().tuple) || key.is<Mapping>())
          fail(format("unhashable type: '{}'", key.type_name()));
        items.set(key, evaluate(*node.children[i + 1]));
      }
      return Value::dict(std::move(items));
    }
    case Node::Kind::kAttribute: {
      // Methods come before items for a.b, items before methods for a["b"].
      const Value object = evaluate(*node.a);
      Value method = bound_method(object, node.text);
      return method.is<Callable>() ? method : attribute(object, Value(node.text));
    }
    case Node::Kind::kItem: {
      const Value object = evaluate(*node.a);
      const Value key = evaluate(*node.b);
      Value found = attribute(object, key);
      if (!found.is<Undefined>() || !key.is<std::string>()) return found;
      Value method = bound_method(object, key.as<std::string>());
      return method.is<Callable>() ? method : found;
    }
    case Node::Kind::kSlice: return evaluate_slice(node);
    case Node::Kind::kCall: {
      const Value callee = evaluate(*node.a);
      return call(callee, evaluate_arguments(node));
    }
    case Node::Kind::kFilter: {
      const Value subject = evaluate(*node.a);
      return apply_filter(node.text, subject, evaluate_arguments(node));
    }
    case Node::Kind::kTest: {
      const Value subject = evaluate(*node.a);
      return apply_test(node.text, subject, evaluate_arguments(node));
    }
    case Node::Kind::kUnary: {
      const Value operand = evaluate(*node.a);
      if (node.text == "not") return !operand.truthy();
      if (!operand.is_number())
        fail(format("bad operand type for unary {}: '{}'", node.text, operand.type_name()));
      if (operand.is<double>()) return node.text == "-" ? -operand.number() : operand.number();
      return node.text == "-" ? arithmetic("-", Value(0), operand) : Value(operand.integer());
    }
    case Node::Kind::kBinary: return evaluate_binary(node);
    case Node::Kind::kCompare: {
      Value left = evaluate(*node.a);
      for (size_t i = 0; i < node.operators.size(); ++i) {
        Value right = evaluate(*node.children[i]);
        if (!compare_with(node.operators[i], left, right)) return false;
        left = std::move(right);
      }
      return true;
    }
    case Node::Kind::kConditional:
      if (evaluate(*node.b).truthy()) return evaluate(*node.a);
      if (node.c != nullptr) return evaluate(*node.c);
      return Undefined{"the inline if-expression evaluated to false and has no else"};
    default: fail("not an expression");
  }
}

}  // namespace nibble::jinja
