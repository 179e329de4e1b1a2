// /tokenize and /detokenize.
#include "base/format.h"
#include "server/api_server.h"
#include "server/chat_request.h"
#include "server/prompt_builder.h"

namespace nibble {

void ApiServer::tokenize(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) { reply.send(error_reply(error)); };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  if (!body.is_object())
    return refuse({400, "Bad Request", "the body is not a JSON object", nullptr});
  Fields fields(body);
  bool with_texts = false;
  bool ignored = false;
  std::string model;
  std::string text;
  ChatRequest request;
  fields.text("model", &model);
  fields.flag("return_token_strs", &with_texts);
  fields.flag("add_special_tokens", &ignored);
  const bool is_chat = fields.find("messages") != nullptr;
  if (is_chat)
    read_prompt_fields(fields, options_.defaults, &request);
  else if (!fields.find("prompt"))
    fields.fail(400, "prompt", "prompt or messages: field required (parameter=prompt)");
  else
    fields.text("prompt", &text);
  if (fields.error()) return refuse(*fields.error());
  if (const auto error = check_model(model)) return refuse(*error);
  if (is_chat) {
    Result<std::string> prompt = build_prompt(model_, request);
    if (!prompt) return refuse(to_api_error(prompt.error()));
    text = std::move(*prompt);
  }
  const std::vector<int32_t> ids = model_.tokenizer.encode(text);
  Json texts;
  if (with_texts) {
    texts = Json::array();
    for (const int32_t id : ids) texts.push_back(model_.tokenizer.decode(std::span(&id, 1)));
  }
  reply.send(json_reply({{"count", ids.size()},
                         {"max_model_len", model_.engine->max_model_len()},
                         {"tokens", ids},
                         {"token_strs", texts}}));
}

void ApiServer::detokenize(const HttpRequest& http, HttpReply& reply, const std::string&) {
  const auto refuse = [&](const ApiError& error) { reply.send(error_reply(error)); };
  Json body;
  if (const auto error = read_body(http, &body)) return refuse(*error);
  if (!body.is_object())
    return refuse({400, "Bad Request", "the body is not a JSON object", nullptr});
  Fields fields(body);
  std::string model;
  std::vector<int32_t> ids;
  fields.text("model", &model);
  if (!fields.find("tokens")) fields.fail(400, "tokens", "Field required (parameter=tokens)");
  fields.ids("tokens", &ids, size_t{1} << 22);
  for (const int32_t id : ids)
    if (id >= model_.engine->spec().vocab_size) {
      fields.fail(400, "tokens",
                  format("token id {} is outside the vocabulary of {} (parameter=tokens)", id,
                         model_.engine->spec().vocab_size));
      break;
    }
  if (fields.error()) return refuse(*fields.error());
  if (const auto error = check_model(model)) return refuse(*error);
  reply.send(json_reply({{"prompt", model_.tokenizer.decode(ids)}}));
}

}  // namespace nibble
