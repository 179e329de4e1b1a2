// Whether a sanitizer is built in: it has an operator new of its own, keeps freed memory, and makes
// everything several times as dear.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NIBBLE_SANITIZED 1
#else
#define NIBBLE_SANITIZED 0
#endif

namespace nibble::test {

inline constexpr bool kSanitized = NIBBLE_SANITIZED != 0;

}  // namespace nibble::test
