// nibble chat MODEL: a conversation in the terminal, streamed; with a model of its own or, given a
// URL, with a running server.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>

#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"
#include "cli/remote_session.h"
#include "cli/session.h"

namespace nibble::cli {
namespace {

struct ChatFlags {
  std::string model;
  std::string system;
  GenerateOptions generate;
  int max_model_len = 0;
  std::string device = "auto";
  std::string dtype = "auto";
  int num_threads = 0;
  std::string api_key;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory, or http://HOST:PORT of a server");
    v.option("system", &system, "system message");
    generate.visit(v);
    v.option("max-model-len", &max_model_len, "context, 0 for what fits");
    v.option("device", &device, "what computes", {"auto", "cpu", "cuda", "reference"});
    v.option("dtype", &dtype, "of activations");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("api-key", &api_key, "of the server");
    v.environment("api-key", "OPENAI_API_KEY");
    v.secret("api-key");
  }
};

volatile std::sig_atomic_t interrupted = 0;

}  // namespace

int chat(Arguments arguments) {
  ChatFlags flags;
  OptionSet set("nibble chat", "talk to a model in the terminal");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  set_log_level(LogLevel::kWarning);
  EngineOptions options;
  options.max_num_seqs = 1;
  options.max_model_len = flags.max_model_len;
  options.device = flags.device;
  options.dtype = flags.dtype;
  options.num_threads = flags.num_threads;
  std::unique_ptr<Session> session;
  std::unique_ptr<RemoteSession> remote;
  if (is_url(flags.model)) {
    Result<std::unique_ptr<RemoteSession>> opened = RemoteSession::open(flags.model, flags.api_key);
    if (!opened) return fail(opened.error());
    remote = std::move(*opened);
  } else {
    Result<std::unique_ptr<Session>> opened = Session::open(flags.model, options);
    if (!opened) return fail(opened.error());
    session = std::move(*opened);
  }
  const auto ask = [&](const Json& history, const std::function<bool(const ReplyEvent&)>& show) {
    return remote ? remote->chat(history, flags.generate, show)
                  : session->chat(history, Json::array(), flags.generate, show);
  };

  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  const bool colour = ::isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  // Ctrl-C ends the answer, not the program; at the prompt it ends the program.
  struct sigaction on_interrupt {};
  on_interrupt.sa_handler = [](int) { interrupted = 1; };
  ::sigaction(SIGINT, &on_interrupt, nullptr);  // without SA_RESTART: a read at the prompt fails
  if (terminal) std::puts("/clear starts over, /exit or Ctrl-D ends.");

  Json history = Json::array();
  const auto start_over = [&] {
    history = Json::array();
    if (!flags.system.empty()) history.push_back({{"role", "system"}, {"content", flags.system}});
  };
  start_over();
  std::string line;
  while (true) {
    if (terminal) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line) || line == "/exit") break;
    if (line.empty()) continue;
    if (line == "/clear") {
      start_over();
      continue;
    }
    history.push_back({{"role", "user"}, {"content", line}});
    interrupted = 0;
    bool in_reasoning = false;
    const Result<Reply> reply = ask(history, [&](const ReplyEvent& event) {
      const bool reasoning = event.kind == ReplyEvent::Kind::kReasoning;
      if (colour && reasoning != in_reasoning)
        std::fputs(reasoning ? "\033[2m" : "\033[0m", stdout);
      if (!reasoning && in_reasoning) std::puts("");
      in_reasoning = reasoning;
      std::fputs(event.text.c_str(), stdout);
      std::fflush(stdout);
      return interrupted == 0;
    });
    if (colour) std::fputs("\033[0m", stdout);
    std::puts("");
    if (!reply) {
      history.erase(history.size() - 1);
      fail(reply.error());
      continue;
    }
    if (reply->cut) std::fputs("(cut by --max-tokens)\n", stderr);
    history.push_back({{"role", "assistant"}, {"content", reply->content}});
  }
  return 0;
}

}  // namespace nibble::cli
