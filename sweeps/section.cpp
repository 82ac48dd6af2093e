#include "sweeps/section.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "sweeps/nearest.h"

namespace saesweep::sweeps {

void Problems::add(const YamlNode& at, const std::string& key, std::string message) {
  add_at(at.line, at.column, at.origin.empty() ? key : at.origin, std::move(message));
}

void Problems::add_at(int line, int column, const std::string& key, std::string message) {
  constexpr std::size_t kShown = 200;
  if (errors_.size() >= kShown || !seen_.emplace(line, column, key).second) return;
  errors_.push_back({file_, line, column, key, std::move(message)});
}

std::vector<SweepFileError> Problems::take() {
  std::stable_sort(errors_.begin(), errors_.end(),
                   [](const SweepFileError& a, const SweepFileError& b) {
                     return std::tie(a.line, a.column) < std::tie(b.line, b.column);
                   });
  return std::move(errors_);
}

std::string join_path(std::string_view parent, std::string_view key) {
  return parent.empty() ? std::string(key) : fmt::format("{}.{}", parent, key);
}

void refuse_duplicate_keys(const YamlNode& node, const std::string& path, Problems& problems) {
  std::map<std::string_view, int> lines;
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    std::string inner = fmt::format("{}[{}]", path, i);
    if (node.is_map()) {
      const YamlKey& key = node.keys[i];
      inner = join_path(path, key.text);
      const auto [first, is_new] = lines.emplace(key.text, key.line);
      if (!is_new)
        problems.add_at(
            key.line, key.column, inner,
            fmt::format("stands twice, first in line {}; once would be right", first->second));
    }
    refuse_duplicate_keys(node.items[i], inner, problems);
  }
}

Section::Section(const YamlNode& node, std::string path, std::span<const std::string_view> keys,
                 Problems& problems)
    : node_(node), path_(std::move(path)), problems_(problems) {
  if (!node_.is_map()) {
    problems_.add(node_, path_,
                  fmt::format("is {}; a map of {} would be right", describe(node_),
                              fmt::join(keys.first(std::min<std::size_t>(keys.size(), 6)), ", ")));
    return;
  }
  for (std::size_t i = 0; i < node_.keys.size(); ++i) {
    const YamlKey& key = node_.keys[i];
    if (std::find(keys.begin(), keys.end(), key.text) != keys.end()) continue;
    const std::string shown = key.text.substr(0, 60);
    const std::string& origin = node_.items[i].origin;
    problems_.add_at(origin.empty() ? key.line : 0, origin.empty() ? key.column : 0,
                     origin.empty() ? join_path(path_, shown) : origin,
                     fmt::format("unknown key '{}'; {}", shown, suggestion(key.text, keys)));
  }
}

std::string Section::path_of(std::string_view key) const { return join_path(path_, key); }

const YamlNode* Section::find(std::string_view key) const {
  const YamlNode* value = node_.is_map() ? node_.find(key) : nullptr;
  if (value == nullptr || !value->is_null()) return value;
  problems_.add(*value, path_of(key), "has no value; one, or leaving the key out, would be right");
  return nullptr;
}

const YamlNode* Section::require(std::string_view key, std::string_view right) const {
  if (node_.is_map() && node_.find(key) == nullptr)
    problems_.add_at(node_.origin.empty() ? node_.line : 0, node_.origin.empty() ? node_.column : 0,
                     path_of(key), fmt::format("is missing; {}", right));
  return find(key);
}

void Section::add(std::string_view key, std::string message) const {
  const YamlNode* value = node_.is_map() ? node_.find(key) : nullptr;
  problems_.add(value == nullptr ? node_ : *value, path_of(key), std::move(message));
}

std::optional<std::string> scalar_text(const YamlNode& node, const std::string& path,
                                       std::string_view right, Problems& problems) {
  if (node.is_scalar()) return node.text;
  problems.add(node, path, fmt::format("is {}; {}", describe(node), right));
  return std::nullopt;
}

std::optional<std::uint64_t> count_of(const YamlNode& node, const std::string& path,
                                      std::uint64_t low, std::uint64_t high, Problems& problems) {
  const auto text =
      scalar_text(node, path, "a count like 200, 200k or 2M would be right", problems);
  if (!text) return std::nullopt;
  const auto value = parse_count(*text);
  if (!value) {
    problems.add(node, path, value.error().message);
    return std::nullopt;
  }
  if (*value >= low && *value <= high) return *value;
  problems.add(node, path,
               high == kNoLimit
                   ? fmt::format("{} is too small; at least {} would be right", *value, low)
                   : fmt::format("{} is out of range; {} to {} would be right", *value, low, high));
  return std::nullopt;
}

void Section::read_count(std::string_view key, std::uint64_t& out, std::uint64_t low,
                         std::uint64_t high) const {
  if (const YamlNode* value = find(key))
    if (const auto count = count_of(*value, path_of(key), low, high, problems_)) out = *count;
}

void Section::read_int(std::string_view key, int& out, int low, int high) const {
  std::uint64_t value = static_cast<std::uint64_t>(out);
  read_count(key, value, static_cast<std::uint64_t>(low), static_cast<std::uint64_t>(high));
  out = static_cast<int>(value);
}

void Section::read_size(std::string_view key, std::uint64_t& out) const {
  const YamlNode* value = find(key);
  if (value == nullptr) return;
  const auto text = scalar_text(*value, path_of(key), "a size like 4GiB would be right", problems_);
  if (!text) return;
  const auto size = parse_size(*text);
  if (size)
    out = *size;
  else
    problems_.add(*value, path_of(key), size.error().message);
}

void Section::read_seconds(std::string_view key, double& out) const {
  const YamlNode* value = find(key);
  if (value == nullptr) return;
  const auto text = scalar_text(*value, path_of(key), "a time like 60s would be right", problems_);
  if (!text) return;
  const auto seconds = parse_seconds(*text);
  if (!seconds)
    problems_.add(*value, path_of(key), seconds.error().message);
  else if (*seconds <= 0)
    problems_.add(*value, path_of(key),
                  fmt::format("'{}' is no interval; one like 60s would be right", *text));
  else
    out = *seconds;
}

void Section::read_bool(std::string_view key, bool& out) const {
  constexpr std::array<std::string_view, 2> kWords{"true", "false"};
  if (const auto word = read_word(key, kWords)) out = *word == 0;
}

void Section::read_real(std::string_view key, double& out, double low, bool low_open) const {
  const YamlNode* value = find(key);
  if (value == nullptr) return;
  const auto text = scalar_text(*value, path_of(key), "a number would be right", problems_);
  if (!text) return;
  const auto real = parse_real(*text);
  if (!real)
    problems_.add(*value, path_of(key), real.error().message);
  else if (*real < low || (low_open && *real == low))
    problems_.add(*value, path_of(key),
                  fmt::format("{} is too small; {} {} would be right", *text,
                              low_open ? "more than" : "at least", low));
  else
    out = *real;
}

std::optional<std::size_t> Section::read_word(std::string_view key,
                                              std::span<const std::string_view> words) const {
  const YamlNode* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::string right = fmt::format("{} would be right", fmt::join(words, " or "));
  const auto text = scalar_text(*value, path_of(key), right, problems_);
  if (!text) return std::nullopt;
  for (std::size_t i = 0; i < words.size(); ++i)
    if (words[i] == *text) return i;
  problems_.add(
      *value, path_of(key),
      fmt::format("{} is not one of its values; {}", describe(*value), suggestion(*text, words)));
  return std::nullopt;
}

}  // namespace saesweep::sweeps
