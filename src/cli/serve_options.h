// The flags of `nibble serve`: vLLM's names and meanings, each declared once.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/options.h"
#include "server/front.h"
#include "server/sampling_presets.h"

namespace nibble::cli {

struct ServeOptions {
  std::string model;
  std::vector<std::string> served_model_name;
  std::string quantization;
  Json compilation_config = Json::object();
  std::vector<std::string> cudagraph_capture_sizes;
  int max_cudagraph_capture_size = 0;  // 0: not given

  std::string host = "127.0.0.1";
  int port = 8000;
  std::vector<std::string> api_key;
  bool insecure = false;
  bool enable_request_id_headers = false;
  std::string fingerprint_mode = "none";
  std::string log_level = "info";

  std::string chat_template;
  std::string chat_template_content_format = "auto";
  Json default_chat_template_kwargs = Json::object();
  std::string default_system_prompt;
  bool trust_request_chat_template = false;
  std::string response_role = "assistant";

  bool enable_auto_tool_choice = true;
  std::string tool_call_parser = "auto";
  bool exclude_tools = false;
  std::string reasoning_parser = "auto";
  std::string reasoning_field = "both";

  SamplingDefaultsOptions sampling;
  int max_logprobs = 20;
  int stream_interval = 1;
  bool enable_prompt_tokens_details = false;
  bool enable_force_include_usage = false;
  int stall_timeout_s = 300;

  FrontOptions front;
  EngineOptions engine;
  std::string scripted;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory", false);
    v.config_file("config");
    v.environment("NIBBLE_");
    v.group("Model");
    v.option("model", &model, "checkpoint directory, as an alternative to MODEL");
    v.option("served-model-name", &served_model_name,
             "names of the model in requests; the first one is in answers");
    v.option("quantization", &quantization, "checked against the checkpoint's own",
             {"", "compressed-tensors"});
    v.alias("q", "quantization");
    v.option("compilation-config", &compilation_config,
             "CUDA graphs: cudagraph_mode, cudagraph_capture_sizes, max_cudagraph_capture_size");
    v.alias("cc", "compilation-config");
    v.option("cudagraph-capture-sizes", &cudagraph_capture_sizes,
             "batch sizes whose decode step is recorded as a CUDA graph");
    v.option("max-cudagraph-capture-size", &max_cudagraph_capture_size,
             "the largest of them, 0: as --max-num-seqs", {.low = 0});

    v.group("HTTP");
    v.option("host", &host, "address to listen on");
    v.option("port", &port, "port to listen on, 0 for any free one", {.low = 0, .high = 65535});
    v.option("api-key", &api_key,
             "keys of which a request must bring one, but for health, metrics and the page");
    v.environment("api-key", "VLLM_API_KEY");
    v.secret("api-key");
    front.visit(v);
    v.option("insecure", &insecure, "listen on a public address without a key");
    v.option("enable-request-id-headers", &enable_request_id_headers, "answers carry X-Request-Id");
    v.option("fingerprint-mode", &fingerprint_mode, "what system_fingerprint says",
             {"none", "full", "hash"});
    v.option("stall-timeout", &stall_timeout_s,
             "seconds a step of the engine may take until /health says 503", {.low = 1});
    v.option("uvicorn-log-level", &log_level, "least level of the log",
             {"debug", "info", "warning", "error", "critical", "trace"});
    v.environment("uvicorn-log-level", "VLLM_LOGGING_LEVEL");

    v.group("Chats");
    v.option("chat-template", &chat_template,
             "file, or one line of Jinja, that replaces the model's chat template");
    v.option("chat-template-content-format", &chat_template_content_format,
             "how the template takes content: as strings or as parts",
             {"auto", "string", "openai"});
    v.option("default-chat-template-kwargs", &default_chat_template_kwargs,
             "template variables for requests that do not set them");
    v.option("default-system-prompt", &default_system_prompt, "for chats without a system message");
    v.option("trust-request-chat-template", &trust_request_chat_template,
             "let requests bring a chat template");
    v.option("response-role", &response_role, "role of answers");
    v.option("enable-auto-tool-choice", &enable_auto_tool_choice, "allow tool_choice auto");
    v.option("tool-call-parser", &tool_call_parser, "auto: what the chat template asks for",
             {"auto", "none", "qwen3_coder", "hermes"});
    v.option("exclude-tools-when-tool-choice-none", &exclude_tools,
             "leave tools out of the prompt when none may be called");
    v.option("reasoning-parser", &reasoning_parser, "auto: what the chat template asks for",
             {"auto", "none", "qwen3"});
    v.option("reasoning-field", &reasoning_field, "where reasoning goes in answers",
             {"both", "reasoning", "reasoning_content"});

    v.group("Answers");
    sampling.visit(v);
    v.option("max-logprobs", &max_logprobs, "log-probabilities a request may ask for, -1: all",
             {.low = -1});
    v.option("stream-interval", &stream_interval, "tokens in an event of a stream", {.low = 1});
    v.option("enable-prompt-tokens-details", &enable_prompt_tokens_details,
             "usage tells the cached tokens");
    v.option("enable-force-include-usage", &enable_force_include_usage,
             "usage in every event of every stream");

    v.group("Engine");
    engine.visit(v);
    v.alias("tp", "tensor-parallel-size");

    v.group("Debugging");
    v.option("scripted", &scripted, "replay this file instead of a model (docs/guide/scripted.md)");

    v.group("");
    v.no_effect(
        "attention-backend optimization-level swap-space cpu-offload-gb "
        "prefix-caching-hash-algo mamba-cache-mode mamba-cache-dtype mamba-ssm-cache-dtype "
        "mamba-block-size "
        "limit-mm-per-prompt mm-processor-cache-gb mm-processor-kwargs "
        "mm-encoder-tp-mode speculative-config spec-method spec-model spec-tokens seed "
        "revision tokenizer tokenizer-mode tokenizer-revision download-dir "
        "load-format config-format hf-overrides distributed-executor-backend "
        "pipeline-parallel-size data-parallel-size max-parallel-loading-workers "
        "guided-decoding-backend structured-outputs-config root-path runner convert task",
        /*take_value=*/true);
    v.alias("O", "optimization-level");
    v.alias("pp", "pipeline-parallel-size");
    v.alias("dp", "data-parallel-size");
    v.no_effect(
        "enable-chunked-prefill language-model-only "
        "skip-mm-profiling trust-remote-code disable-custom-all-reduce disable-log-stats "
        "enable-log-requests disable-log-requests disable-uvicorn-access-log enable-log-outputs "
        "enable-expert-parallel async-scheduling disable-hybrid-kv-cache-manager "
        "calculate-kv-scales enable-server-load-tracking disable-fastapi-docs "
        "disable-frontend-multiprocessing",
        /*take_value=*/false);
  }
};

}  // namespace nibble::cli
