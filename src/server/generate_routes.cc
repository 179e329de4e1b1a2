// The routes that generate: read the body in its dialect, check it against the server's settings,
// submit, deliver.
#include <algorithm>
#include <cctype>
#include <ctime>

#include "base/format.h"
#include "base/text.h"
#include "server/api_server.h"
#include "server/chat_request.h"
#include "server/constraint.h"
#include "server/deliver.h"
#include "server/dialect_anthropic.h"
#include "server/dialect_chat.h"
#include "server/dialect_completions.h"
#include "server/dialect_responses.h"
#include "server/prompt_builder.h"

namespace nibble {
namespace {

// X-Request-Id, else the body's, else random; anything that is no plain identifier is dropped.
std::string choose_id(const HttpRequest& http, const std::string& from_body) {
  const auto header = http.headers.find("x-request-id");
  std::string id = header != http.headers.end() ? header->second : from_body;
  const bool plain = !id.empty() && id.size() <= 128 && std::ranges::all_of(id, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
  });
  return plain ? id : random_hex(16);
}

// For fairness between clients: as the front names them, else the address.
const std::string& client_of(const HttpRequest& http) {
  return http.client.empty() ? http.remote_address : http.client;
}

// The text of the last message when the reply continues or follows the same role.
std::string echo_text(const ChatRequest& request, const std::string& role) {
  if (!request.echo) return "";
  const Json& last = request.messages.back();
  const Json content = last.value("content", Json());
  return last["role"] == role && content.is_string() ? content.get<std::string>() : "";
}

}  // namespace

std::optional<ApiError> ApiServer::read_body(const HttpRequest& http, Json* body) const {
  const auto type = http.headers.find("content-type");
  if (type == http.headers.end() || !ascii_lower(type->second).starts_with("application/json"))
    return ApiError{400, "Bad Request",
                    "Unsupported Media Type: Only 'application/json' is allowed", nullptr};
  Result<Json> parsed = parse_json(http.body, "body", {.allow_duplicate_keys = true});
  if (!parsed) return ApiError{400, "Bad Request", parsed.error().message, nullptr};
  *body = std::move(*parsed);
  return std::nullopt;
}

std::optional<ApiError> ApiServer::check_model(const std::string& name) const {
  const auto& names = options_.served_model_names;
  if (name.empty() || std::ranges::find(names, name) != names.end()) return std::nullopt;
  return ApiError{404, "NotFoundError", format("The model `{}` does not exist.", name), "model"};
}

AnswerHead ApiServer::answer_head(const std::string& id) const {
  return {.id = id,
          .created = std::time(nullptr),
          .model = options_.served_model_names[0],
          .fingerprint = options_.fingerprint,
          .role = options_.response_role,
          .reasoning_field = options_.reasoning_field,
          .prompt_tokens_details = options_.prompt_tokens_details};
}

