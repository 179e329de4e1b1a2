// nibble top [URL]: a running server in the terminal; where the output is no terminal, a line now
// and then.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "base/format.h"
#include "cli/command.h"
#include "cli/top_view.h"
#include "net/http_client.h"

namespace nibble::cli {
namespace {

struct TopFlags {
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;
  int interval_s = 0;
  int count = 0;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("URL", &url, "of the server, http://127.0.0.1:8000 by itself", false);
    v.option("api-key", &api_key, "of the server");
    v.environment("api-key", "VLLM_API_KEY");
    v.environment("api-key", "OPENAI_API_KEY");
    v.secret("api-key");
    v.option("interval", &interval_s, "seconds between two looks, 0: 1 in a terminal, else 30",
             {.low = 0});
    v.option("count", &count, "looks to take, 0 for no end", {.low = 0});
    v.option("json", &json, "print each answer as a line of JSON");
  }
};

class Watcher {
 public:
  static Result<std::unique_ptr<Watcher>> open(const TopFlags& flags) {
    NB_TRY(const HttpUrl url, parse_http_url(flags.url));
    NB_TRY(std::string headers, bearer_header(flags.api_key));
    return std::unique_ptr<Watcher>(new Watcher(url, std::move(headers)));
  }

  Result<TopSample> look() {
    NB_TRY(const HttpAnswer answer, client_.request("GET", "/status.json", headers_, ""));
    if (answer.status == 401)
      return make_error(ErrorCode::kInvalidArgument,
                        "the server wants a key: --api-key, or VLLM_API_KEY");
    if (answer.status != 200)
      return make_error(ErrorCode::kIo, "/status.json answers {}: not a nibble server?",
                        answer.status);
    TopSample sample;
    NB_TRY(sample.now, parse_json(answer.body, "/status.json"));
    if (!sample.now.is_object())
      return make_error(ErrorCode::kIo, "/status.json is no object: not a nibble server?");
    const auto at = std::chrono::steady_clock::now();
    sample.before = std::move(last_);
    sample.seconds = std::chrono::duration<double>(at - last_at_).count();
    last_ = sample.now;
    last_at_ = at;
    return sample;
  }

 private:
  Watcher(const HttpUrl& url, std::string headers)
      : client_(url.host, url.port, std::chrono::seconds(5)), headers_(std::move(headers)) {}

  HttpClient client_;
  std::string headers_;
  Json last_;
  std::chrono::steady_clock::time_point last_at_;
};

// Draws over what it drew before.
class Screen {
 public:
  void draw(const std::vector<std::string>& lines) {
    std::string text;
    if (height_ > 0) text = format("\x1b[{}A", height_);
    for (const std::string& line : lines) text += line + "\x1b[K\n";
    text += "\x1b[J";
    height_ = lines.size();
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  size_t height_ = 0;
};

}  // namespace

int top(Arguments arguments) {
  TopFlags flags;
  OptionSet set("nibble top", "a running server in the terminal");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<std::unique_ptr<Watcher>> watcher = Watcher::open(flags);
  if (!watcher) return fail(watcher.error());
  const bool live = ::isatty(STDOUT_FILENO) != 0 && !flags.json;
  const std::chrono::seconds interval(flags.interval_s > 0 ? flags.interval_s : live ? 1 : 30);
  Screen screen;
  for (int i = 0; flags.count == 0 || i < flags.count; ++i) {
    if (i > 0) std::this_thread::sleep_for(interval);
    const Result<TopSample> sample = (*watcher)->look();
    if (!sample && sample.error().code == ErrorCode::kInvalidArgument) return fail(sample.error());
    if (!sample && i == 0)
      return fail(make_error(sample.error().code, "{}; is a server running there? (nibble serve)",
                             sample.error().message));
    if (!sample) {  // it may come back
      const std::string line = "no answer: " + sample.error().message;
      live ? screen.draw({line}) : static_cast<void>(std::printf("%s\n", line.c_str()));
    } else if (flags.json) {
      std::printf("%s\n", dump_json(sample->now).c_str());
    } else if (live) {
      screen.draw(top_screen(*sample, flags.url));
    } else {
      std::printf("%s\n", top_line(*sample).c_str());
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace nibble::cli
