// Field by field; nulls are written out in whole completions and left out of chunks.
#include "server/dialect_openai.h"

#include <algorithm>
#include <mutex>
#include <random>

namespace nibble {
namespace {

constexpr float kLogprobFloor = -9999.0f;

void put_reasoning(Json* target, const Json& text, ReasoningField field) {
  if (field != ReasoningField::kReasoningContent) (*target)["reasoning"] = text;
  if (field != ReasoningField::kReasoning) (*target)["reasoning_content"] = text;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

Json token_json(int32_t id, float logprob, const Tokenizer& tokenizer) {
  const std::string_view raw = tokenizer.token_bytes(id);
  Json bytes = Json::array();
  for (const char c : raw) bytes.push_back(static_cast<unsigned char>(c));
  const int32_t ids[] = {id};
  return {{"token", tokenizer.decode(ids)},
          {"logprob", std::max(logprob, kLogprobFloor)},
          {"bytes", bytes}};
}

}  // namespace

void MessageBuilder::take(const ReplyEvent& event) {
  switch (event.kind) {
    case ReplyEvent::Kind::kReasoning:
      reasoning_ += event.text;
      has_reasoning_ = true;
      break;
    case ReplyEvent::Kind::kContent: content_ += event.text; break;
    case ReplyEvent::Kind::kToolCallBegin:
      calls_.push_back({{"id", "chatcmpl-tool-" + random_hex(16)},
                        {"type", "function"},
                        {"function", {{"name", event.name}, {"arguments", ""}}}});
      break;
    case ReplyEvent::Kind::kToolCallArguments:
      calls_.back()["function"]["arguments"].get_ref<std::string&>() += event.text;
      break;
    case ReplyEvent::Kind::kToolCallEnd: break;
  }
}

Json MessageBuilder::message(ReasoningField field, bool include_reasoning, bool parallel) const {
  Json calls = calls_;
  if (!parallel && calls.size() > 1) calls = Json::array({calls[0]});
  const bool no_content = content_.empty() || (has_calls() && is_blank(content_));
  Json out = {{"role", "assistant"}, {"content", no_content ? Json() : Json(content_)},
              {"refusal", nullptr},  {"annotations", nullptr},
              {"audio", nullptr},    {"function_call", nullptr},
              {"tool_calls", calls}};
  put_reasoning(&out, include_reasoning && has_reasoning_ ? Json(reasoning_) : Json(), field);
  return out;
}

Json stream_delta(const ReplyEvent& event, ReasoningField field, bool include_reasoning,
                  bool parallel) {
  Json delta = Json::object();
  if (event.call_index > 0 && !parallel) return nullptr;
  switch (event.kind) {
    case ReplyEvent::Kind::kReasoning:
      if (!include_reasoning || event.text.empty()) return nullptr;
      put_reasoning(&delta, event.text, field);
      return delta;
    case ReplyEvent::Kind::kContent:
      if (event.text.empty()) return nullptr;
      return {{"content", event.text}};
    case ReplyEvent::Kind::kToolCallBegin:
      delta["tool_calls"] =
          Json::array({{{"index", event.call_index},
                        {"id", "call_" + random_hex(24)},
                        {"type", "function"},
                        {"function", {{"name", event.name}, {"arguments", ""}}}}});
      return delta;
    case ReplyEvent::Kind::kToolCallArguments:
      delta["tool_calls"] =
          Json::array({{{"index", event.call_index}, {"function", {{"arguments", event.text}}}}});
      return delta;
    case ReplyEvent::Kind::kToolCallEnd: return nullptr;
  }
  return nullptr;
}

Json logprob_entry(const TokenEvent& event, const Tokenizer& tokenizer, int num_top) {
  Json entry = token_json(event.token, event.logprob, tokenizer);
  // The chosen token first, then the most likely ones without it.
  Json top = Json::array();
  if (num_top > 0) top.push_back(entry);
  for (const TokenLogprob& other : event.top_logprobs) {
    if (static_cast<int>(top.size()) >= num_top) break;
    if (other.token != event.token)
      top.push_back(token_json(other.token, other.logprob, tokenizer));
  }
  entry["top_logprobs"] = top;
  return entry;
}

std::string finish_name(FinishReason reason, bool has_calls) {
  if (reason == FinishReason::kAbort || reason == FinishReason::kTimeout) return "abort";
  if (reason == FinishReason::kRepetition) return "repetition";
  if (has_calls) return "tool_calls";
  return reason == FinishReason::kLength ? "length" : "stop";
}

Json usage_json(const TokenUsage& usage) {
  return {{"prompt_tokens", usage.num_prompt_tokens},
          {"total_tokens", usage.num_prompt_tokens + usage.num_completion_tokens},
          {"completion_tokens", usage.num_completion_tokens},
          {"prompt_tokens_details", nullptr}};
}

Json completion(const AnswerHead& head, Json choices, const TokenUsage& usage) {
  return {{"id", head.id},
          {"object", "chat.completion"},
          {"created", head.created},
          {"model", head.model},
          {"choices", std::move(choices)},
          {"service_tier", nullptr},
          {"system_fingerprint", nullptr},
          {"usage", usage_json(usage)},
          {"prompt_logprobs", nullptr},
          {"prompt_token_ids", nullptr},
          {"kv_transfer_params", nullptr}};
}

Json chunk(const AnswerHead& head, int index, Json delta, const Json& logprobs,
           const Json& finish_reason) {
  return {{"id", head.id},
          {"object", "chat.completion.chunk"},
          {"created", head.created},
          {"model", head.model},
          {"choices", Json::array({{{"index", index},
                                    {"delta", std::move(delta)},
                                    {"logprobs", logprobs},
                                    {"finish_reason", finish_reason}}})}};
}

Json usage_chunk(const AnswerHead& head, const TokenUsage& usage) {
  return {{"id", head.id},       {"object", "chat.completion.chunk"}, {"created", head.created},
          {"model", head.model}, {"choices", Json::array()},          {"usage", usage_json(usage)}};
}

std::string random_hex(int num_digits) {
  static std::mutex mutex;
  static std::mt19937_64 random{std::random_device{}()};
  std::lock_guard lock(mutex);
  std::string out;
  for (int i = 0; i < num_digits; ++i) out += "0123456789abcdef"[random() % 16];
  return out;
}

}  // namespace nibble