std::optional<ApiError> ApiServer::start_chat(const HttpRequest& http, const ChatRequest& request,
                                              const std::string& id,
                                              std::unique_ptr<Generation>* out) {
  if (auto error = check_model(request.model)) return error;
  const bool has_parser = !options_.tool_parser.empty();
  if (request.tool_choice == ToolChoice::kAuto && !(has_parser && options_.auto_tool_choice))
    return ApiError{400, "BadRequestError",
                    "\"auto\" tool choice requires --enable-auto-tool-choice and "
                    "--tool-call-parser to be set",
                    "tool_choice"};
  if (request.parses_tools() && !has_parser)
    return ApiError{400, "BadRequestError",
                    "tool_choice=\"required\" or a named function requires --tool-call-parser to "
                    "be set",
                    "tool_choice"};

  StructuredOutput rule = request.structured;
  if (request.tool_choice == ToolChoice::kRequired || request.tool_choice == ToolChoice::kNamed) {
    Result<StructuredOutput> tools = require_tools(
        request.tools, request.tool_name, options_.tool_parser, request.parallel_tool_calls);
    if (!tools) return to_api_error(tools.error());
    rule = std::move(*tools);
  }

  Result<std::string> text = build_prompt(model_, request);
  if (!text) return to_api_error(text.error());
  std::vector<Prompt> prompts(1);
  prompts[0].ids = model_.tokenizer.encode(*text);
  prompts[0].text = std::move(*text);

  GenerationSetup setup{.id = id,
                        .client = client_of(http),
                        .reasoning_parser = options_.reasoning_parser,
                        .tool_parser = request.parses_tools() ? options_.tool_parser : "",
                        .tools = request.tools,
                        .stream_interval = request.stream ? options_.stream_interval : 1,
                        .constraint = nullptr};
  if (rule.kind != StructuredOutput::Kind::kNone)
    setup.constraint = [&, rule](const Prompt& prompt) {
      return make_constraint(rule, model_,
                             {.reasoning_parser = options_.reasoning_parser,
                              .prompt = prompt.ids,
                              .extra_stop_tokens = request.stop_token_ids});
    };
  return Generation::start(model_, metrics_, request, std::move(prompts), std::move(setup), out);
}

void ApiServer::deliver_counted(Generation& generation, Answer& answer, bool stream,
                                const std::string& id, HttpReply& reply) {
  ++num_at_work_;
  deliver(generation, answer, stream, id, reply, delivery_);
  --num_at_work_;
}

void ApiServer::chat(const HttpRequest& http, HttpReply& reply, const std::string&) {
  Json body;
  if (const auto error = read_body(http, &body)) return reply.send(error_reply(*error));
  ChatRequest request;
  if (const auto error = parse_chat_request(body, options_.defaults, &request))
    return reply.send(error_reply(*error));
  const std::string id = "chatcmpl-" + choose_id(http, request.request_id);
  std::unique_ptr<Generation> generation;
  if (const auto error = start_chat(http, request, id, &generation))
    return reply.send(error_reply(*error));
  const auto answer =
      make_chat_answer(answer_head(id), request, generation->prompts()[0], model_.tokenizer,
                       echo_text(request, options_.response_role));
  deliver_counted(*generation, *answer, request.stream, id, reply);
}

void ApiServer::completions(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) { reply.send(error_reply(error)); };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  CompletionRequest request;
  if (const auto error = parse_completion_request(body, options_.defaults,
                                                  model_.engine->spec().vocab_size, &request))
    return refuse(*error);
  if (const auto error = check_model(request.model)) return refuse(*error);
  std::vector<Prompt> prompts;
  for (std::string& text : request.texts) {
    Prompt& prompt = prompts.emplace_back();
    prompt.ids = model_.tokenizer.encode(text);
    prompt.text = std::move(text);
  }
  for (std::vector<int32_t>& ids : request.token_ids) {
    Prompt& prompt = prompts.emplace_back();
    prompt.text = model_.tokenizer.decode(ids);
    prompt.ids = std::move(ids);
  }
  const std::string id = "cmpl-" + choose_id(http, request.request_id);
  GenerationSetup setup{.id = id,
                        .client = client_of(http),
                        .reasoning_parser = "",
                        .tool_parser = "",
                        .tools = Json::array(),
                        .stream_interval = request.stream ? options_.stream_interval : 1,
                        .constraint = nullptr};
  if (request.structured.kind != StructuredOutput::Kind::kNone)
    setup.constraint = [&](const Prompt& prompt) {
      return make_constraint(request.structured, model_,
                             {.reasoning_parser = "",
                              .prompt = prompt.ids,
                              .extra_stop_tokens = request.stop_token_ids});
    };
  std::unique_ptr<Generation> generation;
  if (const auto error = Generation::start(model_, metrics_, request, std::move(prompts),
                                           std::move(setup), &generation))
    return refuse(*error);
  const auto answer =
      make_completion_answer(answer_head(id), request, generation->prompts(), model_.tokenizer);
  deliver_counted(*generation, *answer, request.stream, id, reply);
}

