#include "scheduler/service/checkpoints.h"

#include <unistd.h>

#include <charconv>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "core/log.h"
#include "scheduler/decisions/sweep_state.h"

namespace saesweep::scheduler {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStep = "step-";
constexpr int kTries = 3;

void remove_whole(const fs::path& directory) {
  std::error_code problem;
  // Who just lost the lease may be removing files of its own there.
  for (int tries = 0; tries < kTries; ++tries) {
    fs::remove_all(directory, problem);
    if (problem != std::errc::no_such_file_or_directory) break;
  }
  if (problem)
    log::warn("checkpoints.not_removed directory={} problem={}", directory.string(),
              problem.message());
}

}  // namespace

void forget_checkpoints(const fs::path& store, const journal::Task& task) {
  const bool for_good = is_finished(task) && !(task.has_failed() && task.failed().passing());
  if (!for_good || task.spec().directory().empty()) return;
  // Mostly there are none, which this says soonest.
  const std::string directory = store.native() + '/' + task.spec().directory();
  if (::access(directory.c_str(), F_OK) == 0) remove_whole(directory);
}

void forget_checkpoints_before(const fs::path& store, const journal::Task& task,
                               std::uint64_t step) {
  if (task.spec().directory().empty()) return;
  std::vector<fs::path> old;
  std::error_code ignored;
  for (const auto& lease : fs::directory_iterator(store / task.spec().directory(), ignored))
    for (const auto& entry : fs::directory_iterator(lease.path(), ignored)) {
      const std::string name = entry.path().filename();
      std::uint64_t number = 0;
      const char* end = name.data() + name.size();
      if (name.starts_with(kStep) &&
          std::from_chars(name.data() + kStep.size(), end, number).ptr == end && number < step)
        old.push_back(entry.path());
    }
  for (const fs::path& path : old) remove_whole(path);
}

}  // namespace saesweep::scheduler
