#include "sweeps/yaml_document.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <cctype>
#include <map>
#include <optional>
#include <sstream>

namespace saesweep::sweeps {
namespace {

struct Cost {
  std::size_t nodes = 0, bytes = 0;
  int depth = 0;
};

Cost cost_of(const YamlNode& node) {
  Cost cost{1, node.text.size(), 1};
  for (const YamlKey& key : node.keys) cost.bytes += key.text.size();
  for (const YamlNode& item : node.items) {
    const Cost inner = cost_of(item);
    cost.nodes += inner.nodes;
    cost.bytes += inner.bytes;
    cost.depth = std::max(cost.depth, inner.depth + 1);
  }
  return cost;
}

// Builds the tree from the parser's events. After the first problem it ignores everything.
class TreeBuilder final : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(leaf(YamlNode::Kind::kNull, mark, ""), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                const std::string& value) override {
    add(leaf(YamlNode::Kind::kScalar, mark, value), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (problem_) return;
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) return refuse(mark, "an alias stands inside its own anchor");
    YamlNode copy = found->second;
    add(std::move(copy), 0);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::kSequence, mark, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(YamlNode::Kind::kMap, mark, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

  const std::optional<YamlProblem>& problem() const { return problem_; }
  bool has_root() const { return root_.has_value(); }
  YamlNode take_root() { return std::move(*root_); }

 private:
  struct Open {
    YamlNode node;
    YAML::anchor_t anchor;
    std::optional<YamlKey> key;  // of a map: read, its value not yet
  };

  static YamlNode leaf(YamlNode::Kind kind, const YAML::Mark& mark, std::string text) {
    YamlNode node;
    node.kind = kind;
    node.text = std::move(text);
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    return node;
  }

  void refuse(const YAML::Mark& mark, std::string message) {
    if (!problem_) problem_ = YamlProblem{mark.line + 1, mark.column + 1, std::move(message)};
  }

  void open(YamlNode::Kind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (problem_) return;
    if (!open_.empty() && open_.back().node.is_map() && !open_.back().key)
      return refuse(mark, "a key is a list or a map; a word would be right");
    if (static_cast<int>(open_.size()) >= kMaxYamlDepth)
      return refuse(mark, fmt::format("nested deeper than {} levels", kMaxYamlDepth));
    open_.push_back(Open{leaf(kind, mark, ""), anchor, std::nullopt});
  }

  void close() {
    if (problem_ || open_.empty()) return;
    Open done = std::move(open_.back());
    open_.pop_back();
    place(std::move(done.node), done.anchor, /*count_inner=*/false);
  }

  void add(YamlNode node, YAML::anchor_t anchor) {
    if (!problem_) place(std::move(node), anchor, /*count_inner=*/true);
  }

  // Hands a finished node to the map or sequence that is open. Its inside was counted already
  // unless it came whole, from an alias.
  void place(YamlNode node, YAML::anchor_t anchor, bool count_inner) {
    const YAML::Mark mark = mark_of(node);
    if (count_inner) {
      const Cost cost = cost_of(node);
      nodes_ += cost.nodes;
      bytes_ += cost.bytes;
      if (static_cast<int>(open_.size()) + cost.depth > kMaxYamlDepth + 1)
        return refuse(mark, fmt::format("nested deeper than {} levels", kMaxYamlDepth));
    } else {
      nodes_ += 1;
    }
    if (nodes_ > kMaxYamlNodes || bytes_ > kMaxExpandedBytes)
      return refuse(mark, fmt::format("with its aliases expanded the file has more than {} values "
                                      "or {} MiB of text",
                                      kMaxYamlNodes, kMaxExpandedBytes >> 20));
    if (anchor != 0) anchors_[anchor] = node;
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.is_sequence()) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.key) {
      if (!node.is_scalar())
        return refuse(mark, "a key is " + describe(node) + "; a word is right");
      parent.key = YamlKey{std::move(node.text), node.line, node.column};
    } else {
      parent.node.keys.push_back(std::move(*parent.key));
      parent.key.reset();
      parent.node.items.push_back(std::move(node));
    }
  }

  static YAML::Mark mark_of(const YamlNode& node) {
    YAML::Mark mark;
    mark.line = node.line - 1;
    mark.column = node.column - 1;
    return mark;
  }

  std::vector<Open> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
  std::optional<YamlNode> root_;
  std::optional<YamlProblem> problem_;
  std::size_t nodes_ = 0, bytes_ = 0;
};

// Offset of the first byte that is no UTF-8 text (control characters included), or npos.
std::size_t first_bad_byte(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x80) {
      if ((byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7f) return i;
      ++i;
      continue;
    }
    const int length = byte >= 0xc2 && byte <= 0xdf   ? 2
                       : byte >= 0xe0 && byte <= 0xef ? 3
                       : byte >= 0xf0 && byte <= 0xf4 ? 4
                                                      : 0;
    if (length == 0 || i + static_cast<std::size_t>(length) > text.size()) return i;
    for (int j = 1; j < length; ++j)
      if ((static_cast<unsigned char>(text[i + static_cast<std::size_t>(j)]) & 0xc0) != 0x80)
        return i;
    i += static_cast<std::size_t>(length);
  }
  return std::string_view::npos;
}

