// From what a request asks for (response_format, structured_outputs, tool_choice) to the token
// constraint the engine applies. The bindings, one call each:
//
//   NB_TRY(StructuredOutput output, parse_structured_output(body));      // of the JSON body
//   NB_TRY(StructuredOutput output, require_tools(tools, name, parser)); // required / named
//   NB_TRY(request.constraint, make_constraint(output, model, {.prompt = prompt_ids, ...}));
//
// All three run on the HTTP worker; errors are the client's (400) and name the field.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/request.h"
#include "server/served_model.h"
#include "text/grammar.h"

namespace nibble {

struct StructuredOutput {
  enum class Kind {
    kNone,
    kJsonSchema,     // json: the schema
    kJsonObject,     // any JSON object
    kRegex,          // text
    kChoice,         // choices
    kGrammar,        // text: EBNF
    kStructuralTag,  // json: {"structures": [...], "triggers": [...]}
    kToolCalls,      // json: the tools that may be called, in the model's own format
  };
  Kind kind = Kind::kNone;
  Json json;
  std::string text;
  std::vector<std::string> choices;
  ToolCallStyle tool_style = ToolCallStyle::kQwenXml;
  bool parallel_tool_calls = true;
  bool any_whitespace = false;  // structured_outputs.disable_any_whitespace: false
  bool open_objects = false;    // structured_outputs.disable_additional_properties: false
};

// Reads `response_format` and `structured_outputs` of a request body, checks their shape only (the
// grammar itself is checked by make_constraint). kNone when the body has neither, or
// {"type": "text"}.
Result<StructuredOutput> parse_structured_output(const Json& body);

// tool_choice "required" (`name` empty: any of `tools`) or a named function. `tool_parser` is the
// one that will read the reply: the model writes calls in its own format, and ReplyParser turns
// them into the same tool_calls as with "auto". A named function is called exactly once;
// "required" one or more times (once when `parallel` is false).
Result<StructuredOutput> require_tools(const Json& tools, const std::string& name,
                                       const std::string& tool_parser, bool parallel = true);

struct ConstraintOptions {
  std::string reasoning_parser = {};     // in effect for this request; "" for none
  std::span<const int32_t> prompt = {};  // its last think tag decides whether the reply starts in
                                         // reasoning, where the constraint does not apply yet
  std::vector<int32_t> extra_stop_tokens =
      {};  // the request's stop_token_ids: allowed where eos is
};

// Null for kNone. Compiled grammars are kept per model, so a schema used again costs nothing.
Result<std::shared_ptr<TokenConstraint>> make_constraint(const StructuredOutput& output,
                                                         const ServedModel& model,
                                                         const ConstraintOptions& options);

// The compiled grammars of one model, least recently used dropped first. Thread-safe.
std::shared_ptr<GrammarCache> make_grammar_cache(const Tokenizer& tokenizer,
                                                 const std::vector<int32_t>& stop_token_ids);

}  // namespace nibble
