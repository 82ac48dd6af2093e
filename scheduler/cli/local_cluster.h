// Scheduler and agent in this process, each in its thread, joined by a socket in a private folder.
#pragma once

#include <atomic>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/result.h"
#include "scheduler/service/scheduler_service.h"
#include "worker/agent/agent.h"

namespace saesweep::cli {

// A folder of mode 0700 for sockets, gone with this value. It is locked while its owner lives, so
// that what a killed process left behind can be told and removed.
class SocketFolder {
 public:
  // In the temporary directory, or in /tmp where that makes a path longer than a socket may have.
  // Errors: kUnavailable, kResourceExhausted.
  static Result<SocketFolder> make();
  static Result<SocketFolder> make(const std::filesystem::path& parent);
  SocketFolder(SocketFolder&& other) noexcept
      : path_(std::exchange(other.path_, {})), lock_(std::exchange(other.lock_, -1)) {}
  SocketFolder& operator=(SocketFolder&&) = delete;
  ~SocketFolder() { remove(); }

  std::string endpoint() const;         // "ipc:///tmp/saesweep-x/workers"
  std::string client_endpoint() const;  // the same for those who ask
  void remove();

 private:
  SocketFolder(std::filesystem::path path, int lock) : path_(std::move(path)), lock_(lock) {}
  std::filesystem::path path_;
  int lock_;  // descriptor of the folder
};

class LocalCluster {
 public:
  // Starts both threads; `service` outlives this and is used by nobody else until finish().
  LocalCluster(scheduler::SchedulerService& service, agent::AgentOptions agent);
  ~LocalCluster();
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;

  // Everything that runs makes a checkpoint and ends; returns at once.
  void stop();
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  // Waits for the end: true if every sweep is finished, false if stopped before.
  // Errors: those of the service and of the agent.
  Result<bool> finish();

 private:
  Result<bool> served_ = false;       // by the scheduler's thread, read after it ended
  std::optional<Error> agent_error_;  // the same of the agent's
  std::atomic<bool> ended_ = false;
  std::jthread scheduler_;
  std::jthread agent_;
};

}  // namespace saesweep::cli
