// One JSON line per finished request: id, client, route, status, reason, tokens, times. No text of
// prompts or answers. Thread-safe.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "net/http_server.h"

namespace nibble {

class AccessLog {
 public:
  // Appends to `path`; "-" is stdout, "" no log at all. kIo names the path.
  static Result<std::unique_ptr<AccessLog>> open(const std::string& path);
  ~AccessLog();

  struct Entry {
    std::string client;
    std::string method;
    std::string route;  // the path, cut to 128 bytes
    int status = 0;     // 499: the client left before an answer
    double ms = 0;
    size_t bytes = 0;                          // of the answer's body
    std::map<std::string, std::string> notes;  // what the handler said through HttpReply::note
  };
  void write(const Entry& entry);
  bool enabled() const { return file_ != nullptr; }
  // Opens the file anew, for log rotation; on failure the old one stays.
  void reopen();

 private:
  std::string path_;
  std::mutex mutex_;
  std::FILE* file_ = nullptr;
};

}  // namespace nibble
