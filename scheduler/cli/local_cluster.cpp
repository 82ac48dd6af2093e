#include "scheduler/cli/local_cluster.h"

#include <fmt/format.h>

#include "core/files.h"
#include "core/log.h"
#include "core/thread.h"

namespace saesweep::cli {
namespace {

constexpr std::size_t kLongestSocketPath = 107;  // sun_path of Linux less its end
constexpr const char* kSocketName = "workers";

}  // namespace

Result<SocketFolder> SocketFolder::make() {
  std::error_code error;
  std::filesystem::path parent = std::filesystem::temp_directory_path(error);
  constexpr std::string_view kPrefix = "saesweep-";
  // The folder's own ending is short; 16 is more than it needs.
  const std::size_t longest = parent.string().size() + kPrefix.size() + 16 + 10;
  if (error || longest > kLongestSocketPath) parent = "/tmp";
  SAE_TRY(std::filesystem::path path, make_private_directory(parent, kPrefix));
  return SocketFolder(std::move(path));
}

std::string SocketFolder::endpoint() const {
  return fmt::format("ipc://{}", (path_ / kSocketName).string());
}

void SocketFolder::remove() {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
  path_.clear();
}

LocalCluster::LocalCluster(scheduler::SchedulerService& service, agent::AgentOptions agent) {
  scheduler_ = run_thread("scheduler", [this, &service](std::stop_token stop) {
    served_ = service.run(std::move(stop));
    ended_.store(true, std::memory_order_release);
  });
  agent_ = run_thread("agent", [this, options = std::move(agent)](std::stop_token stop) {
    // Made here: its sockets belong to this thread.
    auto made = agent::Agent::create(options);
    const Result<void> ran = made ? made->run(std::move(stop)) : fail(made.error());
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
