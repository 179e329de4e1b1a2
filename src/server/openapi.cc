// Paths come from ApiServer::routes(); bodies from the tables here, one row per field.
#include "server/openapi.h"

#include <span>

#include "base/text.h"
#include "base/version.h"
#include "server/api_server.h"

namespace nibble {
namespace {

struct Field {
  const char* name;
  const char* schema;  // JSON
  const char* about;
};

// What every generating OpenAI dialect takes; generation_request.cc reads them.
constexpr Field kGeneration[] = {
    {"model", R"({"type": ["string", "null"]})", "A served name; may be left out"},
    {"temperature", R"({"type": ["number", "null"], "minimum": 0})", "0 is greedy"},
    {"top_p", R"({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1})", ""},
    {"top_k", R"({"type": ["integer", "null"], "minimum": -1})", "0 and -1: off"},
    {"min_p", R"({"type": ["number", "null"], "minimum": 0, "maximum": 1})", ""},
    {"repetition_penalty", R"({"type": ["number", "null"], "exclusiveMinimum": 0})", ""},
    {"presence_penalty", R"({"type": ["number", "null"], "minimum": -2, "maximum": 2})", ""},
    {"frequency_penalty", R"({"type": ["number", "null"], "minimum": -2, "maximum": 2})", ""},
    {"max_tokens", R"({"type": ["integer", "null"]})", "At most the context; never clamped"},
    {"min_tokens", R"({"type": ["integer", "null"], "minimum": 0})", ""},
    {"n", R"({"type": ["integer", "null"], "minimum": 1, "maximum": 16384})", "Choices"},
    {"seed", R"({"type": ["integer", "null"]})", "-1: none"},
    {"stop", R"({"type": ["string", "array", "null"], "items": {"type": "string"}})", ""},
    {"stop_token_ids", R"({"type": ["array", "null"], "items": {"type": "integer"}})", ""},
    {"include_stop_str_in_output", R"({"type": "boolean"})", ""},
    {"ignore_eos", R"({"type": "boolean"})", ""},
    {"skip_special_tokens", R"({"type": "boolean"})", ""},
    {"logit_bias", R"({"type": ["object", "null"], "additionalProperties": {"type": "number"}})",
     "Token id to bias, clamped to 100"},
    {"bad_words", R"({"type": ["array", "null"], "items": {"type": "string"}})", ""},
    {"allowed_token_ids", R"({"type": ["array", "null"], "items": {"type": "integer"}})", ""},
    {"stream", R"({"type": ["boolean", "null"]})", "Server-sent events"},
    {"stream_options",
     R"({"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"},
         "continuous_usage_stats": {"type": "boolean"}}})",
     ""},
    {"prompt_logprobs", R"({"type": ["integer", "null"], "minimum": -1})", "Not with stream"},
    {"response_format", R"({"type": ["object", "null"], "properties": {"type": {"enum":
         ["text", "json_object", "json_schema", "structural_tag"]}}})",
     "What the text must be"},
    {"structured_outputs", R"({"type": ["object", "null"]})",
     "One of json, regex, choice, grammar, json_object, structural_tag"},
    {"truncate_prompt_tokens", R"({"type": ["integer", "null"], "minimum": -1})", ""},
    {"truncation_side", R"({"enum": ["left", "right", null]})", ""},
    {"echo", R"({"type": "boolean"})", ""},
    {"priority", R"({"type": "integer"})", "Lower runs first, with the priority policy"},
    {"cache_salt", R"({"type": ["string", "null"], "minLength": 1})",
     "Prefixes are shared only under equal salts"},
    {"repetition_detection", R"({"type": ["object", "null"]})", ""},
    {"return_token_ids", R"({"type": ["boolean", "null"]})", ""},
    {"return_tokens_as_token_ids", R"({"type": ["boolean", "null"]})", ""},
    {"sampling_preset", R"({"type": ["string", "null"]})", "general, creative or tools"},
    {"request_id", R"({"type": "string"})", ""},
    {"user", R"({"type": ["string", "null"]})", "Ignored"},
};

