// Who may ask, and how much at once: API keys, and a cap on the requests a client has at work.
// Thread-safe.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/http_server.h"

namespace nibble {

struct GuardOptions {
  std::string api_key_file;
  int max_requests_per_client = 0;  // 0: no cap

  template <class V>
  void visit(V& v) {
    v.option("api-key-file", &api_key_file, "file with keys, one a line; # starts a comment");
    v.option("max-requests-per-client", &max_requests_per_client,
             "requests a key (or address) may have at work; more get 429; 0: no cap");
  }
};

class Guard {
 public:
  // A client's place among its requests at work, given back at destruction. Never outlives the
  // guard.
  class Pass {
   public:
    Pass(Pass&& other) noexcept : guard_(other.guard_), client_(std::move(other.client_)) {
      other.guard_ = nullptr;
    }
    Pass& operator=(Pass&&) = delete;
    ~Pass() {
      if (guard_) guard_->leave(client_);
    }
    const std::string& client() const { return client_; }

   private:
    friend class Guard;
    Pass(Guard* guard, std::string client) : guard_(guard), client_(std::move(client)) {}
    Guard* guard_;
    std::string client_;
  };

  // `keys` and those of the key file; none at all: everybody may. kInvalidArgument: a file that
  // cannot be read or has no key, or an empty key.
  static Result<std::unique_ptr<Guard>> create(GuardOptions options, std::vector<std::string> keys);

  bool has_keys() const { return !keys_.empty(); }
  // What may be seen without a key: health, metrics and the page itself, nothing of the model's.
  static bool is_open(std::string_view path);
  // "key-" and eight hex digits of the key's hash, or the address where no keys are set; nullopt:
  // no valid key. The comparison's time does not depend on where two keys differ.
  std::optional<std::string> identify(const HttpRequest& request) const;
  // A place for one request of the client; nullopt: it has too many at work.
  std::optional<Pass> enter(const std::string& client);

 private:
  struct Key {
    std::string secret;
    std::string name;
  };
  void leave(const std::string& client);

  GuardOptions options_;
  std::vector<Key> keys_;
  std::mutex mutex_;
  std::map<std::string, int> at_work_;  // no entry: 0
};

}  // namespace nibble
