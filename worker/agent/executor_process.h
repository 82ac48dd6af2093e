// One supervised executor: its process, its socket, what it prints, and why it died.
//
// It runs in a process group of its own, so that a terminal's Ctrl-C does not reach it, with an
// environment of a few names and no descriptor but its socket. What it prints goes to
// STATE/logs/executor-<slot>.log, which is moved to .log.old when it has grown to kMaxLogBytes, or
// to the log of a run, which ends there when it has.
// The kernel kills it when the thread that started it is gone.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/result.h"
#include "scheduler/protocol/executor_channel.h"

namespace saesweep::agent {

struct ExecutorOptions {
  std::filesystem::path program;               // saesweep-task
  std::filesystem::path state_directory;       // absolute; of the agent
  std::filesystem::path store_directory = {};  // of checkpoints and artifacts; empty: the same
  std::uint32_t slot = 0;
  std::uint32_t threads = 1;
  std::string log_level = "warn";
  // A file with a line "oom_kill <count>"; empty: the one of our control group, or the system's.
  std::filesystem::path memory_events;
};

struct ExecutorDeath {
  bool by_kill = false;        // SIGKILL from outside: not the run's fault
  bool out_of_memory = false;  // the kernel killed it for memory
  std::string reason;          // "killed by SIGSEGV; last words: ..."
};

class ExecutorProcess {
 public:
  static constexpr std::uintmax_t kMaxLogBytes = 1 << 20;

  // Starts it and sends ExecutorStart.
  // Errors: kNotFound if there is no such program; kUnavailable; kResourceExhausted.
  static Result<ExecutorProcess> start(const ExecutorOptions& options);
  ExecutorProcess(ExecutorProcess&&) noexcept;
  ExecutorProcess& operator=(ExecutorProcess&&) noexcept;
  ~ExecutorProcess();  // kills it if it lives, and waits for it

  protocol::ExecutorChannel& channel();
  pid_t pid() const;

  // A descriptor to poll, and what to do when it can be read; -1 when there will be no more.
  int output() const;
  void read_output();

  // What it prints from here on goes to this file; empty: to the log of its slot.
  void log_to(const std::filesystem::path& file);

  // Closes its socket, which tells it to end at once.
  void hang_up();
  // Kills it for a reason of ours, which its death will name.
  void kill(std::string why);

  // Waits for one that is ending, kills it if it does not, and says how it ended.
  ExecutorDeath bury();

 private:
  struct State;
  explicit ExecutorProcess(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::agent
