// Routes, and the small endpoints. Chat has its own file.
#include "server/api_server.h"

#include <ctime>

#include "base/format.h"
#include "base/version.h"

namespace nibble {
namespace {

HttpResponse json_reply(const Json& body, int status = 200) {
  return {.status = status, .body = dump_json(body)};
}

struct Route {
  std::string_view path;
  std::string_view methods;
};
constexpr Route kRoutes[] = {
    {"/health", "GET HEAD"}, {"/ping", "GET HEAD POST"}, {"/version", "GET"},
    {"/v1/models", "GET"},   {"/metrics", "GET"},        {"/v1/chat/completions", "POST"},
    {"/tokenize", "POST"},   {"/detokenize", "POST"},
};

}  // namespace

Result<std::unique_ptr<ApiServer>> ApiServer::create(ServedModel& model, ApiOptions options) {
  NB_CHECK(!options.served_model_names.empty(), "a served model has a name");
  // Unknown parser names are an error of the start, not of the first request.
  NB_TRY(const auto probe, make_reply_parser({.reasoning_parser = options.reasoning_parser,
                                              .tool_parser = options.tool_parser,
                                              .tools = Json::array(),
                                              .prompt_tail = ""}));
  return std::unique_ptr<ApiServer>(new ApiServer(model, std::move(options)));
}

ApiServer::ApiServer(ServedModel& model, ApiOptions options)
    : model_(model), options_(std::move(options)), created_(std::time(nullptr)) {}

bool ApiServer::is_quick(const HttpRequest& request) {
  return request.method == "GET" || request.method == "HEAD";
}

HttpResponse ApiServer::error_response(int status, std::string_view message) {
  ApiError error{status, "Bad Request", std::string(message), nullptr};
  if (status >= 500) error.type = "InternalServerError";
  if (status == 503) error.type = "ServiceUnavailableError";
  return error_reply(error);
}

void ApiServer::handle(const HttpRequest& request, HttpReply& reply) {
  const Route* route = nullptr;
  for (const Route& candidate : kRoutes)
    if (candidate.path == request.path) route = &candidate;
  if (!route) return reply.send(json_reply({{"detail", "Not Found"}}, 404));
  if ((" " + std::string(route->methods) + " ").find(" " + request.method + " ") ==
      std::string::npos)
    return reply.send(json_reply({{"detail", "Method Not Allowed"}}, 405));
  if (request.path == "/v1/chat/completions") return chat(request, reply);
  if (request.path == "/tokenize") return tokenize(request, reply);
  if (request.path == "/detokenize") return detokenize(request, reply);
  if (request.path == "/v1/models") return reply.send(models());
  if (request.path == "/metrics") return reply.send(metrics());
  if (request.path == "/version") return reply.send(json_reply({{"version", kVersion}}));
  reply.send({.status = 200, .body = ""});  // health, ping
}

HttpResponse ApiServer::models() const {
  Json data = Json::array();
  for (const std::string& name : options_.served_model_names)
    data.push_back({{"id", name},
                    {"object", "model"},
                    {"created", created_},
                    {"owned_by", "nibble"},
                    {"root", model_.dir.path().string()},
                    {"parent", nullptr},
                    {"max_model_len", model_.engine->max_model_len()},
                    {"permission", Json::array()}});
  return json_reply({{"object", "list"}, {"data", data}});
}

HttpResponse ApiServer::metrics() const {
  const EngineStats stats = model_.engine->stats();
  std::string out;
  const auto add = [&](std::string_view name, std::string_view type, std::string_view help,
                       double value) {
    out += format("# HELP {} {}\n# TYPE {} {}\n{}{{model_name=\"{}\"}} {}\n", name, help, name,
                  type, name, options_.served_model_names[0], value);
  };
  add("vllm:num_requests_running", "gauge", "Requests in the batch.", stats.num_running);
  add("vllm:num_requests_waiting", "gauge", "Requests waiting.", stats.num_waiting);
  add("vllm:kv_cache_usage_perc", "gauge", "KV cache in use, 0 to 1.", stats.kv_usage);
  add("vllm:num_preemptions_total", "counter", "Preemptions.",
      static_cast<double>(stats.num_preemptions));
  add("vllm:prompt_tokens_total", "counter", "Prompt tokens run.",
      static_cast<double>(stats.prompt_tokens));
  add("vllm:generation_tokens_total", "counter", "Tokens generated.",
      static_cast<double>(stats.generated_tokens));
  add("nibble:requests_finished_total", "counter", "Requests answered in full.",
      static_cast<double>(num_finished_.load()));
  add("nibble:requests_failed_total", "counter", "Requests refused, failed or aborted.",
      static_cast<double>(num_failed_.load()));
  return {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = out};
}

void ApiServer::tokenize(const HttpRequest& request, HttpReply& reply) {
  const Result<Json> body = parse_json(request.body, "body");
  if (!body || !body->is_object() || !body->value("prompt", Json()).is_string())
    return reply.send(error_reply(
        {400, "Bad Request", "prompt: expected a string (parameter=prompt)", "prompt"}));
  const std::vector<int32_t> ids =
      model_.tokenizer.encode((*body)["prompt"].get_ref<const std::string&>());
  reply.send(json_reply({{"count", ids.size()},
                         {"max_model_len", model_.engine->max_model_len()},
                         {"tokens", ids},
                         {"token_strs", nullptr}}));
}

void ApiServer::detokenize(const HttpRequest& request, HttpReply& reply) {
  const Result<Json> body = parse_json(request.body, "body");
  std::vector<int32_t> ids;
  bool ok = body && body->is_object() && body->value("tokens", Json()).is_array();
  if (ok)
    for (const Json& id : (*body)["tokens"]) {
      ok = ok && id.is_number_unsigned() && id.get<uint64_t>() < INT32_MAX;
      if (ok) ids.push_back(id.get<int32_t>());
    }
  if (!ok)
    return reply.send(error_reply(
        {400, "Bad Request", "tokens: expected a list of token ids (parameter=tokens)", "tokens"}));
  reply.send(json_reply({{"prompt", model_.tokenizer.decode(ids)}}));
}

}  // namespace nibble
