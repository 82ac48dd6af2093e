// An agent for one executor: starts the real program with a socket, hands it runs, serves its
// chunks, keeps what it says.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/protocol/executor_channel.h"
#include "storage/activation_cache.h"
#include "worker/agent/chunk_service.h"

namespace saesweep::test {

class FakeAgent {
 public:
  // With `cache`: an activation cache there.
  explicit FakeAgent(std::filesystem::path state,
                     const std::optional<std::filesystem::path>& cache = std::nullopt,
                     const std::filesystem::path& program = SAESWEEP_BINARY_DIR
                     "/bin/saesweep-task");
  ~FakeAgent();  // kills the executor

  void send(const protocol::Envelope& envelope);
  void send_run(const protocol::Run& run);
  void send_control(std::uint64_t run_id, const std::string& verb, const std::string& task = "");

  // Serves the executor until it says something `wanted`. Fails the test after a minute, or when it
  // dies.
  using Wanted = std::function<bool(const protocol::Envelope&)>;
  std::optional<protocol::Envelope> wait_for(const Wanted& wanted);

  // What a run left, by task.
  struct Left {
    std::map<std::string, protocol::TaskResult> results;
    std::map<std::string, protocol::CheckpointRef> checkpoints;  // the newest
    std::map<std::string, std::string> control;                  // outcome of what was asked
    std::uint64_t trained = 0, harvested = 0;
  };
  Left run_to_end(const protocol::Run& run);
  Left wait_for_end(std::uint64_t run_id);

  void kill();      // SIGKILL
  int wait_exit();  // exit code, 128 + signal
  void hang_up() { channel_.reset(); }
  pid_t pid() const { return pid_; }
  agent::ChunkCounters chunk_counters() const { return chunks_->counters(); }

 private:
  bool serve_chunks(const protocol::Envelope& envelope);
  std::optional<storage::ActivationCache> cache_;
  std::unique_ptr<agent::ChunkService> chunks_;
  std::optional<protocol::ExecutorChannel> channel_;
  pid_t pid_ = -1;
  Left left_;  // of the run at hand
};

}  // namespace saesweep::test
