// Tokens and the syntax tree of a template, and the functions that make them from text.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::jinja {

struct Token {
  enum class Kind {
    kData,  // text outside of tags
    kBlockBegin,
    kBlockEnd,  // {% %}
    kOutputBegin,
    kOutputEnd,  // {{ }}
    kName,
    kString,
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;  // name, operator, decoded string, digits, data
  int line = 1;
};

// Splits a template; whitespace control, trim_blocks and lstrip_blocks are applied here.
std::vector<Token> tokenize(std::string_view source);

struct Node;
using NodePtr = std::unique_ptr<Node>;

struct Node {
  enum class Kind {
    // statements
    kBlock,        // children in order
    kData,         // text
    kOutput,       // {{ a }}
    kIf,           // a: condition, b: then, c: else
    kFor,          // target, a: iterable, b: body, c: else, d: filter; flag: recursive
    kSet,          // target, a: value
    kSetBlock,     // target, b: body, filters in a (over the name "")
    kMacro,        // text: name, parameters, b: body
    kCallBlock,    // a: call, parameters, b: body
    kFilterBlock,  // a: filter chain over a kCaptured, b: body
    kBreak,
    kContinue,
    // expressions
    kLiteral,   // literal
    kName,      // text
    kCaptured,  // the text of the enclosing filter or set block
    kList,
    kTuple,        // children
    kDict,         // children: key, value, key, value...
    kAttribute,    // a.text
    kItem,         // a[b]
    kSlice,        // a[b:c:d], any of b, c, d may be null
    kCall,         // a(arguments)
    kFilter,       // a | text(arguments)
    kTest,         // a is text(arguments)
    kUnary,        // text a: "-", "+", "not"
    kBinary,       // a text b
    kCompare,      // a, then operators and children
    kConditional,  // a if b else c
  };
  Kind kind = Kind::kBlock;
  int line = 1;
  std::string text;
  Value literal;
  NodePtr a, b, c, d;
  NodePtr target;  // of kFor, kSet, kSetBlock
  std::vector<NodePtr> children;
  std::vector<std::string> operators;                  // of kCompare
  std::vector<std::pair<std::string, NodePtr>> named;  // keyword arguments, parameters with default
};

// The whole template as one kBlock. `max_depth` bounds nesting.
NodePtr parse(std::string_view source, int max_depth);

}  // namespace nibble::jinja
