// Reading one map of a sweep file key by key: unknown keys, wrong types and values out of range
// become problems with their place; reading goes on, so that all of them are shown at once.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/result.h"
#include "sweeps/known_keys.h"
#include "sweeps/sweep_plan.h"
#include "sweeps/values.h"
#include "sweeps/yaml_document.h"

namespace saesweep::sweeps {

// All that is wrong with one file. A key is complained about once: the same schedule may fail in a
// thousand trials.
class Problems {
 public:
  explicit Problems(std::string file) : file_(std::move(file)) {}
  void add(const YamlNode& at, const std::string& key, std::string message);
  void add_at(int line, int column, const std::string& key, std::string message);
  bool empty() const { return errors_.empty(); }
  std::size_t size() const { return errors_.size(); }
  std::vector<SweepFileError> take();  // in the order of the file
  const std::string& file() const { return file_; }

 private:
  std::string file_;
  std::vector<SweepFileError> errors_;
  std::set<std::tuple<int, int, std::string>> seen_;
};

// Repeated keys anywhere below `node`.
void refuse_duplicate_keys(const YamlNode& node, const std::string& path, Problems& problems);

// What a number key accepts and the struct's default; see Section::count.
inline constexpr std::uint64_t kNoLimit = std::uint64_t{std::numeric_limits<std::int64_t>::max()};

class Section {
 public:
  // `node` is a map, outlives this; `path` is "" for the file itself, else "train", "trials[1]".
  Section(const YamlNode& node, std::string path, std::span<const std::string_view> keys,
          Problems& problems);

  const YamlNode& node() const { return node_; }
  const std::string& path() const { return path_; }
  std::string path_of(std::string_view key) const;

  // nullptr if absent; a key without a value is a problem and absent.
  const YamlNode* find(std::string_view key) const;
  // The same, and its absence is a problem: "is missing; `right`".
  const YamlNode* require(std::string_view key, std::string_view right) const;
  void add(std::string_view key, std::string message) const;

  // Each leaves `out` alone if the key is absent or wrong (which is reported).
  void read_count(std::string_view key, std::uint64_t& out, std::uint64_t low = 0,
                  std::uint64_t high = kNoLimit) const;
  void read_int(std::string_view key, int& out, int low, int high) const;
  void read_size(std::string_view key, std::uint64_t& out) const;
  void read_seconds(std::string_view key, double& out) const;
  void read_bool(std::string_view key, bool& out) const;
  void read_real(std::string_view key, double& out, double low, bool low_open = false) const;
  // A word of a list; the index of it.
  std::optional<std::size_t> read_word(std::string_view key,
                                       std::span<const std::string_view> words) const;

 private:
  const YamlNode& node_;
  std::string path_;
  Problems& problems_;
};

// The text of a scalar, or a problem that says what would be right.
std::optional<std::string> scalar_text(const YamlNode& node, const std::string& path,
                                       std::string_view right, Problems& problems);
std::optional<std::uint64_t> count_of(const YamlNode& node, const std::string& path,
                                      std::uint64_t low, std::uint64_t high, Problems& problems);

std::string join_path(std::string_view parent, std::string_view key);

}  // namespace saesweep::sweeps