constexpr Field kMessages[] = {
    {"messages",
     R"({"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"],
         "properties": {"role": {"type": "string"},
                        "content": {"type": ["string", "array", "null"]}}}})",
     ""},
    {"tools", R"({"type": ["array", "null"], "items": {"type": "object"}})", ""},
    {"chat_template_kwargs", R"({"type": ["object", "null"]})", "enable_thinking and others"},
    {"add_generation_prompt", R"({"type": "boolean"})", ""},
    {"continue_final_message", R"({"type": "boolean"})", ""},
};

constexpr Field kChat[] = {
    {"tool_choice", R"({"type": ["string", "object", "null"]})",
     "none, auto, required or a named function"},
    {"parallel_tool_calls", R"({"type": ["boolean", "null"]})", "false: the first call only"},
    {"max_completion_tokens", R"({"type": ["integer", "null"]})", "Goes before max_tokens"},
    {"logprobs", R"({"type": ["boolean", "null"]})", ""},
    {"top_logprobs", R"({"type": ["integer", "null"], "minimum": -1})", "Needs logprobs"},
    {"reasoning_effort",
     R"({"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max", null]})",
     "none switches thinking off, others on, unless enable_thinking is given"},
    {"include_reasoning", R"({"type": "boolean"})", ""},
    {"thinking_token_budget", R"({"type": ["integer", "null"], "minimum": -1})", ""},
    {"documents", R"({"type": ["array", "null"]})", "For the template"},
    {"return_prompt_text", R"({"type": ["boolean", "null"]})", ""},
};

constexpr Field kCompletion[] = {
    {"prompt", R"({"type": ["string", "array"]})", "Text, texts, token ids, or lists of token ids"},
    {"logprobs", R"({"type": ["integer", "null"], "minimum": 0})", ""},
    {"suffix", R"({"type": ["string", "null"]})", "Not supported"},
    {"best_of", R"({"type": ["integer", "null"], "minimum": 1})", "Ignored"},
};

constexpr Field kResponses[] = {
    {"model", R"({"type": ["string", "null"]})", ""},
    {"input", R"({"type": ["string", "array"]})", "Text or items"},
    {"instructions", R"({"type": ["string", "null"]})", ""},
    {"previous_response_id", R"({"type": ["string", "null"]})", "Of a stored response"},
    {"store", R"({"type": ["boolean", "null"]})", "In memory, the newest 1024"},
    {"tools", R"({"type": ["array", "null"], "items": {"type": "object"}})", "Functions"},
    {"tool_choice", R"({"type": ["string", "object", "null"]})", ""},
    {"parallel_tool_calls", R"({"type": ["boolean", "null"]})", ""},
    {"text", R"({"type": ["object", "null"]})", "format: text, json_object or json_schema"},
    {"reasoning", R"({"type": ["object", "null"]})", "effort"},
    {"max_output_tokens", R"({"type": ["integer", "null"]})", ""},
    {"temperature", R"({"type": ["number", "null"], "minimum": 0})", ""},
    {"top_p", R"({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1})", ""},
    {"stream", R"({"type": ["boolean", "null"]})", ""},
    {"metadata", R"({"type": ["object", "null"]})", "Comes back"},
};

constexpr Field kAnthropic[] = {
    {"model", R"({"type": "string", "minLength": 1})", ""},
    {"messages", R"({"type": "array", "minItems": 1, "items": {"type": "object"}})", ""},
    {"max_tokens", R"({"type": "integer", "minimum": 1})", "Required but for count_tokens"},
    {"system", R"({"type": ["string", "array", "null"]})", ""},
    {"tools", R"({"type": ["array", "null"], "items": {"type": "object"}})", ""},
    {"tool_choice", R"({"type": ["object", "null"]})", "type: auto, any, tool or none"},
    {"stop_sequences", R"({"type": ["array", "null"], "items": {"type": "string"}})", ""},
    {"temperature", R"({"type": ["number", "null"], "minimum": 0})", ""},
    {"top_p", R"({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1})", ""},
    {"top_k", R"({"type": ["integer", "null"], "minimum": -1})", ""},
    {"thinking", R"({"type": ["object", "null"]})", "type: enabled or disabled"},
    {"output_config", R"({"type": ["object", "null"]})", "effort, format"},
    {"stream", R"({"type": ["boolean", "null"]})", ""},
};

