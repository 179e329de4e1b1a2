// Content parts become what the template takes, arguments become objects, reasoning gets both of
// its names.
#include "server/prompt_builder.h"

#include "base/format.h"
#include "server/fields.h"

namespace nibble {
namespace {

Result<Json> normalize_content(const Json& content, bool keep_parts) {
  if (content.is_null() || content.is_string()) return content;
  if (!content.is_array())
    return make_error(ErrorCode::kInvalidArgument,
                      "message content must be a string or a list of parts");
  Json parts = Json::array();
  std::string joined;
  for (const Json& part : content) {
    const Json type = part.is_object() ? part.value("type", Json()) : Json();
    if (type == "image_url" || type == "image" || type == "image_embeds" || type == "video_url" ||
        type == "input_audio" || type == "audio_url" || type == "file")
      return make_error(ErrorCode::kInvalidArgument,
                        "content part {}: this model reads text only; nothing was fetched",
                        dump_json(type));
    if (type != "text" || !part.value("text", Json()).is_string())
      return make_error(ErrorCode::kInvalidArgument, "Unsupported chat content part type: {}",
                        dump_json(type));
    const auto& text = part["text"].get_ref<const std::string&>();
    if (!parts.empty()) joined += '\n';
    joined += text;
    parts.push_back({{"type", "text"}, {"text", text}});
  }
  return keep_parts ? parts : Json(joined);
}

Result<Json> normalize_tool_calls(const Json& calls) {
  if (!calls.is_array())
    return make_error(ErrorCode::kInvalidArgument, "tool_calls must be a list");
  Json out = calls;
  for (Json& call : out) {
    const auto function = call.is_object() ? call.find("function") : call.end();
    if (!call.is_object() || function == call.end() || !function->is_object())
      return make_error(ErrorCode::kInvalidArgument, "tool_calls: each needs a function object");
    Json& arguments = (*function)["arguments"];
    if (arguments.is_null()) arguments = Json::object();
    if (!arguments.is_string()) continue;
    const std::string text = arguments.get<std::string>();
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
      arguments = Json::object();
      continue;
    }
    NB_TRY(arguments, parse_request_json(text, "tool_calls.function.arguments"));
  }
  return out;
}

Result<Json> normalize_message(const Json& message, size_t index, bool keep_parts) {
  if (!message.is_object() || !message.value("role", Json()).is_string())
    return make_error(ErrorCode::kInvalidArgument, "messages[{}]: needs a role (a string)", index);
  Json out = message;
  const bool is_tool = message["role"] == "tool";
  if (const auto content = message.find("content"); content != message.end()) {
    NB_TRY(out["content"], normalize_content(*content, keep_parts && !is_tool));
  } else {
    out["content"] = nullptr;
  }
  if (const auto calls = message.find("tool_calls"); calls != message.end()) {
    out.erase("tool_calls");
    if (!calls->is_null() && !calls->empty()) {
      NB_TRY(out["tool_calls"], normalize_tool_calls(*calls));
    }
  }
  Json reasoning = message.value("reasoning", Json());
  if (reasoning.is_null()) reasoning = message.value("reasoning_content", Json());
  if (reasoning.is_string()) {
    out["reasoning"] = reasoning;
    out["reasoning_content"] = reasoning;
  }
  return out;
}

Result<std::string> render(const ServedModel& model, const ChatRequest& request,
                           const Json& variables) {
  if (!request.chat_template.empty()) {
    // A stranger's template gets less time than the model's own.
    NB_TRY(const ChatTemplate own,
           ChatTemplate::parse(request.chat_template, "chat_template", {.max_milliseconds = 1000}));
    return own.render(variables);
  }
  if (model.chat_template) return model.chat_template->render(variables);
  return make_error(ErrorCode::kInvalidArgument,
                    "this model has no chat template: send text to /v1/completions, or serve it "
                    "with --chat-template FILE");
}

}  // namespace

Result<std::string> build_prompt(const ServedModel& model, const ChatRequest& request) {
  Json messages = Json::array();
  for (const Json& message : request.messages) {
    NB_TRY(Json normal, normalize_message(message, messages.size(), model.template_takes_parts));
    messages.push_back(std::move(normal));
  }
  Json variables = request.template_kwargs;
  variables["messages"] = messages;
  variables["add_generation_prompt"] = request.add_generation_prompt;
  if (!request.tools.empty()) variables["tools"] = request.tools;
  if (!request.documents.is_null()) variables["documents"] = request.documents;
  NB_TRY(std::string prompt, render(model, request, variables));
  if (!request.continue_final_message) return prompt;
  // The last message stays open: what the template put behind its text goes.
  const Json& content = messages.back()["content"];
  const std::string text = content.is_string() ? content.get<std::string>() : "";
  const size_t end = text.find_last_not_of(" \t\r\n");
  const size_t at =
      end == std::string::npos ? std::string::npos : prompt.rfind(text.substr(0, end + 1));
  if (at == std::string::npos)
    return make_error(ErrorCode::kInvalidArgument,
                      "continue_final_message: the last message's text is not in the prompt");
  prompt.resize(at + end + 1);
  return prompt;
}

}  // namespace nibble
