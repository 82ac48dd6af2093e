#include "worker/agent/input_files.h"

#include <algorithm>
#include <system_error>

#include "core/json.h"
#include "scheduler/protocol/sweep_paths.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;

bool is_here(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

}  // namespace

std::vector<std::string> files_to_copy(const protocol::Run& run) {
  std::vector<std::string> objects;
  for (const auto& member : run.members()) {
    const auto spec = parse_json(member.spec());
    if (!spec) continue;  // the executor says what is wrong
    for (const std::string& path : protocol::paths_of(*spec)) {
      if (is_here(path)) continue;
      std::string object = protocol::object_of_path(path);
      if (std::ranges::find(objects, object) == objects.end()) objects.push_back(std::move(object));
    }
  }
  return objects;
}

std::vector<std::string> use_copies(protocol::Run& run, const fs::path& root) {
  std::vector<std::string> absent;
  for (auto& member : *run.mutable_members()) {
    auto spec = parse_json(member.spec());
    if (!spec) continue;
    bool is_changed = false;
    const Json changed = protocol::with_paths(std::move(*spec), [&](const std::string& path) {
      if (is_here(path)) return path;
      const fs::path copy = root / protocol::object_of_path(path);
      const fs::path file = copy / fs::path(path).filename();
      if (!is_here(copy)) {
        if (std::ranges::find(absent, path) == absent.end()) absent.push_back(path);
        return path;
      }
      is_changed = true;
      return (is_here(file) ? file : copy).string();
    });
    if (is_changed) member.set_spec(canonical_json(changed));
  }
  return absent;
}

}  // namespace saesweep::agent