void ApiServer::messages(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) {
    reply.send(json_reply(messages_error_body(error), error.status));
  };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  Json chat;
  if (const auto error = chat_body_from_messages(body, false, &chat)) return refuse(*error);
  ChatRequest request;
  if (const auto error = parse_chat_request(chat, options_.defaults, &request))
    return refuse(*error);
  const std::string id = "msg_" + choose_id(http, "");
  std::unique_ptr<Generation> generation;
  if (const auto error = start_chat(http, request, id, &generation)) return refuse(*error);
  const auto answer = make_messages_answer(answer_head(id));
  deliver_counted(*generation, *answer, request.stream, id, reply);
}

void ApiServer::count_tokens(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) {
    reply.send(json_reply(messages_error_body(error), error.status));
  };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  Json chat;
  if (const auto error = chat_body_from_messages(body, true, &chat)) return refuse(*error);
  ChatRequest request;
  if (const auto error = parse_chat_request(chat, options_.defaults, &request))
    return refuse(*error);
  if (const auto error = check_model(request.model)) return refuse(*error);
  const Result<std::string> prompt = build_prompt(model_, request);
  if (!prompt) return refuse(to_api_error(prompt.error()));
  reply.send(json_reply({{"input_tokens", model_.tokenizer.encode(*prompt).size()},
                         {"context_management", nullptr}}));
}

void ApiServer::responses(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) { reply.send(error_reply(error)); };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  ResponsesRequest wanted;
  if (const auto error = read_responses_request(body, responses_, &wanted)) return refuse(*error);
  ChatRequest request;
  if (const auto error = parse_chat_request(wanted.chat, options_.defaults, &request))
    return refuse(*error);
  const std::string id = "resp_" + choose_id(http, request.request_id);
  std::unique_ptr<Generation> generation;
  if (const auto error = start_chat(http, request, id, &generation)) return refuse(*error);
  const auto answer = make_responses_answer(answer_head(id), wanted);
  responses_.add_running(id, [&generation] { generation->cancel(); });
  deliver_counted(*generation, *answer, request.stream, id, reply);
  responses_.remove_running(id);
  if (!wanted.store) return;
  Json response = answer->whole(generation->usage());
  for (const Json& item : response["output"]) wanted.items.push_back(item);
  responses_.put(id, {std::move(response), std::move(wanted.items)});
}

void ApiServer::get_response(const HttpRequest&, HttpReply& reply, const std::string& id) {
  const auto stored = responses_.find(id);
  if (stored) return reply.send(json_reply(stored->response));
  reply.send(error_reply(
      {404, "NotFoundError", format("Response with id '{}' not found.", id), "response_id"}));
}

void ApiServer::cancel_response(const HttpRequest&, HttpReply& reply, const std::string& id) {
  if (responses_.cancel(id))
    return reply.send(json_reply({{"id", id}, {"object", "response"}, {"status", "cancelled"}}));
  if (responses_.find(id))
    return reply.send(error_reply(
        {400, "BadRequestError", format("Response '{}' is complete already.", id), "response_id"}));
  reply.send(error_reply(
      {404, "NotFoundError", format("Response with id '{}' not found.", id), "response_id"}));
}

void ApiServer::invocations(const HttpRequest& http, HttpReply& reply, const std::string& id) {
  Json body;
  if (const auto error = read_body(http, &body)) return reply.send(error_reply(*error));
  if (body.is_object() && body.contains("messages")) return chat(http, reply, id);
  if (body.is_object() && body.contains("prompt")) return completions(http, reply, id);
  reply.send(error_reply({400, "BadRequestError",
                          "the body is neither a chat request (messages) nor a completion request "
                          "(prompt)",
                          nullptr}));
}

}  // namespace nibble
