// Tokens to a syntax tree, by recursive descent with Jinja's precedences:
// if-else < or < and < not < comparison < + - < ~ < * / // % < ** < unary < postfix < filter, test.
#include <charconv>

#include "base/format.h"
#include "text/jinja/syntax.h"

namespace nibble::jinja {
namespace {

using Kind = Node::Kind;

class Parser {
 public:
  Parser(std::vector<Token> tokens, int max_depth)
      : tokens_(std::move(tokens)), max_depth_(max_depth) {}

  NodePtr run() {
    NodePtr root = block({});
    if (!at_end()) unexpected();
    return root;
  }

 private:
  // Counts nesting; every recursive rule holds one.
  struct Depth {
    explicit Depth(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > parser_.max_depth_)
        parser_.error(format("nested deeper than {} levels", parser_.max_depth_));
    }
    ~Depth() { --parser_.depth_; }
    Parser& parser_;
  };

  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  bool at_end() const { return peek().kind == Token::Kind::kEnd; }
  [[noreturn]] void error(const std::string& message) const {
    throw TemplateError(peek().line, message);
  }
  [[noreturn]] void unexpected() const {
    const Token& token = peek();
    switch (token.kind) {
      case Token::Kind::kEnd: error("unexpected end of template");
      case Token::Kind::kBlockEnd: error("unexpected end of statement");
      case Token::Kind::kOutputEnd: error("unexpected end of print statement");
      case Token::Kind::kBlockBegin: error(format("unexpected tag '{}'", peek(1).text));
      default: error(format("unexpected '{}'", token.text));
    }
  }
  bool is_name(std::string_view name, size_t ahead = 0) const {
    return peek(ahead).kind == Token::Kind::kName && peek(ahead).text == name;
  }
  bool is_op(std::string_view op) const {
    return peek().kind == Token::Kind::kOperator && peek().text == op;
  }
  bool take_name(std::string_view name) {
    if (!is_name(name)) return false;
    ++at_;
    return true;
  }
  bool take_op(std::string_view op) {
    if (!is_op(op)) return false;
    ++at_;
    return true;
  }
  void expect_op(std::string_view op) {
    if (!take_op(op)) error(format("expected token '{}', got '{}'", op, peek().text));
  }
  void expect(Token::Kind kind) {
    if (peek().kind != kind) unexpected();
    ++at_;
  }
  std::string expect_identifier() {
    if (peek().kind != Token::Kind::kName) unexpected();
    return tokens_[at_++].text;
  }
  NodePtr make(Kind kind) const {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = peek().line;
    return node;
  }

  // Statements until a block tag whose name is in `ends` (left unread), or the end of the template.
  NodePtr block(const std::vector<std::string_view>& ends) {
    const Depth depth(*this);
    NodePtr node = make(Kind::kBlock);
    while (!at_end()) {
      const Token& token = peek();
      if (token.kind == Token::Kind::kData) {
        NodePtr data = make(Kind::kData);
        data->text = token.text;
        ++at_;
        node->children.push_back(std::move(data));
      } else if (token.kind == Token::Kind::kOutputBegin) {
        NodePtr output = make(Kind::kOutput);
        ++at_;
        output->a = tuple_or_expression();
        expect(Token::Kind::kOutputEnd);
        node->children.push_back(std::move(output));
      } else if (token.kind == Token::Kind::kBlockBegin) {
        for (const std::string_view end : ends)
          if (is_name(end, 1)) return node;
        ++at_;
        node->children.push_back(statement());
      } else {
        unexpected();
      }
    }
    return node;
  }

  // Ends with the named tag: {% NAME %}.
  void close(std::string_view name) {
    if (at_end()) error(format("unexpected end of template, expected '{}'", name));
    expect(Token::Kind::kBlockBegin);
    if (!take_name(name)) unexpected();
    expect(Token::Kind::kBlockEnd);
  }

