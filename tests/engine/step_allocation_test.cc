// The engine makes no heap allocation while it decodes: operator new is counted over 1000 steps.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/engine.h"
#include "support/golden_file.h"
#include "support/sanitized.h"

namespace {
std::atomic<int64_t> g_allocations{0};
}  // namespace

#if !NIBBLE_SANITIZED
void* operator new(size_t bytes) {
  ++g_allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new[](size_t bytes) {
  return operator new(bytes);
}
// The pair is ours on both sides; the compiler, inlining one of them, takes it for a mismatch.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  operator delete(memory);
}
void operator delete(void* memory, size_t) noexcept {
  operator delete(memory);
}
void operator delete[](void* memory, size_t) noexcept {
  operator delete(memory);
}
#endif

namespace nibble {
namespace {

TEST(StepAllocation, AThousandDecodeStepsAllocateNothing) {
  if (test::kSanitized) GTEST_SKIP() << "allocations are the sanitizer's";
  const ModelDir dir = ModelDir::open(test::golden("fixtures/qwen3_5-dense")).value();
  // One thread: threads of the pool make their scratch when they first get work, whenever that is.
  const auto engine =
      Engine::start(dir, {.num_threads = 1, .max_model_len = 2048, .max_num_seqs = 4}).value();
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (int i = 0; i < 3; ++i) {
    Request request;
    request.prompt = {1, 2, 3 + i};
    request.max_tokens = 1400;
    request.sampling.temperature = 0;
    handles.push_back(engine->submit(std::move(request)).value());
  }
  const auto step_all = [&](int count) {
    for (int i = 0; i < count; ++i)
      for (const auto& handle : handles) ASSERT_GE(handle->next().token, 0);
  };
  step_all(200);  // whatever grows once has grown
  const int64_t before = g_allocations;
  const int64_t steps_before = engine->stats().num_steps;
  const int64_t stats_cost = g_allocations - before;  // of this thread's own call
  const int64_t start = g_allocations;
  step_all(1000);
  EXPECT_EQ(g_allocations - start, 0);
  EXPECT_GE(engine->stats().num_steps - steps_before, 990);
  EXPECT_LE(stats_cost, 2);
}

}  // namespace
}  // namespace nibble
