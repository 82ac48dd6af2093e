// Scheduler and agent in this process, each in its thread, joined by a socket in a private folder.
#pragma once

#include <atomic>
#include <filesystem>
#include <optional>
#include <thread>

#include "core/error.h"
#include "core/result.h"
#include "scheduler/service/scheduler_service.h"
#include "worker/agent/agent.h"

namespace saesweep::cli {

// A folder of mode 0700 for sockets, gone with this value.
class SocketFolder {
 public:
  // In the temporary directory, or in /tmp where that makes a path longer than a socket may have.
  // Errors: kUnavailable, kResourceExhausted.
  static Result<SocketFolder> make();
  SocketFolder(SocketFolder&& other) noexcept : path_(std::move(other.path_)) {
    other.path_.clear();
  }
  SocketFolder& operator=(SocketFolder&&) = delete;
  ~SocketFolder() { remove(); }

  std::string endpoint() const;  // "ipc:///tmp/saesweep-x/workers"
  void remove();

 private:
  explicit SocketFolder(std::filesystem::path path) : path_(std::move(path)) {}
  std::filesystem::path path_;
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