YamlProblem at_offset(std::string_view text, std::size_t offset, std::string message) {
  YamlProblem problem{1, 1, std::move(message)};
  for (std::size_t i = 0; i < offset; ++i) {
    ++problem.column;
    if (text[i] == '\n') {
      ++problem.line;
      problem.column = 1;
    }
  }
  return problem;
}

bool is_plain(const std::string& text) {
  if (text.empty()) return false;
  for (const char c : text)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 &&
        std::string_view("_./+-%").find(c) == std::string_view::npos)
      return false;
  // Words that YAML reads as something else, and what could open a list or a document.
  if (text == "null" || text == "Null" || text == "NULL") return false;
  return text[0] != '-' || (text.size() > 1 && (std::isdigit(static_cast<unsigned char>(text[1]))));
}

std::string quoted(const std::string& text) {
  if (is_plain(text) && text[0] != '%') return text;
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        out += c;
    }
  }
  return out + "\"";
}

// On one line: lists of values, and whatever stands inside one.
void emit_flow(const YamlNode& node, std::string& out) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      out += "null";
      return;
    case YamlNode::Kind::kScalar:
      out += quoted(node.text);
      return;
    case YamlNode::Kind::kSequence:
    case YamlNode::Kind::kMap:
      break;
  }
  out += node.is_map() ? '{' : '[';
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    if (i > 0) out += ", ";
    if (node.is_map()) out += quoted(node.keys[i].text) + ": ";
    emit_flow(node.items[i], out);
  }
  out += node.is_map() ? '}' : ']';
}

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  for (std::size_t i = 0; i < keys.size(); ++i)
    if (keys[i].text == key) return &items[i];
  return nullptr;
}

YamlNode* YamlNode::find(std::string_view key) {
  return const_cast<YamlNode*>(static_cast<const YamlNode*>(this)->find(key));
}

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kSequence:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
    case YamlNode::Kind::kScalar:
      break;
  }
  constexpr std::size_t kShown = 60;
  std::string text = node.text.substr(0, kShown);
  // Cut no character in halves.
  while (node.text.size() > kShown && !text.empty() && (text.back() & 0x80) != 0) text.pop_back();
  for (char& c : text)
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  return "'" + text + (node.text.size() > kShown ? "...'" : "'");
}

tl::expected<YamlNode, YamlProblem> parse_yaml(std::string_view text) {
  const auto refuse = [](YamlProblem problem) {
    return tl::unexpected<YamlProblem>(std::move(problem));
  };
  if (text.size() > kMaxYamlBytes)
    return refuse(
        {0, 0, fmt::format("has {} bytes; at most {} are read", text.size(), kMaxYamlBytes)});
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (const std::size_t bad = first_bad_byte(text); bad != std::string_view::npos)
    return refuse(at_offset(text, bad,
                            fmt::format("is no text: byte 0x{:02x}; UTF-8 would be right",
                                        static_cast<unsigned char>(text[bad]))));
  TreeBuilder builder;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder) || !builder.has_root()) {
      if (builder.problem()) return refuse(*builder.problem());
      return refuse({0, 0, "is empty"});
    }
    if (builder.problem()) return refuse(*builder.problem());
    YamlNode root = builder.take_root();
    TreeBuilder second;
    if (parser.HandleNextDocument(second))
      return refuse({0, 0, "holds more than one document (---); one would be right"});
    return root;
  } catch (const YAML::Exception& error) {
    if (error.mark.is_null()) return refuse({0, 0, "is not valid YAML: " + error.msg});
    return refuse({error.mark.line + 1, error.mark.column + 1, "is not valid YAML: " + error.msg});
  } catch (const std::exception& error) {
    return refuse({0, 0, std::string("is not valid YAML: ") + error.what()});
  }
}

namespace {

bool is_flat(const YamlNode& node) {
  for (const YamlNode& item : node.items)
    if (!item.items.empty()) return false;
  return true;
}

void emit_block(const YamlNode& node, int indent, std::string& out) {
  const std::string margin(static_cast<std::size_t>(indent), ' ');
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    const YamlNode& item = node.items[i];
    // A family of trials is a map in a list: "- " takes the place of the margin of its first key.
    if (node.is_sequence()) {
      if (item.is_map() && !item.items.empty()) {
        std::string inner;
        emit_block(item, indent + 2, inner);
        inner[static_cast<std::size_t>(indent)] = '-';
        out += inner;
      } else {
        out += margin + "- ";
        emit_flow(item, out);
        out += '\n';
      }
      continue;
    }
    out += margin + quoted(node.keys[i].text) + ":";
    const bool block =
        !item.items.empty() && ((item.is_map() && indent == 0) || !is_flat(item)) && indent <= 4;
    if (block) {
      out += '\n';
      emit_block(item, indent + 2, out);
    } else {
      out += ' ';
      emit_flow(item, out);
      out += '\n';
    }
  }
}

}  // namespace

std::string emit_yaml(const YamlNode& node) {
  std::string out;
  if (node.items.empty()) {
    emit_flow(node, out);
    return out + "\n";
  }
  emit_block(node, 0, out);
  return out;
}

YamlNode yaml_scalar(std::string text) {
  YamlNode node;
  node.kind = YamlNode::Kind::kScalar;
  node.text = std::move(text);
  return node;
}

}  // namespace saesweep::sweeps
