#include "scheduler/cli/local_cluster.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <string_view>
#include <system_error>

#include "core/files.h"
#include "core/log.h"
#include "core/thread.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestSocketPath = 107;  // sun_path of Linux less its end
constexpr const char* kSocketName = "workers";
constexpr const char* kClientSocketName = "clients";
constexpr std::string_view kPrefix = "saesweep-run-";
// A folder younger than this may not have been locked yet by the one who just made it.
constexpr std::chrono::minutes kSurelyLocked{1};

// The folder's descriptor if nobody else holds its lock; else -1.
int lock_folder(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (file < 0 || ::flock(file, LOCK_EX | LOCK_NB) == 0) return file;
  ::close(file);
  return -1;
}

// What processes left that were killed.
void remove_abandoned(const fs::path& parent) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(parent, error)) {
    if (!entry.path().filename().string().starts_with(kPrefix)) continue;
    struct stat info {};
    if (::lstat(entry.path().c_str(), &info) != 0 || !S_ISDIR(info.st_mode) ||
        info.st_uid != ::geteuid())
      continue;
    const auto age = fs::file_time_type::clock::now() - entry.last_write_time(error);
    if (error || age < kSurelyLocked) continue;
    const int lock = lock_folder(entry.path());
    if (lock < 0) continue;
    fs::remove_all(entry.path(), error);
    ::close(lock);
  }
}

}  // namespace

Result<SocketFolder> SocketFolder::make() {
  std::error_code error;
  fs::path parent = fs::temp_directory_path(error);
  // The ending that makes the folder's name its own is short; 16 is more than it needs.
  const std::size_t longest = parent.string().size() + kPrefix.size() + 16 + 10;
  if (error || longest > kLongestSocketPath) parent = "/tmp";
  return make(parent);
}

Result<SocketFolder> SocketFolder::make(const fs::path& parent) {
  remove_abandoned(parent);
  SAE_TRY(fs::path path, make_private_directory(parent, kPrefix));
  const int lock = lock_folder(path);
  return SocketFolder(std::move(path), lock);
}

std::string SocketFolder::endpoint() const {
  return fmt::format("ipc://{}", (path_ / kSocketName).string());
}

std::string SocketFolder::client_endpoint() const {
  return fmt::format("ipc://{}", (path_ / kClientSocketName).string());
}

void SocketFolder::remove() {
  if (path_.empty()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  path_.clear();
  if (lock_ >= 0) ::close(std::exchange(lock_, -1));
}

LocalCluster::LocalCluster(scheduler::SchedulerService& service, agent::AgentOptions agent) {
  scheduler_ = run_thread("scheduler", [this, &service](const std::stop_token& stop) {
    served_ = service.run(stop);
    ended_.store(true, std::memory_order_release);
  });
  agent_ = run_thread("agent", [this, options = std::move(agent)](const std::stop_token& stop) {
    // Made here: its sockets belong to this thread.
    auto made = agent::Agent::create(options);
    const Result<void> ran = made ? made->run(stop) : fail(made.error());
    if (ran) return;
    agent_error_ = ran.error();
    log::error("agent.ended error={}", ran.error().message);
    scheduler_.request_stop();  // nobody else would come to do the work
  });
}

LocalCluster::~LocalCluster() {
  scheduler_.request_stop();
  agent_.request_stop();
}

void LocalCluster::stop() { scheduler_.request_stop(); }

Result<bool> LocalCluster::finish() {
  if (scheduler_.joinable()) scheduler_.join();
  agent_.request_stop();
  if (agent_.joinable()) agent_.join();
  if (served_ && *served_) return true;
  if (agent_error_) return fail(*agent_error_);
  return served_;
}

}  // namespace saesweep::cli
