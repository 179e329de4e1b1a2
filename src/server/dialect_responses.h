// OpenAI's Responses API over the same chat requests: input items become messages, the reply
// becomes output items. A small in-memory store keeps responses for previous_response_id.
#pragma once

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "server/answer.h"
#include "server/chat_request.h"

namespace nibble {

struct ResponsesRequest {
  Json chat;                   // the body of /v1/chat/completions it stands for
  Json items;                  // the conversation as input items, earlier responses included
  Json echo = Json::object();  // request fields that the response object repeats
  bool store = true;
};

// Finished responses, the oldest forgotten first. Thread-safe.
class ResponseStore {
 public:
  static constexpr size_t kMaxResponses = 1024;
  static constexpr size_t kMaxBytes = size_t{64} << 20;

  struct Entry {
    Json response;
    Json items;  // conversation up to and including this response
  };
  void put(const std::string& id, Entry entry);
  std::optional<Entry> find(const std::string& id) const;

  // Streams at work, so that POST .../cancel can end them.
  void add_running(const std::string& id, std::function<void()> cancel);
  void remove_running(const std::string& id);
  // False when no such response is at work.
  bool cancel(const std::string& id);

 private:
  struct Stored {
    std::string id;
    Entry entry;
    size_t num_bytes;
  };
  mutable std::mutex mutex_;  // guards the rest
  std::list<Stored> stored_;  // oldest first
  std::map<std::string, std::list<Stored>::iterator> by_id_;
  size_t num_bytes_ = 0;
  std::map<std::string, std::function<void()>> running_;
};

std::optional<ApiError> read_responses_request(const Json& body, const ResponseStore& store,
                                               ResponsesRequest* request);

// `head.id` begins with "resp_". whole() may also be called after a stream's end().
std::unique_ptr<Answer> make_responses_answer(const AnswerHead& head,
                                              const ResponsesRequest& request);

}  // namespace nibble
