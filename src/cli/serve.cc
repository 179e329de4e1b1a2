// nibble serve MODEL: the OpenAI-compatible server, until a signal.
#include <cstdio>
#include <cstdlib>

#include "base/file.h"
#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/lifecycle.h"
#include "server/api_server.h"
#include "server/front.h"
#include "server/status.h"

namespace nibble::cli {
namespace {

struct ServeFlags {
  std::string model;
  std::string host = "127.0.0.1";
  int port = 8000;
  std::vector<std::string> served_model_name;
  std::vector<std::string> api_key;
  bool insecure = false;
  std::string chat_template;
  std::string tool_call_parser = "auto";
  std::string reasoning_parser = "auto";
  std::string reasoning_field = "both";
  bool enable_auto_tool_choice = true;
  EngineOptions engine;
  FrontOptions front;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory");
    v.option("host", &host, "address to listen on");
    v.option("port", &port, "port to listen on, 0 for any free one");
    v.option("served-model-name", &served_model_name, "names of the model in requests");
    v.option("api-key", &api_key,
             "keys that guard every route but health, metrics and the page "
             "(also NIBBLE_API_KEY, VLLM_API_KEY)");
    v.option("insecure", &insecure, "listen on a public address without a key");
    v.option("chat-template", &chat_template, "file that replaces the model's chat template");
    v.option("tool-call-parser", &tool_call_parser, "auto: what the chat template asks for",
             {"auto", "none", "qwen3_coder", "hermes"});
    v.option("reasoning-parser", &reasoning_parser, "auto: what the chat template asks for",
             {"auto", "none", "qwen3"});
    v.option("reasoning-field", &reasoning_field, "where reasoning goes in answers",
             {"both", "reasoning", "reasoning_content"});
    v.option("enable-auto-tool-choice", &enable_auto_tool_choice, "parse tool calls");
    engine.visit(v);
    front.visit(v);
  }
};

bool is_local(const std::string& host) {
  return host == "127.0.0.1" || host == "localhost" || host == "::1";
}

Result<int> serve_model(ServeFlags& flags) {
  for (const char* name : {"NIBBLE_API_KEY", "VLLM_API_KEY"})
    if (const char* key = std::getenv(name); key && *key && flags.api_key.empty())
      flags.api_key.emplace_back(key);
  if (!is_local(flags.host) && flags.api_key.empty() && flags.front.guard.api_key_file.empty() &&
      flags.front.http.uds.empty() && !flags.insecure)
    return make_error(ErrorCode::kInvalidArgument,
                      "--host {} is reachable from other machines and no key is set; give "
                      "--api-key KEY, or --insecure to serve everyone",
                      flags.host);
  std::string template_text;
  if (!flags.chat_template.empty()) {
    NB_TRY(template_text, read_file(flags.chat_template, size_t{16} << 20));
  }
  const sigset_t signals = block_signals();
  // The port first: that it is taken should not be found out after minutes of loading.
  NB_TRY(const std::unique_ptr<Front> front, Front::create(flags.front, flags.api_key));
  std::unique_ptr<ServedModel> model;  // these two outlive the server's threads
  std::unique_ptr<ApiServer> api;
  HttpServerOptions http;
  NB_TRY_STATUS(front->apply(&http));
  http.host = flags.host;
  http.port = flags.port;
  http.is_quick = ApiServer::is_quick;
  http.error_response = ApiServer::error_response;
  NB_TRY(HttpServer server,
         HttpServer::start(http, [&](const HttpRequest& request, HttpReply& reply) {
           front->handle(request, reply);
         }));
  NB_TRY(model, ServedModel::open(flags.model, flags.engine, template_text));

  ApiOptions api_options;
  api_options.served_model_names = flags.served_model_name;
  if (api_options.served_model_names.empty()) api_options.served_model_names = {flags.model};
  const auto choose = [](const std::string& flag, const std::string& found) {
    return flag == "auto" ? found : flag == "none" ? std::string() : flag;
  };
  if (flags.enable_auto_tool_choice)
    api_options.tool_parser = choose(flags.tool_call_parser, model->tool_parser);
  api_options.reasoning_parser = choose(flags.reasoning_parser, model->reasoning_parser);
  if (flags.reasoning_field == "reasoning")
    api_options.reasoning_field = ReasoningField::kReasoning;
  if (flags.reasoning_field == "reasoning_content")
    api_options.reasoning_field = ReasoningField::kReasoningContent;
  NB_TRY(api, ApiServer::create(*model, api_options));
  front->set_ready(
      [&](const HttpRequest& request, HttpReply& reply) { api->handle(request, reply); },
      [&] { return server_status(*model, api_options.served_model_names[0]); });
  const std::string url =
      flags.front.http.uds.empty()
          ? format("{}://{}:{}", http.tls_key.empty() ? "http" : "https", flags.host, server.port())
          : "unix:" + flags.front.http.uds;
  log_info("listening url={} model={} max_model_len={} tool_parser={} reasoning_parser={}", url,
           api_options.served_model_names[0], model->engine->max_model_len(),
           api_options.tool_parser.empty() ? "none" : api_options.tool_parser,
           api_options.reasoning_parser.empty() ? "none" : api_options.reasoning_parser);
  log_info(
      "try: curl {}/v1/chat/completions -H 'Content-Type: application/json' -d "
      "'{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'",
      url);
  return serve_until_signal(signals, server, *front);
}

}  // namespace

int serve(Arguments arguments) {
  ServeFlags flags;
  OptionSet set("nibble serve", "serve a model over an OpenAI-compatible API");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> code = serve_model(flags);
  return code ? *code : fail(code.error());
}

}  // namespace nibble::cli
