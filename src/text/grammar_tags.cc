// Free text is "until": any bytes that hold no trigger, then what the trigger begins, then free
// text again.
#include "text/grammar_tags.h"

#include <algorithm>

#include "base/format.h"
#include "text/grammar_json.h"
#include "text/grammar_regex.h"
#include "text/grammar_schema.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxCalls = 32;

Error error(const std::string& path, std::string_view what) {
  return make_error(ErrorCode::kInvalidArgument, "{}: {}", path, what);
}

Result<std::string> text_of(const Json& object, const char* key, const std::string& path) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || it == object.end() || !it->is_string())
    return error(format("{}.{}", path, key), "must be a string");
  return it->get<std::string>();
}

Result<const Json*> list_of(const Json& object, const char* key, const std::string& path) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || it == object.end() || !it->is_array() || it->empty())
    return error(format("{}.{}", path, key), "must be a list with at least one item");
  return &*it;
}

Result<std::vector<std::string>> texts_of(const Json& object, const char* key,
                                          const std::string& path) {
  NB_TRY(const Json* list, list_of(object, key, path));
  std::vector<std::string> texts;
  for (const Json& item : *list) {
    if (!item.is_string() || item.get<std::string>().empty())
      return error(format("{}.{}", path, key), "must hold texts that are not empty");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

class TagGrammar {
 public:
  TagGrammar(const GrammarOptions& options, GrammarRules* rules) : options_(options), r_(*rules) {}

  Result<ExprId> json_value(const Json& schema, const std::string& path) {
    SchemaGrammar builder(schema, options_, &r_);
    return builder.value(path);
  }

  // What comes after a trigger: the rest of each tag that begins with it.
  struct Tag {
    std::string begin;
    ExprId rest;  // content and end
  };
  Result<ExprId> triggered(const std::vector<std::string>& triggers, const std::vector<Tag>& tags,
                           bool at_least_one, bool only_one, const std::string& path) {
    for (const Tag& tag : tags)
      if (std::ranges::none_of(triggers,
                               [&](const std::string& t) { return tag.begin.starts_with(t); }))
        return error(path, format("the tag \"{}\" begins with none of the triggers", tag.begin));
    // The text after a tag: free again, or over.
    const RuleId more = r_.add_rule("text and tags");
    const ExprId after = only_one ? r_.empty() : r_.call(more);
    std::vector<ExprId> parts;
    for (const std::string& trigger : triggers) {
      std::vector<ExprId> choices;
      for (const Tag& tag : tags)
        if (tag.begin.starts_with(trigger))
          choices.push_back(r_.sequence(
              {r_.bytes(std::string_view(tag.begin).substr(trigger.size())), tag.rest, after}));
      parts.push_back(r_.choice(std::move(choices)));
    }
    r_.define(more, r_.until(triggers, parts, {}, /*may_end=*/true));
    if (!at_least_one) return r_.call(more);
    return r_.until(triggers, parts, {}, /*may_end=*/false);
  }

  Result<ExprId> legacy(const Json& tag, const std::string& path) {
    NB_TRY(const Json* structures, list_of(tag, "structures", path));
    NB_TRY(const std::vector<std::string> triggers, texts_of(tag, "triggers", path));
    std::vector<Tag> tags;
    for (size_t i = 0; i < structures->size(); ++i) {
      const Json& s = (*structures)[i];
      const std::string place = format("{}.structures[{}]", path, i);
      NB_TRY(const std::string begin, text_of(s, "begin", place));
      NB_TRY(const std::string end, text_of(s, "end", place));
      if (!s.contains("schema")) return error(place + ".schema", "is missing");
      NB_TRY(const ExprId body, json_value(s["schema"], place + ".schema"));
      tags.push_back({begin, r_.sequence({body, r_.bytes(end)})});
    }
    return triggered(triggers, tags, false, false, path);
  }

  // `end`: what follows, for text that runs up to it.
  Result<ExprId> format_of(const Json& f, const std::string& end, const std::string& path,
                           int depth) {
    if (depth > kMaxDepth) return error(path, format("nested deeper than {}", kMaxDepth));
    NB_TRY(const std::string type, text_of(f, "type", path));
    const auto closed = [&](ExprId expr) { return r_.sequence({expr, r_.bytes(end)}); };
    if (type == "const_string") {
      NB_TRY(const std::string text, text_of(f, "value", path));
      return closed(r_.bytes(text));
    }
    if (type == "json_schema" || type == "qwen_xml_parameter") {
      if (!f.contains("json_schema")) return error(path + ".json_schema", "is missing");
      if (type == "json_schema") {
        NB_TRY(const ExprId body, json_value(f["json_schema"], path + ".json_schema"));
        return closed(body);
      }
      SchemaGrammar builder(f["json_schema"], options_, &r_);
      NB_TRY(const ExprId body, builder.qwen_parameters(path + ".json_schema"));
      return closed(body);
    }
    if (type == "regex") {
      NB_TRY(const std::string pattern, text_of(f, "pattern", path));
      const Result<ExprId> body = parse_grammar_regex(pattern, {}, &r_);
      if (!body) return error(path + ".pattern", body.error().message);
      return closed(*body);
    }
    if (type == "any_text") {
      if (end.empty()) return r_.until({}, {}, {}, /*may_end=*/true);
      return r_.until({end}, {r_.empty()}, {}, /*may_end=*/false);
    }
    if (type == "sequence" || type == "or") {
      NB_TRY(const Json* elements, list_of(f, "elements", path));
      std::vector<ExprId> parts;
      for (size_t i = 0; i < elements->size(); ++i) {
        // Only the last of a sequence meets the end.
        const bool meets_end = type == "or" || i + 1 == elements->size();
        NB_TRY(const ExprId part, format_of((*elements)[i], meets_end ? end : "",
                                            format("{}.elements[{}]", path, i), depth + 1));
        parts.push_back(part);
      }
      return type == "or" ? r_.choice(std::move(parts)) : r_.sequence(std::move(parts));
    }
    if (type == "tag") {
      NB_TRY(const Tag tag, tag_of(f, path, depth));
      return closed(r_.sequence({r_.bytes(tag.begin), tag.rest}));
    }
    if (type != "triggered_tags" && type != "tags_with_separator")
      return make_error(ErrorCode::kUnsupported,
                        "{}.type: \"{}\" is not supported; use const_string, json_schema, "
                        "qwen_xml_parameter, regex, any_text, sequence, or, tag, triggered_tags or "
                        "tags_with_separator",
                        path, type);
    NB_TRY(const Json* list, list_of(f, "tags", path));
    std::vector<Tag> tags;
    for (size_t i = 0; i < list->size(); ++i) {
      NB_TRY(Tag tag, tag_of((*list)[i], format("{}.tags[{}]", path, i), depth));
      tags.push_back(std::move(tag));
    }
    const bool at_least_one = f.value("at_least_one", Json()) == true;
    const bool only_one = f.value("stop_after_first", Json()) == true;
    if (type == "triggered_tags") {
      NB_TRY(const std::vector<std::string> triggers, texts_of(f, "triggers", path));
      NB_TRY(const ExprId body, triggered(triggers, tags, at_least_one, only_one, path));
      return closed(body);
    }
    NB_TRY(const std::string separator, text_of(f, "separator", path));
    std::vector<ExprId> choices;
    for (const Tag& tag : tags) choices.push_back(r_.sequence({r_.bytes(tag.begin), tag.rest}));
    const ExprId one = r_.call_new("tag", r_.choice(std::move(choices)));
    ExprId body =
        only_one ? one
                 : r_.sequence({one, r_.repeat(r_.sequence({r_.bytes(separator), one}), 0, -1)});
    if (!at_least_one) body = r_.optional(body);
    return closed(body);
  }

  Result<ExprId> tool_calls(const Json& tools, ToolCallStyle style, bool parallel) {
    std::vector<ExprId> calls;
    for (size_t i = 0; i < tools.size(); ++i) {
      const std::string path = format("tools[{}].function", i);
      const Json& tool = tools[i];
      const auto function = tool.is_object() ? tool.find("function") : tool.end();
      if (!tool.is_object() || function == tool.end() || !function->is_object())
        return error(path, "must be an object");
      NB_TRY(const std::string name, text_of(*function, "name", path));
      if (name.empty() || name.find_first_of("<>\n") != std::string::npos)
        return error(path + ".name", format("\"{}\" cannot be written in a tag", name));
      Json parameters = function->value("parameters", Json());
      // Absent, or {}: any arguments.
      const bool free = parameters.is_null() || parameters == true ||
                        (parameters.is_object() && parameters.empty()) ||
                        function->value("strict", Json()) == false;
      if (free) parameters = Json::object();
      if (!parameters.is_object()) return error(path + ".parameters", "must be an object");
      SchemaGrammar builder(parameters, options_, &r_);
      if (style == ToolCallStyle::kQwenXml) {
        NB_TRY(const ExprId body, builder.qwen_parameters(path + ".parameters"));
        calls.push_back(
            r_.sequence({r_.bytes("<function=" + name + ">\n"), body, r_.bytes("</function>")}));
      } else {
        ExprId body;
        if (free) {
          body = JsonGrammar(options_, &r_).any_object();
        } else {
          NB_TRY(body, builder.value(path + ".parameters"));
        }
        calls.push_back(
            r_.sequence({r_.bytes("{\"name\": " + dump_json(Json(name)) + ", \"arguments\": "),
                         body, r_.bytes("}")}));
      }
    }
    const ExprId one = r_.call_new(
        "tool call",
        r_.sequence({r_.bytes("<tool_call>\n"), r_.choice(calls), r_.bytes("\n</tool_call>")}));
    // A model that has just closed its reasoning goes on after a blank line.
    const ExprId blank = r_.repeat(r_.bytes("\n"), 0, 2);
    if (!parallel) return r_.sequence({blank, one});
    return r_.sequence(
        {blank, one, r_.repeat(r_.sequence({r_.bytes("\n"), one}), 0, kMaxCalls - 1)});
  }

 private:
  Result<Tag> tag_of(const Json& tag, const std::string& path, int depth) {
    NB_TRY(const std::string begin, text_of(tag, "begin", path));
    NB_TRY(const std::string end, text_of(tag, "end", path));
    if (begin.empty()) return error(path + ".begin", "must not be empty");
    if (!tag.contains("content")) return error(path + ".content", "is missing");
    NB_TRY(const ExprId rest, format_of(tag["content"], end, path + ".content", depth + 1));
    return Tag{begin, rest};
  }

  const GrammarOptions& options_;
  GrammarRules& r_;
};

}  // namespace

Result<ExprId> parse_structural_tag(const Json& tag, const GrammarOptions& options,
                                    GrammarRules* rules) {
  const std::string path = "structural_tag";
  if (!tag.is_object()) return error(path, "must be an object");
  TagGrammar grammar(options, rules);
  if (tag.contains("format")) return grammar.format_of(tag["format"], "", path + ".format", 0);
  return grammar.legacy(tag, path);
}

Result<ExprId> tool_calls_expr(const Json& tools, ToolCallStyle style, bool parallel,
                               const GrammarOptions& options, GrammarRules* rules) {
  if (!tools.is_array() || tools.empty())
    return error("tools", "must be a list with at least one tool");
  return TagGrammar(options, rules).tool_calls(tools, style, parallel);
}

}  // namespace nibble
