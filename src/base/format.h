// format("{} of {}", a, b): the doorkeeper of fmt, and Errors made from it. Host code only.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <concepts>
#include <string>
#include <utility>

#include "base/result.h"

namespace nibble {

using fmt::format;
using fmt::join;

template <class... Args>
Error make_error(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return Error{code, fmt::format(text, std::forward<Args>(args)...)};
}

// 12.3 MiB, 4.0 GiB: for people; machines get plain byte counts.
std::string format_bytes(double bytes);
template <std::integral T>
std::string format_bytes(T bytes) {
  return format_bytes(static_cast<double>(bytes));
}

}  // namespace nibble
