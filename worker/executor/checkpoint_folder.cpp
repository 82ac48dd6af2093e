#include "worker/executor/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string>
#include <utility>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::worker {
namespace {

namespace fs = std::filesystem;

// The number in "f12" or "step-300".
std::optional<std::uint64_t> number_after(const std::string& name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  std::uint64_t number = 0;
  const char* const end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + prefix.size(), end, number);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return number;
}

}  // namespace

CheckpointFolder::CheckpointFolder(fs::path state, const protocol::Member& member)
    : state_(std::move(state)),
      task_(member.trial_directory()),
      lease_(task_ / fmt::format("f{}", member.fence())) {
  if (member.has_resume()) resume_ = member.resume().path();
}

std::vector<fs::path> CheckpointFolder::to_restore() const {
  if (resume_.empty()) return {};
  struct Found {
    std::uint64_t step;
    fs::path path;
  };
  std::vector<Found> others;
  std::error_code ignored;
  const fs::path first = (state_ / resume_).lexically_normal();
  for (const auto& lease : fs::directory_iterator(state_ / task_, ignored)) {
    if (!number_after(lease.path().filename(), "f")) continue;
    for (const auto& entry : fs::directory_iterator(lease.path(), ignored)) {
      const auto step = number_after(entry.path().filename(), "step-");
      if (step && entry.path().lexically_normal() != first) others.push_back({*step, entry.path()});
    }
  }
  std::ranges::sort(others, [](const Found& a, const Found& b) {
    return a.step != b.step ? a.step > b.step : a.path > b.path;
  });
  std::vector<fs::path> paths{first};
  for (Found& other : others) paths.push_back(std::move(other.path));
  return paths;
}

Result<protocol::CheckpointRef> CheckpointFolder::write(std::uint64_t step, std::uint64_t tokens,
                                                        const Save& save) {
  const fs::path relative = lease_ / fmt::format("step-{}", step);
  if (written_.empty()) {
    SAE_TRY_VOID(make_directories(state_ / lease_));
    SAE_TRY_VOID(sync_directory(state_ / task_));
    SAE_TRY_VOID(sync_directory((state_ / task_).parent_path()));
  }
  SAE_TRY_VOID(save(state_ / relative));
  SAE_TRY_VOID(sync_directory(state_ / lease_));
  written_.push_back(relative);
  last_step_ = step;
  remove_old();
  protocol::CheckpointRef checkpoint;
  checkpoint.set_path(relative.string());
  checkpoint.set_step(step);
  checkpoint.set_tokens(tokens);
  return checkpoint;
}

void CheckpointFolder::remove_old() const {
  if (written_.size() < 2) return;
  const fs::path& last = written_.back();
  const fs::path& before = written_[written_.size() - 2];
  std::vector<fs::path> old;
  std::error_code ignored;
  for (const auto& lease : fs::directory_iterator(state_ / task_, ignored)) {
    if (!number_after(lease.path().filename(), "f")) continue;
    if (lease.path().filename() != lease_.filename()) {
      old.push_back(lease.path());
      continue;
    }
    for (const auto& entry : fs::directory_iterator(lease.path(), ignored)) {
      const auto name = entry.path().filename();
      if (name.string().starts_with("step-") && name != last.filename() &&
          name != before.filename())
        old.push_back(entry.path());
    }
  }
  for (const fs::path& path : old) {
    std::error_code problem;
    fs::remove_all(path, problem);
    if (problem)
      log::warn("checkpoint.not_removed path={} problem={}", path.string(), problem.message());
  }
}

Result<fs::path> CheckpointFolder::scratch() const {
  SAE_TRY_VOID(make_directories(state_ / lease_));
  return make_private_directory(state_ / lease_, ".scratch-");
}

}  // namespace saesweep::worker
