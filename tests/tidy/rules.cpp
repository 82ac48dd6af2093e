#include "tests/tidy/rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <set>

namespace saesweep::tidy {
namespace {

// A file longer than this is not read in one sitting.
constexpr int kMostLines = 600;

using Paths = std::vector<std::string_view>;

struct Room {
  std::string_view name;
  Paths may_include;  // rooms, besides itself
};

const std::vector<Room>& rooms() {
  static const std::vector<Room> kRooms = {
      {"core", {}},
      {"metrics", {"core"}},
      {"sweeps", {"core"}},
      {"storage/formats", {"core"}},
      {"storage", {"core", "storage/formats"}},
      {"scheduler/protocol", {"core", "sweeps"}},
      {"scheduler",
       {"core", "metrics", "sweeps", "storage", "storage/formats", "scheduler/protocol"}},
      // The command line, with the main of `saesweep`: the only place that sees both sides.
      {"scheduler/cli",
       {"core", "metrics", "sweeps", "storage", "storage/formats", "scheduler/protocol",
        "scheduler", "worker/agent"}},
      {"worker/agent", {"core", "metrics", "storage", "storage/formats", "scheduler/protocol"}},
      {"worker", {"core", "metrics", "sweeps", "storage/formats", "scheduler/protocol"}},
  };
  return kRooms;
}

// Folders, or files without their ending, that may include what begins with one of the prefixes.
struct Wall {
  std::string_view library;
  Paths prefixes;
  Paths inside;
  Paths outside = {};  // within `inside`, but not allowed after all
};

const std::vector<Wall>& walls() {
  static const std::vector<Wall> kWalls = {
      {"RocksDB", {"rocksdb/"}, {"storage"}, {"storage/formats"}},
      {"ZeroMQ", {"zmq.h", "zmq.hpp", "zmq_addon.hpp"}, {"scheduler/protocol"}},
      {"protobuf", {"google/protobuf/"}, {"scheduler/protocol"}},
      {"yaml-cpp", {"yaml-cpp/"}, {"sweeps"}},
      {"prometheus-cpp", {"prometheus/"}, {"metrics/telemetry"}},
      {"LibTorch",
       {"ATen/", "torch/", "c10/", "caffe2/"},
       {"worker"},
       {"worker/agent", "worker/data", "worker/device/device", "worker/device/gpu",
        "worker/device/kernels", "worker/products"}},
      {"CUDA", {"cuda", "cublas", "cub/"}, {"worker/cuda"}},
      {"MPI", {"mpi.h"}, {"worker/gang"}},
      {"Boost", {"boost/"}, {"scheduler/http"}},
      {"CLI11", {"CLI/"}, {"scheduler/cli", "worker/executor"}},
      {"nlohmann-json", {"nlohmann/"}, {"core/json"}},
      {"OpenSSL", {"openssl/"}, {"core/digest"}},
      {"xxHash", {"xxhash.h"}, {"core/digest"}},
      {"spdlog", {"spdlog/"}, {"core/log"}},
      // Elsewhere Result is enough; sweep files report many errors at once.
      {"tl::expected", {"tl/"}, {"core/result", "sweeps"}},
      {"GoogleTest", {"gtest/", "gmock/"}, {}},  // tests only
      {"fmt", {"fmt/"}, {"core", "metrics", "sweeps", "storage", "scheduler", "worker"}},
  };
  return kWalls;
}

// Who may see the generated messages.
const Paths kMessageReaders = {"scheduler", "worker/agent", "worker/executor",
                               "worker/activations/chunk_client"};

// Folders of the system's own headers; any other folder belongs to a library.
constexpr std::array<std::string_view, 9> kSystemFolders = {
    "sys", "netinet", "arpa", "net", "linux", "asm", "bits", "ext", "experimental"};

// Split so that this file does not break its own rule.
constexpr std::array<std::string_view, 3> kForbiddenWords = {
    "TO"
    "DO",
    "FIX"
    "ME",
    "XX"
    "X"};

// True for the folder itself, for what is under it, and for a file named without its ending.
bool is_under(std::string_view path, std::string_view place) {
  return path.starts_with(place) &&
         (path.size() == place.size() || path[place.size()] == '/' || path[place.size()] == '.');
}

bool is_under_any(std::string_view path, const Paths& places) {
  return std::ranges::any_of(places, [&](auto place) { return is_under(path, place); });
}

bool is_test(std::string_view path) { return is_under(path, "tests"); }

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

const Room* find_room(std::string_view path) {
  const Room* best = nullptr;
  for (const Room& room : rooms())
    if (is_under(path, room.name) && (best == nullptr || room.name.size() > best->name.size()))
      best = &room;
  return best;
}

std::optional<std::string> problem_of_our_header(std::string_view path, std::string_view target) {
  const Room* to = find_room(target);
  if (to == nullptr) {
    if (is_test(path) && is_test(target)) return std::nullopt;
    if (is_test(target)) return fmt::format("includes \"{}\": nothing depends on tests", target);
    return fmt::format("includes \"{}\": our headers are named from the repository root", target);
  }
  if (is_test(path)) return std::nullopt;
  if (target.ends_with(".pb.h") && !is_under_any(path, kMessageReaders))
    return fmt::format(
        "includes \"{}\": the messages are for the scheduler, the agent and the "
        "executor's ends",
        target);
  const Room* from = find_room(path);
  if (from == nullptr || from == to || std::ranges::count(from->may_include, to->name) > 0)
    return std::nullopt;
  return fmt::format("includes \"{}\": {}/ does not see {}/", target, from->name, to->name);
}

std::optional<std::string> problem_of_library(std::string_view path, std::string_view target) {
  if (is_test(path)) return std::nullopt;
  for (const Wall& wall : walls()) {
    if (!std::ranges::any_of(wall.prefixes,
                             [&](auto prefix) { return target.starts_with(prefix); }))
      continue;
    if (is_under_any(path, wall.inside) && !is_under_any(path, wall.outside)) return std::nullopt;
    return fmt::format("includes <{}>: {} stays behind the wall of {}", target, wall.library,
                       wall.inside.empty() ? std::string("tests")
                                           : fmt::format("{}", fmt::join(wall.inside, ", ")));
  }
  const std::size_t slash = target.find('/');
  if (slash == std::string_view::npos ||
      std::ranges::count(kSystemFolders, target.substr(0, slash)) > 0)
    return std::nullopt;
  return fmt::format("includes <{}>: a library without a room of its own", target);
}

bool is_word_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

bool has_word(std::string_view line, std::string_view word) {
  for (std::size_t at = line.find(word); at != std::string_view::npos;
       at = line.find(word, at + 1)) {
    const bool begins = at == 0 || !is_word_character(line[at - 1]);
    const std::size_t end = at + word.size();
    if (begins && (end == line.size() || !is_word_character(line[end]))) return true;
  }
  return false;
}

// A bare NOLINT, or one without a reason after it, hides more than it should.
bool is_unreasoned_nolint(std::string_view line) {
  constexpr std::string_view kWord = "// NOLINT";
  const std::size_t at = line.find(kWord);
  if (at == std::string_view::npos || line.find('"') < at) return false;
  const std::size_t open = line.find('(', at);
  const std::size_t close = line.find(')', at);
  if (open == std::string_view::npos || close == std::string_view::npos) return true;
  const std::string_view reason = line.substr(close + 1);
  return std::ranges::none_of(reason, is_word_character);
}

}  // namespace

std::vector<Include> includes_of(std::string_view text) {
  std::vector<Include> includes;
  int number = 0;
  for (std::string_view line : lines_of(text)) {
    ++number;
    const auto skip_spaces = [&] {
      while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
    };
    skip_spaces();
    if (!line.starts_with('#')) continue;
    line.remove_prefix(1);
    skip_spaces();
    if (!line.starts_with("include")) continue;
    line.remove_prefix(std::string_view("include").size());
    skip_spaces();
    if (line.empty() || (line.front() != '"' && line.front() != '<')) continue;
    const bool quoted = line.front() == '"';
    line.remove_prefix(1);
    const std::size_t end = line.find(quoted ? '"' : '>');
    if (end == std::string_view::npos) continue;
    includes.push_back({std::string(line.substr(0, end)), quoted, number});
  }
  return includes;
}

std::string_view room_of(std::string_view path) {
  const Room* room = find_room(path);
  return room == nullptr ? std::string_view() : room->name;
}

std::vector<Violation> check_file(std::string_view path, std::string_view text) {
  std::vector<Violation> violations;
  const auto add = [&](int line, std::string message) {
    violations.push_back({std::string(path), line, std::move(message)});
  };

  for (const Include& include : includes_of(text)) {
    // A library's header in quotes is still a library's; one of ours in brackets is still ours.
    const bool is_library = std::ranges::any_of(walls(), [&](const Wall& wall) {
      return std::ranges::any_of(wall.prefixes, [&](std::string_view prefix) {
        return include.target.starts_with(prefix) && prefix.ends_with('/');
      });
    });
    const bool is_ours = find_room(include.target) != nullptr || is_test(include.target);
    const auto problem = is_ours || (include.quoted && !is_library)
                             ? problem_of_our_header(path, include.target)
                             : problem_of_library(path, include.target);
    if (problem) add(include.line, *problem);
  }

  const auto lines = lines_of(text);
  const bool is_header = path.ends_with(".h");
  if (is_header && std::ranges::count(lines, "#pragma once") != 1)
    add(0, "a header says #pragma once, once");
  // A source may open with the header of what it makes or tests: that header says it.
  if (!text.starts_with("//") && (is_header || !text.starts_with("#include \"")))
    add(1, "a file opens with a comment that says what it is for");
  if (lines.size() > kMostLines)
    add(0, fmt::format("{} lines; more than {} are not read in one sitting", lines.size(),
                       kMostLines));
  for (std::size_t i = 0; i < lines.size(); ++i) {
    for (const std::string_view word : kForbiddenWords)
      if (has_word(lines[i], word))
        add(static_cast<int>(i + 1), fmt::format("{}: finish it or leave it out", word));
    if (is_unreasoned_nolint(lines[i]))
      add(static_cast<int>(i + 1), "a lint suppression names the check and the reason");
  }
  return violations;
}

std::vector<Violation> check_circles(const std::map<std::string, std::string>& files) {
  std::vector<Violation> violations;
  std::set<std::string> finished;
  std::vector<std::string> path;  // from where the walk began to where it is
  const auto visit = [&](const auto& self, const std::string& file) -> void {
    if (const auto seen = std::ranges::find(path, file); seen != path.end()) {
      const std::vector<std::string> circle(seen, path.end());
      violations.push_back(
          {file, 0, fmt::format("includes itself: {} -> {}", fmt::join(circle, " -> "), file)});
      return;
    }
    const auto entry = files.find(file);
    if (entry == files.end() || finished.contains(file)) return;
    path.push_back(file);
    for (const Include& include : includes_of(entry->second))
      if (include.quoted) self(self, include.target);
    path.pop_back();
    finished.insert(file);
  };
  for (const auto& [file, text] : files) visit(visit, file);
  return violations;
}

}  // namespace saesweep::tidy
