#include "sweeps/overrides.h"

#include <fmt/format.h>

#include <charconv>

namespace saesweep::sweeps {
namespace {

void mark_origin(YamlNode& node, const std::string& origin) {
  node.line = node.column = 0;
  node.origin = origin;
  for (YamlKey& key : node.keys) key.line = key.column = 0;
  for (YamlNode& item : node.items) mark_origin(item, origin);
}

// "trials[0].k" and "trials.0.k" -> trials, 0, k. Nothing if a part is empty.
std::vector<std::string> split_path(std::string_view path) {
  std::vector<std::string> parts(1);
  for (const char c : path) {
    if (c == '.' || c == '[')
      parts.emplace_back();
    else if (c != ']')
      parts.back() += c;
  }
  for (const std::string& part : parts)
    if (part.empty()) return {};
  return parts;
}

}  // namespace

void apply_override(YamlNode& root, std::string_view assignment, Problems& problems) {
  const std::size_t equals = assignment.find('=');
  const std::string path(assignment.substr(0, equals));
  const std::string origin = "--set " + path.substr(0, 100);
  const auto refuse = [&](std::string message) {
    problems.add_at(0, 0, origin, std::move(message));
  };
  if (equals == std::string_view::npos)
    return refuse("has no '='; one like --set train.tokens=1M would be right");
  const std::vector<std::string> parts = split_path(path);
  if (parts.empty()) return refuse("names no key; one like --set train.tokens=1M would be right");
  const std::string_view text = assignment.substr(equals + 1);
  if (text.empty()) return refuse("has no value; one like --set train.tokens=1M would be right");
  auto value = parse_yaml(text);
  if (!value) return refuse(fmt::format("its value {}", value.error().message));
  mark_origin(*value, origin);
  refuse_duplicate_keys(*value, path, problems);

  YamlNode* at = &root;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::string& part = parts[i];
    if (at->is_sequence()) {
      std::size_t index = 0;
      const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), index);
      if (code != std::errc{} || end != part.data() + part.size() || index >= at->items.size())
        return refuse(fmt::format("'{}' is no entry of a list of {}; {} would be right",
                                  part.substr(0, 60), at->items.size(),
                                  at->items.empty()
                                      ? std::string("none")
                                      : fmt::format("0 to {}", at->items.size() - 1)));
      at = &at->items[index];
      continue;
    }
    // A value that is replaced by a map on the way: `--set search.seed=1` over an empty `search:`.
    if (at->is_null()) at->kind = YamlNode::Kind::kMap;
    if (!at->is_map())
      return refuse(
          fmt::format("'{}' lies inside {}, which is no map", part.substr(0, 60), describe(*at)));
    YamlNode* inner = at->find(part);
    if (inner == nullptr) {
      YamlNode made;
      made.kind = YamlNode::Kind::kMap;
      made.origin = origin;
      at->keys.push_back(YamlKey{part, 0, 0});
      at->items.push_back(std::move(made));
      inner = &at->items.back();
    }
    at = inner;
  }
  *at = std::move(*value);
}

}  // namespace saesweep::sweeps
