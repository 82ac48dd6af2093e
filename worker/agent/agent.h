// The agent of a node: asks the scheduler for work, keeps one warm executor (`saesweep-task`) per
// slot, supervises them, owns the activation cache and reports. A crash of an executor never takes
// the agent along; the agent's death ends its executors (end of file on their sockets).
//
// One thread owns the DEALER socket, the executors' sockets and the chunk service.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stop_token>
#include <string>

#include "core/result.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/security.h"

namespace saesweep::agent {

struct AgentOptions {
  std::string endpoint;                    // of the scheduler: "ipc:///..." or "tcp://..."
  protocol::ClientSecurity security = {};  // of a tcp:// one
  std::string name = "local";              // shown to people
  std::string build;                       // of this program
  // Absolute; holds the cache. Checkpoints and artifacts go to the scheduler's store, which it
  // names when it welcomes us: directly if this machine sees it, else they are made here, in a
  // store of our own, and travel over the data port.
  std::filesystem::path state_directory;
  std::filesystem::path task_program;  // saesweep-task
  // Where chunks of our cache are served to agents of other nodes (chunk_server.h): "tcp://HOST:*".
  // Empty: nowhere.
  std::string chunks_endpoint = {};
  std::uint32_t slots = 1;
  std::uint32_t gpus = 0;                           // that its executors can train on
  std::uint64_t gpu_memory_bytes = 0;               // of a GPU, for one slot; 0: unknown
  std::uint32_t threads = 1;                        // all slots together
  std::uint64_t memory_bytes = 0;                   // for all runs together; 0: unknown
  std::string log_level = "warn";                   // of executors
  std::chrono::milliseconds stop_patience{30'000};  // for executors to checkpoint when stopping
  // Silence after which the scheduler is gone for good: until then what runs goes on, makes its
  // checkpoints, and waits to be adopted by a scheduler that began anew.
  std::chrono::milliseconds scheduler_patience{600'000};
  // HELLO to another scheduler is said at a random moment of this long, for there are many agents.
  std::chrono::milliseconds reconnect_spread{2'000};
  // Silence after which a busy executor hangs.
  std::chrono::milliseconds executor_patience{600'000};
  // What runs goes on after a scheduler's BYE too, for `scheduler_patience`; else its BYE is ours.
  bool outlives_scheduler = false;
  std::chrono::milliseconds idle_timeout{0};          // without a run; 0: waits for ever
  protocol::DataClient::Patience data_patience = {};  // with the data port
};

// Why an agent ended.
enum class AgentEnd : std::uint8_t {
  kStopped,        // it was asked to
  kDismissed,      // the scheduler said BYE
  kIdle,           // nothing to do for `idle_timeout`
  kDrained,        // the scheduler asked for no new work, and the old is done
  kAlone,          // the scheduler was gone for too long
  kNotAuthorised,  // the scheduler does not want this agent
  kMisplaced,      // the scheduler's store is out of reach
};

class Agent {
 public:
  // Opens the cache (STATE/cache; without one if it cannot be) and connects. Starts no executor
  // before there is work.
  // Errors: kNotFound if task_program is not there; kInvalidArgument; kUnavailable.
  static Result<Agent> create(AgentOptions options);
  Agent(Agent&&) noexcept;
  ~Agent();

  // Until `stop` (runs are paused: each member checkpoints and says so, then BYE) or until the
  // scheduler says BYE. In the thread that called create().
  // Errors: kUnavailable if the scheduler refused this agent or was gone for too long; what ran has
  // checkpointed then. kInvalidArgument if its store is out of reach.
  Result<void> run(const std::stop_token& stop);
  AgentEnd end() const;  // after run()

 private:
  struct State;
  explicit Agent(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::agent