constexpr Field kTokenize[] = {
    {"model", R"({"type": ["string", "null"]})", ""},
    {"prompt", R"({"type": ["string", "null"]})", "This, or messages"},
    {"return_token_strs", R"({"type": ["boolean", "null"]})", ""},
    {"add_special_tokens", R"({"type": "boolean"})", ""},
};

constexpr Field kDetokenize[] = {
    {"model", R"({"type": ["string", "null"]})", ""},
    {"tokens", R"({"type": "array", "items": {"type": "integer", "minimum": 0}})", ""},
};

void add_fields(std::span<const Field> fields, Json* properties) {
  for (const Field& field : fields) {
    Json schema = parse_json(field.schema, field.name).value();
    if (*field.about) schema["description"] = field.about;
    (*properties)[field.name] = std::move(schema);
  }
}

Json body_schema(std::initializer_list<std::span<const Field>> tables, Json required) {
  Json properties = Json::object();
  for (const auto& table : tables) add_fields(table, &properties);
  Json out = {{"type", "object"}, {"properties", properties}};
  if (!required.empty()) out["required"] = std::move(required);
  return out;
}

Json operation(const ApiServer::Route& route, const std::string& method) {
  Json out = {{"summary", route.summary},
              {"operationId", ascii_lower(method) + " " + std::string(route.path)},
              {"responses",
               {{"200", {{"description", "The answer"}}},
                {"400", {{"$ref", "#/components/responses/Error"}}},
                {"401", {{"description", "A key is needed"}}},
                {"404", {{"$ref", "#/components/responses/Error"}}},
                {"429", {{"$ref", "#/components/responses/Error"}}},
                {"503", {{"$ref", "#/components/responses/Error"}}}}}};
  if (route.path.find("{id}") != std::string_view::npos)
    out["parameters"] = Json::array(
        {{{"name", "id"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}}});
  if (method == "POST" && !route.body.empty())
    out["requestBody"] = {
        {"required", true},
        {"content",
         {{"application/json",
           {{"schema", {{"$ref", "#/components/schemas/" + std::string(route.body)}}}}}}}};
  return out;
}

}  // namespace

Json openapi_document(bool with_keys) {
  Json paths = Json::object();
  for (const ApiServer::Route& route : ApiServer::routes()) {
    Json& item = paths[std::string(route.path)];
    std::string_view methods = route.methods;
    while (!methods.empty()) {
      const size_t space = std::min(methods.find(' '), methods.size());
      const std::string method(methods.substr(0, space));
      item[ascii_lower(method)] = operation(route, method);
      methods.remove_prefix(std::min(space + 1, methods.size()));
    }
  }
  const Json schemas = {{"ChatRequest", body_schema({kMessages, kChat, kGeneration}, {"messages"})},
                        {"CompletionRequest", body_schema({kCompletion, kGeneration}, {"prompt"})},
                        {"ResponsesRequest", body_schema({kResponses}, {"input"})},
                        {"MessagesRequest", body_schema({kAnthropic}, {"model", "messages"})},
                        {"TokenizeRequest", body_schema({kTokenize, kMessages}, Json::array())},
                        {"DetokenizeRequest", body_schema({kDetokenize}, {"tokens"})},
                        {"Error",
                         {{"type", "object"},
                          {"properties",
                           {{"error",
                             {{"type", "object"},
                              {"properties",
                               {{"message", {{"type", "string"}}},
                                {"type", {{"type", "string"}}},
                                {"param", {{"type", {"string", "null"}}}},
                                {"code", {{"type", "integer"}}}}}}}}}}}};
  Json document = {
      {"openapi", "3.1.0"},
      {"info", {{"title", "nibble"}, {"version", kVersion}}},
      {"paths", paths},
      {"components",
       {{"schemas", schemas},
        {"responses",
         {{"Error",
           {{"description", "What is wrong"},
            {"content",
             {{"application/json", {{"schema", {{"$ref", "#/components/schemas/Error"}}}}}}}}}}}}}};
  if (with_keys) {
    document["components"]["securitySchemes"] = {
        {"bearer", {{"type", "http"}, {"scheme", "bearer"}}}};
    document["security"] = Json::array({{{"bearer", Json::array()}}});
  }
  return document;
}

}  // namespace nibble
