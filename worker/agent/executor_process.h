// One supervised executor: its process, its socket, and why it died.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "core/result.h"
#include "scheduler/protocol/executor_channel.h"

namespace saesweep::agent {

struct ExecutorOptions {
  std::filesystem::path program;          // saesweep-task
  std::filesystem::path state_directory;  // absolute
  std::uint32_t slot = 0;
  std::uint32_t threads = 1;
  std::string log_level = "warn";
};

struct ExecutorDeath {
  bool by_kill = false;        // SIGKILL from outside: not the run's fault
  bool out_of_memory = false;  // the kernel killed it for memory
  std::string reason;          // "signal 11 (Segmentation fault); last words: ..."
};

class ExecutorProcess {
 public:
  // Started in a process group of its own, so that a terminal's Ctrl-C does not reach it; with an
  // environment of a few names; its output goes to STATE/logs/executor-<slot>.log.
  // Errors: kNotFound if there is no such program; kUnavailable; kResourceExhausted.
  static Result<ExecutorProcess> start(const ExecutorOptions& options);
  ExecutorProcess(ExecutorProcess&&) noexcept;
  ExecutorProcess& operator=(ExecutorProcess&&) noexcept;
  ~ExecutorProcess();  // kills it if it lives, and waits for it

  protocol::ExecutorChannel& channel();
  pid_t pid() const;

  // Waits for one that is dying (its socket is closed), or kills it; then says how it ended.
  ExecutorDeath bury();
  // Asks it to end, and kills it after two seconds.
  void dismiss();

 private:
  struct State;
  explicit ExecutorProcess(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::agent
