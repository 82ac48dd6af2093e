#include "core/json.h"

#include <set>
#include <vector>

namespace saesweep {

Result<Json> parse_json(std::string_view text, std::size_t max_depth, std::size_t max_bytes) {
  if (text.size() > max_bytes)
    return fail(ErrorCode::kCorrupted, "JSON of {} bytes, more than {}", text.size(), max_bytes);
  std::string problem;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (static_cast<std::size_t>(depth) > max_depth && problem.empty())
      problem = fmt::format("JSON nested deeper than {}", max_depth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() &&
        !keys.back().insert(parsed.get<std::string>()).second && problem.empty())
      problem = fmt::format("JSON repeats the key \"{}\"", parsed.get<std::string>());
    return true;
  };
  // nlohmann's parser keeps its own stack on the heap; what recurses is the destruction and the
  // callback's bookkeeping, so depth is checked before anything is built.
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_depth)
        return fail(ErrorCode::kCorrupted, "JSON nested deeper than {}", max_depth);
    } else if ((c == '}' || c == ']') && depth > 0) {
      --depth;
    }
  }
  Json value;
  try {
    value = Json::parse(text, watch);
  } catch (const Json::exception& error) {
    return fail(ErrorCode::kCorrupted, "not JSON: {}", error.what());
  }
  if (!problem.empty()) return fail(ErrorCode::kCorrupted, "{}", problem);
  return value;
}

std::string canonical_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string pretty_json(const Json& value) {
  return value.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace saesweep