  NodePtr statement() {
    const Depth depth(*this);
    const std::string name = peek().text;
    if (peek().kind != Token::Kind::kName) unexpected();
    if (name == "if") return if_statement();
    if (name == "for") return for_statement();
    if (name == "set") return set_statement();
    if (name == "macro") return macro_statement();
    if (name == "call") return call_statement();
    if (name == "filter") return filter_statement();
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) error(format("'{}' outside of a loop", name));
      NodePtr node = make(name == "break" ? Kind::kBreak : Kind::kContinue);
      ++at_;
      expect(Token::Kind::kBlockEnd);
      return node;
    }
    if (name == "generation") {  // marks what an assistant wrote, for training; renders as its body
      ++at_;
      expect(Token::Kind::kBlockEnd);
      NodePtr node = block({"endgeneration"});
      close("endgeneration");
      return node;
    }
    for (const std::string_view refused : {"include", "import", "from", "extends", "block"})
      if (name == refused) error(format("tag '{}' is not available in chat templates", name));
    error(format("Encountered unknown tag '{}'", name));
  }

  NodePtr if_statement() {
    NodePtr node = make(Kind::kIf);
    ++at_;  // if, or elif
    node->a = tuple_or_expression();
    expect(Token::Kind::kBlockEnd);
    node->b = block({"elif", "else", "endif"});
    if (at_end()) error("unexpected end of template, expected 'endif'");
    ++at_;  // {%
    if (is_name("elif")) {
      const Depth depth(*this);
      node->c = if_statement();
      return node;
    }
    if (take_name("else")) {
      expect(Token::Kind::kBlockEnd);
      node->c = block({"endif"});
      close("endif");
      return node;
    }
    ++at_;  // endif
    expect(Token::Kind::kBlockEnd);
    return node;
  }

  NodePtr for_statement() {
    NodePtr node = make(Kind::kFor);
    ++at_;
    node->target = assignment_target();
    if (!take_name("in")) unexpected();
    node->a = tuple_or_expression(/*with_condition=*/false);
    if (take_name("if")) node->d = expression();
    if (is_name("recursive")) error("recursive loops are not available in chat templates");
    expect(Token::Kind::kBlockEnd);
    ++loop_depth_;
    node->b = block({"else", "endfor"});
    --loop_depth_;
    if (at_end()) error("unexpected end of template, expected 'endfor'");
    if (is_name("else", 1)) {
      at_ += 2;
      expect(Token::Kind::kBlockEnd);
      node->c = block({"endfor"});
    }
    close("endfor");
    return node;
  }

  NodePtr name_node() {
    NodePtr node = make(Kind::kName);
    node->text = expect_identifier();
    for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None"})
      if (node->text == reserved) error(format("cannot assign to '{}'", reserved));
    return node;
  }

  // a, or a.b (namespaces), or a, b, or (a, b).
  NodePtr assignment_target() {
    const Depth depth(*this);
    const bool parenthesised = take_op("(");
    NodePtr first = name_node();
    if (!parenthesised && take_op(".")) {
      NodePtr attribute = make(Kind::kAttribute);
      attribute->a = std::move(first);
      attribute->text = expect_identifier();
      return attribute;
    }
    if (!is_op(",")) {
      if (parenthesised) expect_op(")");
      return first;
    }
    NodePtr tuple = make(Kind::kTuple);
    tuple->children.push_back(std::move(first));
    while (take_op(",")) {
      if (peek().kind != Token::Kind::kName || is_name("in")) break;
      tuple->children.push_back(name_node());
    }
    if (parenthesised) expect_op(")");
    return tuple;
  }

  NodePtr set_statement() {
    NodePtr node = make(Kind::kSet);
    ++at_;
    node->target = assignment_target();
    if (take_op("=")) {
      node->a = tuple_or_expression();
      expect(Token::Kind::kBlockEnd);
      return node;
    }
    node->kind = Kind::kSetBlock;
    node->a = filter_chain(make(Kind::kCaptured));
    expect(Token::Kind::kBlockEnd);
    node->b = block({"endset"});
    close("endset");
    return node;
  }

  // (a, b=1): names in order, each with its default or null.
  void parameters(Node* node) {
    expect_op("(");
    while (!take_op(")")) {
      if (!node->named.empty()) {
        expect_op(",");
        if (take_op(")")) break;
      }
      std::string name = expect_identifier();
      NodePtr fallback = take_op("=") ? expression() : nullptr;
      node->named.emplace_back(std::move(name), std::move(fallback));
    }
  }

  // Loops around a macro do not lend it their break.
  NodePtr isolated_body(std::string_view end) {
    const int loops = std::exchange(loop_depth_, 0);
    NodePtr body = block({end});
    loop_depth_ = loops;
    close(end);
    return body;
  }

  NodePtr macro_statement() {
    NodePtr node = make(Kind::kMacro);
    ++at_;
    node->text = expect_identifier();
    parameters(node.get());
    expect(Token::Kind::kBlockEnd);
    node->b = isolated_body("endmacro");
    return node;
  }

  NodePtr call_statement() {
    NodePtr node = make(Kind::kCallBlock);
    ++at_;
    if (is_op("(")) parameters(node.get());
    node->a = expression();
    if (node->a->kind != Kind::kCall) error("expected call");
    expect(Token::Kind::kBlockEnd);
    node->b = isolated_body("endcall");
    return node;
  }

  NodePtr filter_statement() {
    NodePtr node = make(Kind::kFilterBlock);
    ++at_;
    NodePtr chain = make(Kind::kFilter);
    chain->text = dotted_name();
    chain->a = make(Kind::kCaptured);
    if (is_op("(")) arguments(chain.get());
    node->a = filter_chain(std::move(chain));
    expect(Token::Kind::kBlockEnd);
    node->b = block({"endfilter"});
    close("endfilter");
    return node;
  }

  std::string dotted_name() {
    std::string name = expect_identifier();
    while (take_op(".")) name += "." + expect_identifier();
    return name;
  }

  NodePtr tuple_or_expression(bool with_condition = true) {
    NodePtr first = with_condition ? expression() : or_expression();
    if (!is_op(",")) return first;
    NodePtr tuple = make(Kind::kTuple);
    tuple->children.push_back(std::move(first));
    while (take_op(",")) {
      if (peek().kind == Token::Kind::kBlockEnd || peek().kind == Token::Kind::kOutputEnd) break;
      tuple->children.push_back(with_condition ? expression() : or_expression());
    }
    return tuple;
  }

  NodePtr expression() {
    const Depth depth(*this);
    NodePtr node = or_expression();
    while (is_name("if")) {
      NodePtr conditional = make(Kind::kConditional);
      ++at_;
      conditional->a = std::move(node);
      conditional->b = or_expression();
      if (take_name("else")) conditional->c = expression();
      node = std::move(conditional);
    }
    return node;
  }

  NodePtr binary(const std::string& op, NodePtr left, NodePtr right) const {
    NodePtr node = make(Kind::kBinary);
    node->text = op;
    node->a = std::move(left);
    node->b = std::move(right);
    return node;
  }

  NodePtr or_expression() {
    NodePtr left = and_expression();
    while (take_name("or")) left = binary("or", std::move(left), and_expression());
    return left;
  }
  NodePtr and_expression() {
    NodePtr left = not_expression();
    while (take_name("and")) left = binary("and", std::move(left), not_expression());
    return left;
  }
  NodePtr not_expression() {
    if (!is_name("not")) return comparison();
    const Depth depth(*this);
    NodePtr node = make(Kind::kUnary);
    ++at_;
    node->text = "not";
    node->a = not_expression();
    return node;
  }

  NodePtr comparison() {
    NodePtr left = additive();
    NodePtr node;
    while (true) {
      std::string op;
      for (const std::string_view candidate : {"==", "!=", "<=", ">=", "<", ">"})
        if (op.empty() && is_op(candidate)) op = candidate;
      if (!op.empty()) {
        ++at_;
      } else if (take_name("in")) {
        op = "in";
      } else if (is_name("not") && is_name("in", 1)) {
        at_ += 2;
        op = "not in";
      } else {
        break;
      }
      if (node == nullptr) {
        node = make(Kind::kCompare);
        node->a = std::move(left);
      }
      node->operators.push_back(std::move(op));
      node->children.push_back(additive());
    }
    return node != nullptr ? std::move(node) : std::move(left);
  }

  NodePtr additive() {
    NodePtr left = concatenation();
    while (is_op("+") || is_op("-")) {
      const std::string op = tokens_[at_++].text;
      left = binary(op, std::move(left), concatenation());
    }
    return left;
  }
  NodePtr concatenation() {
    NodePtr left = multiplicative();
    while (take_op("~")) left = binary("~", std::move(left), multiplicative());
    return left;
  }
  NodePtr multiplicative() {
    NodePtr left = power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      const std::string op = tokens_[at_++].text;
      left = binary(op, std::move(left), power());
    }
    return left;
  }
  NodePtr power() {
    NodePtr left = unary(true);
    while (take_op("**")) left = binary("**", std::move(left), unary(true));
    return left;
  }

  NodePtr unary(bool with_filters) {
    const Depth depth(*this);
    NodePtr node;
    if (is_op("-") || is_op("+")) {
      node = make(Kind::kUnary);
      node->text = tokens_[at_++].text;
      node->a = unary(false);
    } else {
      node = primary();
    }
    node = postfix(std::move(node));
    return with_filters ? filters_and_tests(std::move(node)) : std::move(node);
  }

  NodePtr primary() {
    const Depth depth(*this);
    NodePtr node = make(Kind::kLiteral);
    const Token& token = peek();
    switch (token.kind) {
      case Token::Kind::kName:
        ++at_;
        if (token.text == "true" || token.text == "True") {
          node->literal = true;
        } else if (token.text == "false" || token.text == "False") {
          node->literal = false;
        } else if (token.text == "none" || token.text == "None") {
          node->literal = None{};
        } else {
          node->kind = Kind::kName;
          node->text = token.text;
        }
        return node;
      case Token::Kind::kString: {
        std::string text;
        while (peek().kind == Token::Kind::kString) text += tokens_[at_++].text;
        node->literal = std::move(text);
        return node;
      }
      case Token::Kind::kInteger: {
        int64_t value = 0;
        const std::errc failure =
            std::from_chars(token.text.data(), token.text.data() + token.text.size(), value).ec;
        if (failure != std::errc()) error(format("integer {} is too large", token.text));
        ++at_;
        node->literal = value;
        return node;
      }
      case Token::Kind::kFloat: {
        double value = 0;
        std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        ++at_;
        node->literal = value;
        return node;
      }
      case Token::Kind::kOperator:
        if (take_op("(")) return parenthesised();
        if (take_op("[")) return items(Kind::kList, "]");
        if (take_op("{")) return dictionary();
        [[fallthrough]];
      default: unexpected();
    }
  }

  NodePtr parenthesised() {
    NodePtr node = make(Kind::kTuple);
    if (take_op(")")) return node;
    NodePtr first = expression();
    if (take_op(")")) return first;
    node->children.push_back(std::move(first));
    while (take_op(",")) {
      if (is_op(")")) break;
      node->children.push_back(expression());
    }
    expect_op(")");
    return node;
  }

  NodePtr items(Kind kind, std::string_view end) {
    NodePtr node = make(kind);
    while (!take_op(end)) {
      if (!node->children.empty()) {
        expect_op(",");
        if (take_op(end)) break;
      }
      node->children.push_back(expression());
    }
    return node;
  }

  NodePtr dictionary() {
    NodePtr node = make(Kind::kDict);
    while (!take_op("}")) {
      if (!node->children.empty()) {
        expect_op(",");
        if (take_op("}")) break;
      }
      node->children.push_back(expression());
      expect_op(":");
      node->children.push_back(expression());
    }
    return node;
  }

  NodePtr postfix(NodePtr node) {
    while (true) {
      if (take_op(".")) {
        NodePtr attribute = make(Kind::kAttribute);
        attribute->a = std::move(node);
        if (peek().kind == Token::Kind::kInteger) {
          attribute->kind = Kind::kItem;
          attribute->b = primary();
        } else {
          attribute->text = expect_identifier();
        }
        node = std::move(attribute);
      } else if (take_op("[")) {
        node = subscript(std::move(node));
      } else if (is_op("(")) {
        NodePtr call = make(Kind::kCall);
        arguments(call.get());
        call->a = std::move(node);
        node = std::move(call);
      } else {
        return node;
      }
    }
  }

  NodePtr subscript(NodePtr object) {
    NodePtr node = make(Kind::kItem);
    node->a = std::move(object);
    const auto bound = [&]() -> NodePtr {
      return is_op(":") || is_op("]") ? nullptr : expression();
    };
    node->b = bound();
    if (take_op(":")) {
      node->kind = Kind::kSlice;
      node->c = bound();
      if (take_op(":")) node->d = bound();
    } else if (node->b == nullptr) {
      unexpected();
    } else if (is_op(",")) {
      NodePtr key = make(Kind::kTuple);
      key->children.push_back(std::move(node->b));
      while (take_op(",")) key->children.push_back(expression());
      node->b = std::move(key);
    }
    expect_op("]");
    return node;
  }

  void arguments(Node* node) {
    const Depth depth(*this);
    expect_op("(");
    bool first = true;
    while (!take_op(")")) {
      if (!first) {
        expect_op(",");
        if (take_op(")")) break;
      }
      first = false;
      if (is_op("*") || is_op("**"))
        error("* and ** arguments are not available in chat templates");
      const bool named = peek().kind == Token::Kind::kName &&
                         peek(1).kind == Token::Kind::kOperator && peek(1).text == "=";
      if (named) {
        std::string name = expect_identifier();
        ++at_;
        node->named.emplace_back(std::move(name), expression());
      } else {
        if (!node->named.empty()) error("positional argument follows keyword argument");
        node->children.push_back(expression());
      }
    }
  }

  NodePtr filter_chain(NodePtr node) {
    while (take_op("|")) {
      NodePtr filter = make(Kind::kFilter);
      filter->text = dotted_name();
      filter->a = std::move(node);
      if (is_op("(")) arguments(filter.get());
      node = std::move(filter);
    }
    return node;
  }

  NodePtr filters_and_tests(NodePtr node) {
    while (true) {
      if (is_op("|")) {
        node = filter_chain(std::move(node));
      } else if (is_name("is")) {
        node = test(std::move(node));
      } else if (is_op("(")) {
        NodePtr call = make(Kind::kCall);
        arguments(call.get());
        call->a = std::move(node);
        node = std::move(call);
      } else {
        return node;
      }
    }
  }

  NodePtr test(NodePtr subject) {
    NodePtr node = make(Kind::kTest);
    ++at_;
    const bool negated = take_name("not");
    node->text = dotted_name();
    node->a = std::move(subject);
    const Token& next = peek();
    if (is_op("(")) {
      arguments(node.get());
    } else if (next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
               next.kind == Token::Kind::kFloat || is_op("[") || is_op("{") ||
               (next.kind == Token::Kind::kName && next.text != "else" && next.text != "or" &&
                next.text != "and" && next.text != "is" && next.text != "if" && next.text != "in" &&
                next.text != "not")) {
      node->children.push_back(postfix(primary()));
    }
    if (!negated) return node;
    NodePtr inverse = make(Kind::kUnary);
    inverse->text = "not";
    inverse->a = std::move(node);
    return inverse;
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int max_depth_;
  int loop_depth_ = 0;
};

}  // namespace

NodePtr parse(std::string_view source, int max_depth) {
  return Parser(tokenize(source), max_depth).run();
}

}  // namespace nibble::jinja
