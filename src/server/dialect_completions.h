// POST /v1/completions: prompts of text or token ids in every form, and the answers.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "server/answer.h"
#include "server/generation.h"
#include "server/generation_request.h"
#include "text/tokenizer.h"

namespace nibble {

struct CompletionRequest : GenerationRequest {
  std::vector<std::string> texts;               // the prompts as text...
  std::vector<std::vector<int32_t>> token_ids;  // ...or as ids; one of the two is empty
};

// Checks ids against `vocab_size`. Returns the first error.
std::optional<ApiError> parse_completion_request(const Json& body, const RequestDefaults& defaults,
                                                 int32_t vocab_size, CompletionRequest* request);

// Choice i of prompt p has number p * n + i. `request`, `prompts` and `tokenizer` must outlive the
// answer.
std::unique_ptr<Answer> make_completion_answer(const AnswerHead& head,
                                               const CompletionRequest& request,
                                               const std::vector<Prompt>& prompts,
                                               const Tokenizer& tokenizer);

}  // namespace nibble
