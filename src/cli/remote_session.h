// A conversation with a server that speaks OpenAI's chat completions: what `nibble chat URL` uses
// instead of a model of its own.
#pragma once

#include <string>
#include <string_view>

#include "cli/session.h"
#include "net/http_client.h"

namespace nibble::cli {

inline bool is_url(std::string_view text) {
  return text.starts_with("http://") || text.starts_with("https://");
}

class RemoteSession {
 public:
  // `url` with or without /v1; `key` "" for none. Asks for the list of models, so that a wrong
  // address or key is found out here. kInvalidArgument: not a URL of plain http.
  static Result<std::unique_ptr<RemoteSession>> open(const std::string& url, std::string key);

  // As Session::chat().
  Result<Reply> chat(const Json& messages, const GenerateOptions& options,
                     const std::function<bool(const ReplyEvent&)>& on_event);
  const std::string& model() const { return model_; }

 private:
  RemoteSession(const HttpUrl& url, const std::string& key_header);

  HttpClient client_;
  std::string path_;     // before /chat/completions
  std::string headers_;  // whole lines
  std::string model_;
};

}  // namespace nibble::cli
