// nibble run MODEL -p TEXT: one answer on stdout; reasoning and figures on stderr.
#include <unistd.h>

#include <cstdio>

#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/session.h"

namespace nibble::cli {
namespace {

struct RunFlags {
  std::string model;
  std::string prompt;
  std::string system;
  std::string tools;
  GenerateOptions generate;
  int max_model_len = 0;
  std::string device = "auto";
  std::string dtype = "auto";
  int num_threads = 0;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory");
    v.option("prompt", &prompt, "what to ask; - reads standard input");
    v.alias("p", "prompt");
    v.option("system", &system, "system message");
    v.option("tools", &tools, "JSON file with a list of OpenAI tool objects");
    generate.visit(v);
    v.option("max-model-len", &max_model_len, "context, 0 for what fits");
    v.option("device", &device, "what computes", {"auto", "cpu", "cuda", "reference"});
    v.option("dtype", &dtype, "of activations");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("json", &json, "print JSON");
  }
};

std::string read_standard_input() {
  std::string text;
  char buffer[4096];
  for (size_t got = 0; (got = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;)
    text.append(buffer, got);
  return text;
}

Result<Reply> answer(const RunFlags& flags) {
  if (flags.prompt.empty())
    return make_error(ErrorCode::kInvalidArgument, "nibble run: --prompt is missing; give -p TEXT");
  Json tools = Json::array();
  if (!flags.tools.empty()) {
    NB_TRY(const std::string text, read_file(flags.tools, size_t{16} << 20));
    NB_TRY(tools, parse_json(text, flags.tools));
    if (!tools.is_array())
      return make_error(ErrorCode::kInvalidArgument, "{}: not a list of tools", flags.tools);
  }
  Json messages = Json::array();
  if (!flags.system.empty()) messages.push_back({{"role", "system"}, {"content", flags.system}});
  const std::string prompt = flags.prompt == "-" ? read_standard_input() : flags.prompt;
  messages.push_back({{"role", "user"}, {"content", prompt}});

  EngineOptions options;
  options.max_num_seqs = 1;
  options.max_model_len = flags.max_model_len;
  options.device = flags.device;
  options.dtype = flags.dtype;
  options.num_threads = flags.num_threads;
  NB_TRY(const std::unique_ptr<Session> session, Session::open(flags.model, options));
  const bool stream = !flags.json;
  const bool dim = ::isatty(STDERR_FILENO) != 0;
  return session->chat(messages, tools, flags.generate, [&](const ReplyEvent& event) {
    if (!stream) return true;
    if (event.kind == ReplyEvent::Kind::kReasoning)
      std::fprintf(stderr, dim ? "\033[2m%s\033[0m" : "%s", event.text.c_str());
    if (event.kind == ReplyEvent::Kind::kContent) {
      std::fputs(event.text.c_str(), stdout);
      std::fflush(stdout);
    }
    return true;
  });
}

}  // namespace

int run(Arguments arguments) {
  RunFlags flags;
  OptionSet set("nibble run", "answer one prompt");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  set_log_level(LogLevel::kWarning);
  const Result<Reply> reply = answer(flags);
  if (!reply) return fail(reply.error());
  if (flags.json) {
    std::puts(dump_json({{"reasoning", reply->reasoning},
                         {"content", reply->content},
                         {"tool_calls", reply->tool_calls},
                         {"prompt_tokens", reply->num_prompt_tokens},
                         {"completion_tokens", reply->num_tokens},
                         {"finish_reason", reply->cut ? "length" : "stop"}})
                  .c_str());
    return 0;
  }
  for (const Json& call : reply->tool_calls)
    std::printf("%s(%s)\n", call["name"].get<std::string>().c_str(),
                call["arguments"].get<std::string>().c_str());
  if (!reply->content.empty() && !reply->content.ends_with('\n')) std::puts("");
  std::fprintf(stderr, "%d prompt tokens, %d generated, %.1f tokens/s%s\n",
               reply->num_prompt_tokens, reply->num_tokens, reply->num_tokens / reply->seconds,
               reply->cut ? ", cut by --max-tokens" : "");
  return 0;
}

}  // namespace nibble::cli
