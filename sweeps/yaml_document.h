// YAML as a plain tree with positions: what a sweep file says, before anybody judges it. The only
// place that knows yaml-cpp.
//
// Aliases are expanded here, within a budget, so that a few lines cannot grow into gigabytes.
// Scalars stay text: whoever reads a key knows what type it wants.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace saesweep::sweeps {

inline constexpr std::size_t kMaxYamlBytes = std::size_t{1} << 20;
inline constexpr int kMaxYamlDepth = 32;
inline constexpr std::size_t kMaxYamlNodes = 200'000;
// Text of all nodes after expansion of aliases.
inline constexpr std::size_t kMaxExpandedBytes = std::size_t{8} << 20;

struct YamlKey {
  std::string text;
  int line = 0, column = 0;
};

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };
  Kind kind = Kind::kNull;
  std::string text;             // of a scalar
  std::vector<YamlKey> keys;    // of a map: keys[i] names items[i]
  std::vector<YamlNode> items;  // of a sequence or map
  int line = 0, column = 0;     // from 1; 0: not from a file
  std::string origin;           // "--set train.tokens" if it came from there

  bool is_scalar() const { return kind == Kind::kScalar; }
  bool is_sequence() const { return kind == Kind::kSequence; }
  bool is_map() const { return kind == Kind::kMap; }
  bool is_null() const { return kind == Kind::kNull; }
  const YamlNode* find(std::string_view key) const;  // the first of that name; nullptr if absent
  YamlNode* find(std::string_view key);
};

// "text", "a number", ... for messages: what stands there.
std::string describe(const YamlNode& node);

struct YamlProblem {
  int line = 0, column = 0;  // from 1; 0: the text as a whole
  std::string message;
};

// One document. Refused: bytes that are no UTF-8 text, an empty document, more than one, more than
// the limits above, keys that are no scalars.
tl::expected<YamlNode, YamlProblem> parse_yaml(std::string_view text);

// Text that parse_yaml reads back into an equal tree (positions aside).
std::string emit_yaml(const YamlNode& node);

YamlNode yaml_scalar(std::string text);

}  // namespace saesweep::sweeps
