// Checks a JSON value against the part of JSON Schema that sweeps/schema/ uses: type, const, enum,
// required, properties, patternProperties, additionalProperties, items, minItems, maxItems,
// minimum, maximum, pattern, allOf, anyOf, if/then/else, $ref to #/$defs. A keyword that is none of
// these is itself a problem, so that no schema promises what nobody checks.
#pragma once

#include <regex>
#include <string>
#include <vector>

#include "core/files.h"
#include "core/json.h"

namespace saesweep::test {

class JsonSchemaCheck {
 public:
  // Empty if `value` keeps the schema; else a line a problem, "rows[3].state: ...".
  static std::vector<std::string> problems(const Json& value, const Json& schema) {
    JsonSchemaCheck check(schema);
    check.visit(value, schema, "$");
    return check.problems_;
  }
  // sweeps/schema/<name>.schema.json
  static Json schema(const std::string& name) {
    const auto text =
        read_file(std::string(SAESWEEP_SOURCE_DIR) + "/sweeps/schema/" + name + ".schema.json");
    return parse_json(text.value()).value();
  }

 private:
  explicit JsonSchemaCheck(const Json& root) : root_(root) {}

  // Of a part of the same schema.
  bool keeps(const Json& value, const Json& part) const {
    JsonSchemaCheck check(root_);
    check.visit(value, part, "$");
    return check.problems_.empty();
  }

  void visit(const Json& value, const Json& schema, const std::string& where) {
    if (schema.is_boolean()) {
      if (!schema.get<bool>()) problem(where, "not allowed");
      return;
    }
    for (const auto& [keyword, rule] : schema.items()) {
      if (keyword == "type") {
        check_type(value, rule, where);
      } else if (keyword == "const") {
        if (value != rule) problem(where, value.dump() + " is not " + rule.dump());
      } else if (keyword == "enum") {
        if (std::find(rule.begin(), rule.end(), value) == rule.end())
          problem(where, value.dump() + " is not in " + rule.dump());
      } else if (keyword == "required") {
        for (const Json& name : rule)
          if (value.is_object() && !value.contains(name.get<std::string>()))
            problem(where, "lacks " + name.dump());
      } else if (keyword == "minimum") {
        if (value.is_number() && value < rule) problem(where, value.dump() + " is too small");
      } else if (keyword == "maximum") {
        if (value.is_number() && value > rule) problem(where, value.dump() + " is too large");
      } else if (keyword == "pattern") {
        if (value.is_string() && !matches(value.get<std::string>(), rule))
          problem(where, value.dump() + " does not match " + rule.dump());
      } else if (keyword == "items") {
        for (std::size_t i = 0; value.is_array() && i < value.size(); ++i)
          visit(value[i], rule, where + "[" + std::to_string(i) + "]");
      } else if (keyword == "allOf") {
        for (const Json& part : rule) visit(value, part, where);
      } else if (keyword == "if") {
        const char* branch = keeps(value, rule) ? "then" : "else";
        if (schema.contains(branch)) visit(value, schema[branch], where);
      } else if (keyword == "anyOf") {
        bool any = false;
        for (const Json& part : rule) any = any || keeps(value, part);
        if (!any) problem(where, value.dump() + " is none of what may stand there");
      } else if (keyword == "$ref") {
        const auto name = rule.get<std::string>();
        const Json defs = root_.value("$defs", Json::object());
        if (name.rfind("#/$defs/", 0) != 0 || !defs.contains(name.substr(8)))
          problem(where, "the schema refers to " + name + ", which it does not define");
        else
          visit(value, defs[name.substr(8)], where);
      } else if (keyword == "minItems" || keyword == "maxItems") {
        if (value.is_array() && (keyword == "minItems" ? value.size() < rule : value.size() > rule))
          problem(where, "has " + std::to_string(value.size()) + " items");
      } else if (!is_plain(keyword)) {
        problem(where, "the schema uses \"" + keyword + "\", which is not checked");
      }
    }
    if (value.is_object()) visit_members(value, schema, where);
  }

  void visit_members(const Json& value, const Json& schema, const std::string& where) {
    const Json named = schema.value("properties", Json::object());
    const Json patterns = schema.value("patternProperties", Json::object());
    for (const auto& [name, member] : value.items()) {
      const std::string inside = where + "." + name;
      bool known = false;
      if (named.contains(name)) {
        known = true;
        visit(member, named[name], inside);
      }
      for (const auto& [pattern, rule] : patterns.items()) {
        if (!matches(name, pattern)) continue;
        known = true;
        visit(member, rule, inside);
      }
      if (!known && schema.contains("additionalProperties"))
        visit(member, schema["additionalProperties"], inside);
    }
  }

  void check_type(const Json& value, const Json& rule, const std::string& where) {
    const auto is = [&](const std::string& type) {
      if (type == "object") return value.is_object();
      if (type == "array") return value.is_array();
      if (type == "string") return value.is_string();
      if (type == "boolean") return value.is_boolean();
      if (type == "null") return value.is_null();
      if (type == "integer") return value.is_number_integer();
      return type == "number" && value.is_number();
    };
    const Json types = rule.is_array() ? rule : Json::array({rule});
    for (const Json& type : types)
      if (is(type.get<std::string>())) return;
    problem(where, std::string(value.type_name()) + " is not " + rule.dump());
  }

  static bool matches(const std::string& text, const Json& pattern) {
    return std::regex_search(text, std::regex(pattern.get<std::string>()));
  }
  static bool is_plain(const std::string& keyword) {
    for (const char* known : {"$schema", "title", "description", "properties", "patternProperties",
                              "additionalProperties", "then", "else", "$defs"})
      if (keyword == known) return true;
    return false;
  }
  void problem(const std::string& where, const std::string& what) {
    problems_.push_back(where + ": " + what);
  }

  const Json& root_;
  std::vector<std::string> problems_;
};

}  // namespace saesweep::test
