#include "scheduler/protocol/sweep_paths.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/digest.h"

namespace saesweep::protocol {
namespace {

// Specs come from clients: one that is nested deeper says nothing that we understand.
constexpr int kDeepest = 16;

void change(Json& json, const std::function<std::string(const std::string&)>& other, int depth) {
  if (depth > kDeepest) return;
  if (json.is_array())
    for (Json& item : json) change(item, other, depth + 1);
  if (!json.is_object()) return;
  for (auto& [key, value] : json.items()) {
    if ((key == "path" || key == "init_path") && value.is_string()) {
      const auto path = value.get<std::string>();
      if (path.starts_with('/')) value = other(path);
    } else {
      change(value, other, depth + 1);
    }
  }
}

}  // namespace

Json with_paths(Json spec, const std::function<std::string(const std::string&)>& other) {
  change(spec, other, 0);
  return spec;
}

std::vector<std::string> paths_of(const Json& spec) {
  std::vector<std::string> paths;
  (void)with_paths(spec, [&](const std::string& path) {
    if (std::ranges::find(paths, path) == paths.end()) paths.push_back(path);
    return path;
  });
  return paths;
}

std::string object_of_path(const std::string& path) { return "files/" + sha256(path).hex(); }

}  // namespace saesweep::protocol
