// nibble serve MODEL: the OpenAI-compatible server, until a signal.
#include <algorithm>
#include <cstdio>

#include "base/file.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/log.h"
#include "base/text.h"
#include "base/version.h"
#include "cli/command.h"
#include "cli/lifecycle.h"
#include "cli/serve_options.h"
#include "server/api_server.h"
#include "server/front.h"
#include "server/scripted_engine.h"
#include "server/status.h"

namespace nibble::cli {
namespace {

bool is_local(const std::string& host) {
  return host == "127.0.0.1" || host == "localhost" || host == "::1";
}

LogLevel log_level_of(const std::string& name) {
  if (name == "debug" || name == "trace") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  return name == "error" || name == "critical" ? LogLevel::kError : LogLevel::kInfo;
}

// The template itself, or the file that has it.
Result<std::string> read_template(const std::string& given) {
  if (given.empty() || given.find_first_of("{}\n") != std::string::npos) return given;
  Result<std::string> text = read_file(given, size_t{16} << 20);
  if (text) return text;
  return make_error(ErrorCode::kInvalidArgument,
                    "--chat-template {}: neither a file ({}) nor a template", given,
                    text.error().message);
}

// Keys and values of --compilation-config; those about CUDA graphs go to the engine's options.
Status take_compilation(const Json& config, EngineOptions* engine) {
  static constexpr std::string_view kKeys[] = {"mode",
                                               "level",
                                               "cudagraph_mode",
                                               "cudagraph_capture_sizes",
                                               "backend",
                                               "use_inductor",
                                               "max_cudagraph_capture_size",
                                               "custom_ops",
                                               "pass_config",
                                               "splitting_ops",
                                               "use_cudagraph",
                                               "cudagraph_num_of_warmups"};
  static constexpr std::string_view kModes[] = {"none", "piecewise", "full", "full_decode_only",
                                                "full_and_piecewise"};
  const auto wrong = [](std::string_view key, const Json& value, const std::string& expected) {
    return make_error(ErrorCode::kInvalidArgument, "--compilation-config: {} {} is not {}", key,
                      dump_json(value), expected);
  };
  for (const auto& [key, value] : config.items()) {
    const auto known = [&](std::string_view name) { return name == key; };
    if (std::ranges::none_of(kKeys, known)) {
      const std::string nearest = nearest_name(key, kKeys);
      return make_error(ErrorCode::kInvalidArgument, "--compilation-config: unknown key {}{}", key,
                        nearest.empty() ? "" : format(", did you mean {}?", nearest));
    }
    if (key == "cudagraph_mode") {
      const std::string mode = value.is_string() ? ascii_lower(value.get<std::string>()) : "";
      if (std::ranges::find(kModes, mode) == std::end(kModes))
        return wrong(key, value, format("one of {}", join(kModes, ", ")));
      engine->cudagraph_mode = mode;
    } else if (key == "cudagraph_capture_sizes") {
      if (!value.is_array() || !std::ranges::all_of(value, [](const Json& size) {
            return size.is_number_integer() && size.get<int64_t>() >= 1;
          }))
        return wrong(key, value, "a list of batch sizes");
      engine->cudagraph_capture_sizes = value.get<std::vector<int>>();
    }
  }
  // A limit alone cuts the sizes that would be chosen.
  if (const auto limit = config.find("max_cudagraph_capture_size"); limit != config.end()) {
    if (!limit->is_number_integer())
      return wrong("max_cudagraph_capture_size", *limit, "a batch size");
    std::vector<int> sizes = capture_sizes(*engine);
    std::erase_if(sizes, [&](int size) { return size > limit->get<int>(); });
    if (sizes.empty()) engine->cudagraph_mode = "none";
    engine->cudagraph_capture_sizes = sizes;
  }
  return {};
}

// The flags that stand for keys of --compilation-config.
Status add_graph_flags(const ServeOptions& options, Json* config) {
  if (!options.cudagraph_capture_sizes.empty())
    (*config)["cudagraph_capture_sizes"] = Json::array();
  for (const std::string& text : options.cudagraph_capture_sizes) {
    const Result<int64_t> size = parse_count(text);
    if (!size || *size < 1 || *size > INT32_MAX)
      return make_error(ErrorCode::kInvalidArgument,
                        "--cudagraph-capture-sizes: {} is no batch size", text);
    (*config)["cudagraph_capture_sizes"].push_back(*size);
  }
  if (options.max_cudagraph_capture_size > 0)
    (*config)["max_cudagraph_capture_size"] = options.max_cudagraph_capture_size;
  return {};
}

Status check(const ServeOptions& options) {
  const auto wrong = [](std::string text) {
    return Error{ErrorCode::kInvalidArgument, "nibble serve: " + std::move(text)};
  };
  if (options.model.empty())
    return wrong("MODEL is missing: checkpoint directory; see nibble serve --help");
  if (!is_local(options.host) && options.api_key.empty() &&
      options.front.guard.api_key_file.empty() && options.front.http.uds.empty() &&
      !options.insecure)
    return wrong(
        format("--host {} is reachable from other machines and no key is set; give "
               "--api-key KEY, or --insecure to serve everyone",
               options.host));
  const int tokens = options.engine.max_num_batched_tokens;
  if (tokens > 0 && options.engine.max_num_seqs > tokens)
    return wrong(format("--max-num-batched-tokens {}: must be at least --max-num-seqs {}", tokens,
                        options.engine.max_num_seqs));
  return {};
}

// The flag says what the person believes the checkpoint to be.
Status check_quantization(const ServeOptions& options) {
  if (options.quantization.empty()) return {};
  NB_TRY(const ModelDir dir, ModelDir::open(options.model));
  if (dir.quantization()) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "--quantization {}: {} is not quantized; leave the flag out, or make a "
                    "quantized checkpoint with nibble quantize",
                    options.quantization, options.model);
}

Result<std::unique_ptr<ServedModel>> open_model(const ServeOptions& options) {
  NB_TRY_STATUS(check_quantization(options));
  NB_TRY(const std::string template_text, read_template(options.chat_template));
  if (options.scripted.empty())
    return ServedModel::open(options.model, options.engine, template_text);
  NB_TRY(std::unique_ptr<ServedModel> model, ServedModel::read(options.model, template_text));
  NB_TRY(const std::string script, read_file(options.scripted, size_t{64} << 20));
  ScriptedOptions scripted{.vocab_size = model->tokenizer.vocab_size(),
                           .stop_token_ids = model->stop_token_ids};
  if (options.engine.max_model_len > 0) scripted.max_model_len = options.engine.max_model_len;
  NB_TRY(model->engine,
         make_scripted_engine(script, options.scripted, model->tokenizer, std::move(scripted)));
  return model;
}

Result<ApiOptions> api_options(const ServeOptions& options, const ServedModel& model) {
  ApiOptions api;
  api.served_model_names = options.served_model_name;
  if (api.served_model_names.empty()) api.served_model_names = {options.model};
  const auto choose = [](const std::string& flag, const std::string& found) {
    return flag == "auto" ? found : flag == "none" ? std::string() : flag;
  };
  api.tool_parser = choose(options.tool_call_parser, model.tool_parser);
  api.auto_tool_choice = options.enable_auto_tool_choice;
  api.reasoning_parser = choose(options.reasoning_parser, model.reasoning_parser);
  if (options.reasoning_field == "reasoning") api.reasoning_field = ReasoningField::kReasoning;
  if (options.reasoning_field == "reasoning_content")
    api.reasoning_field = ReasoningField::kReasoningContent;
  NB_TRY(const SamplingDefaults sampling, sampling_defaults(model.dir, options.sampling));
  api.defaults.generation_config = sampling.config;
  api.defaults.max_tokens_cap = sampling.max_tokens_cap;
  api.defaults.max_logprobs = options.max_logprobs;
  api.defaults.template_kwargs = options.default_chat_template_kwargs;
  api.defaults.system_prompt = options.default_system_prompt;
  api.defaults.trust_request_template = options.trust_request_chat_template;
  api.defaults.exclude_tools_when_none = options.exclude_tools;
  api.defaults.force_include_usage = options.enable_force_include_usage;
  api.response_role = options.response_role;
  api.stream_interval = options.stream_interval;
  api.stall_timeout_s = options.stall_timeout_s;
  api.prompt_tokens_details = options.enable_prompt_tokens_details;
  api.request_id_headers = options.enable_request_id_headers;
  if (options.fingerprint_mode != "none") {
    Sha256 hash;
    hash.update(dump_json(model.dir.config()));
    const std::string digest = hash.finish().substr(0, 8);
    api.fingerprint =
        options.fingerprint_mode == "hash" ? digest : format("nibble-{}-{}", kVersion, digest);
  }
  api.cache_config = {
      {"gpu_memory_utilization", format("{:g}", options.engine.gpu_memory_utilization)}};
  return api;
}

void report_flags(const OptionSet::Outcome& outcome) {
  std::string given;
  for (const OptionSet::Given& one : outcome.given) {
    if (one.name == "MODEL") continue;
    given += format(" {}={}", one.name, one.value);
    if (one.source != "command line") given += format(" ({})", one.source);
  }
  if (!given.empty()) log_info("flags{}", given);
  if (outcome.ignored.empty()) return;
  const std::vector<std::string_view> names(outcome.ignored.begin(), outcome.ignored.end());
  log_info("accepted without effect here: {}", join(names, ", "));
}

// What a person needs for the first answer.
void print_welcome(const std::string& url, const ApiOptions& api, const ServedModel& model) {
  const std::string& name = api.served_model_names[0];
  const CacheConfig cache = model.engine->stats().cache;
  const int64_t num_tokens = int64_t{cache.num_blocks} * cache.block_size;
  const std::string kv_tokens = num_tokens > 0 ? std::to_string(num_tokens) : "of no";
  const std::string key = !api.needs_key ? "" : " -H \"Authorization: Bearer $KEY\"";
  struct Example {
    const char *route, *body, *call, *argument, *answer;
  };
  const Example chat = {
      "chat/completions", R"({"messages": [{"role": "user", "content": "Hello"}]})",
      "chat.completions", R"(messages=[{"role": "user", "content": "Hello"}])", "message.content"};
  const Example text = {"completions", R"({"prompt": "Hello", "max_tokens": 16})", "completions",
                        R"(prompt="Hello", max_tokens=16)", "text"};
  const Example& example = model.chat_template ? chat : text;
  std::fprintf(stderr,
               "\n"
               "  %s  serves %s\n"
               "  context %d tokens; KV cache %s tokens; tool calls: %s; reasoning: %s\n"
               "\n"
               "  curl %s/v1/%s%s -H 'Content-Type: application/json' \\\n"
               "    -d '%s'\n"
               "\n"
               "  from openai import OpenAI\n"
               "  client = OpenAI(base_url=\"%s/v1\", api_key=\"%s\")\n"
               "  reply = client.%s.create(\n"
               "      model=\"%s\", %s)\n"
               "  print(reply.choices[0].%s)\n"
               "\n",
               url.c_str(), name.c_str(), model.engine->max_model_len(), kv_tokens.c_str(),
               api.tool_parser.empty() ? "off" : api.tool_parser.c_str(),
               api.reasoning_parser.empty() ? "off" : api.reasoning_parser.c_str(), url.c_str(),
               example.route, key.c_str(), example.body, url.c_str(),
               api.needs_key ? "KEY" : "none", example.call, name.c_str(), example.argument,
               example.answer);
}

Result<int> serve_model(ServeOptions& options, const OptionSet::Outcome& outcome) {
  options.engine.max_model_len = std::max(options.engine.max_model_len, 0);  // -1: what fits
  NB_TRY_STATUS(check(options));
  NB_TRY_STATUS(add_graph_flags(options, &options.compilation_config));
  NB_TRY_STATUS(take_compilation(options.compilation_config, &options.engine));
  report_flags(outcome);
  const sigset_t signals = block_signals();
  // The port first: that it is taken should not be found out after minutes of loading.
  NB_TRY(const std::unique_ptr<Front> front, Front::create(options.front, options.api_key));
  HttpServerOptions http;
  NB_TRY_STATUS(front->apply(&http));
  http.host = options.host;
  http.port = options.port;
  http.is_quick = ApiServer::is_quick;
  http.is_instant = ApiServer::is_instant;
  http.error_response = ApiServer::error_response;
  std::unique_ptr<ServedModel> model;  // outlives the server's threads
  std::unique_ptr<ApiServer> api;
  NB_TRY(HttpServer server, HttpServer::start(http, [&](HttpRequest& request, HttpReply& reply) {
           front->handle(request, reply);
         }));
  NB_TRY(model, open_model(options));
  if (options.chat_template_content_format != "auto")
    model->template_takes_parts = options.chat_template_content_format == "openai";
  NB_TRY(ApiOptions settings, api_options(options, *model));
  settings.needs_key = front->has_keys();
  NB_TRY(api, ApiServer::create(*model, settings));
  front->set_ready(
      [&](const HttpRequest& request, HttpReply& reply) { api->handle(request, reply); },
      [&] { return server_status(*model, settings.served_model_names[0]); });

  const std::string& uds = options.front.http.uds;
  const char* scheme = http.tls_key.empty() ? "http" : "https";
  const std::string url =
      uds.empty() ? format("{}://{}:{}", scheme, options.host, server.port()) : "unix:" + uds;
  log_info("listening url={} model={} max_model_len={} tool_parser={} reasoning_parser={}", url,
           settings.served_model_names[0], model->engine->max_model_len(),
           settings.tool_parser.empty() ? "none" : settings.tool_parser,
           settings.reasoning_parser.empty() ? "none" : settings.reasoning_parser);
  if (log_level_of(options.log_level) <= LogLevel::kInfo) print_welcome(url, settings, *model);
  return serve_until_signal(signals, server, *front);
}

}  // namespace

int serve(Arguments arguments) {
  ServeOptions options;
  OptionSet set("nibble serve", "serve a model over an OpenAI-compatible API");
  const Parsed parsed = parse(set, options, arguments);
  if (!parsed.ok) return parsed.exit;
  set_log_level(log_level_of(options.log_level));
  keep_heap_lean();
  const Result<int> code = serve_model(options, parsed.outcome);
  return code ? *code : fail(code.error());
}

}  // namespace nibble::cli
