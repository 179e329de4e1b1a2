// What `nibble top` shows of a server's /status.json.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace nibble::cli {

// An answer, and the one `seconds` before it for rates: null at first, and after a restart.
struct TopSample {
  Json now;
  Json before;
  double seconds = 0;
};

// A screen: lines of at most 80 columns, without ends. As many for every answer of a ready server.
std::vector<std::string> top_screen(const TopSample& sample, const std::string& url);
// The same in one line, for logs.
std::string top_line(const TopSample& sample);

}  // namespace nibble::cli
