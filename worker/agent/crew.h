// The executors of a node and the runs they have: takes what the scheduler assigns, brings what it
// begins with, hands it to an executor, passes on what that says, and says what becomes of a run
// whose executor dies.
//
// One thread: that of the agent.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "scheduler/protocol/messages.pb.h"
#include "worker/agent/agent.h"
#include "worker/agent/chunk_service.h"
#include "worker/agent/fetching.h"
#include "worker/agent/log_feed.h"
#include "worker/agent/outbox.h"
#include "worker/agent/result_files.h"
#include "worker/agent/shipping.h"
#include "worker/agent/slot.h"
#include "worker/agent/store.h"

namespace saesweep::agent {

class Crew {
 public:
  // All of these outlive it.
  struct Tools {
    const AgentOptions& options;
    const Clock& clock;
    Outbox& outbox;
    Shipping& shipping;
    ChunkService& chunks;
  };
  explicit Crew(Tools tools);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // The store to work in. Nothing is taken before. Errors: as OwnStore::open(),
  // ResultFiles::open().
  Result<void> work_in(const StoreInUse& store);

  // ---- what the scheduler says
  void take(const protocol::Run& run);
  void control(const protocol::Control& wanted);
  void hear(const protocol::ResultAck& ack);

  // ---- what executors say
  void add_descriptors(std::vector<int>& descriptors);
  bool has_more() const;  // that can be read without waiting
  void serve(std::span<const int> readable);
  void kill_the_silent(TimePoint now);

  // ---- what there is to say of all
  bool is_running() const;  // something runs
  bool is_busy() const;     // or waits to be handed over
  protocol::Heartbeat heartbeat() const;
  protocol::Resync resync(std::uint64_t epoch) const;

  // ---- the way out
  // What runs checkpoints; nothing begins any more.
  void pause_all();
  // What has not paused by now is lost; what cannot be handed over by now is left.
  void abandon();

 private:
  Result<void> start_executor(Slot& slot);
  bool is_stale(const protocol::Run& run) const;
  std::string refusal_of(const protocol::Run& run, Slot* best);
  void begin(Slot& slot, protocol::Run run);
  void hand_over(Slot& slot);
  void give_back(Slot& slot, const std::string& why);
  void begin_next(Slot& slot);
  void fetched(const Fetching::Fetched& one);
  void tell(Slot& slot, const protocol::Envelope& envelope, int descriptor = -1);
  void died(Slot& slot);
  void hear(Slot& slot, protocol::ExecutorChannel::Heard heard);
  void hear_result(Slot& slot, protocol::TaskResult result);
  void finished(Slot& slot, std::uint64_t run_id);
  void read(Slot& slot);
  void say_lost(Slot& slot, const ExecutorDeath& death);
  void say_lost(std::uint64_t run, const std::string& task, std::uint64_t fence,
                const ExecutorDeath& death);
  void say_not_begun(const protocol::Run& run, const std::string& why);
  void pass_on_progress(Slot& slot);
  void trim_if_due();

  Tools tools_;
  std::vector<Slot> slots_;
  StoreInUse store_;
  std::optional<ResultFiles> results_;  // of an agent that outlives its scheduler
  Fetching fetching_;
  LogFeed logs_;
  std::map<std::string, std::uint64_t> fences_;  // the highest accepted, by task
  bool is_serving_ = true;
  ConnectionId next_connection_ = 1;
  TimePoint next_trim_{};
  std::uint64_t deaths_ = 0, restarts_ = 0, trained_ = 0, harvested_ = 0;
  std::uint64_t training_us_ = 0, waiting_us_ = 0;
};

}  // namespace saesweep::agent
