// What a run tells the agent: each member gets exactly one answer, a result or the end of a pause.
// Trial thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/result.h"
#include "scheduler/protocol/messages.pb.h"
#include "worker/executor/agent_link.h"
#include "worker/executor/requests.h"

namespace saesweep::worker {

class RunReport {
 public:
  // How often progress is told, at most.
  static constexpr std::chrono::milliseconds kProgressEvery{500};

  RunReport(const protocol::Run& run, AgentLink& link, Requests& requests, const Clock& clock);

  const protocol::Run& run() const { return run_; }
  // Members without an answer, in the order of the run.
  std::vector<const protocol::Member*> open_members() const;
  bool is_open(const protocol::Member& member) const;

  // `result` lacks only run, task and fence.
  void finish(const protocol::Member& member, protocol::TaskResult result);
  // An outcome by the error's code. `kDisk`: what went wrong was writing, so that a resource that
  // is exhausted is the disk, not memory.
  enum class During { kWork, kDisk };
  void give_up(const protocol::Member& member, const Error& error, During during = During::kWork);
  void give_up_all(const Error& error);
  // True when a member was answered so.
  bool ran_out_of_memory() const { return ran_out_of_memory_; }
  void checkpointed(const protocol::Member& member, const protocol::CheckpointRef& checkpoint,
                    const std::string& reason);

  // True when somebody asks for something: work in progress should stop with kUnavailable.
  bool is_asked() const { return requests_.any(run_.run_id()); }
  // Takes what is asked. `leave` is called for each open member that is to go, before its answer is
  // sent: with `pause` it writes its checkpoint.
  using Leave = std::function<void(const protocol::Member& member, bool pause)>;
  void answer_requests(const Leave& leave);

  // Counts work for the agent's counters and for the rate.
  void count_trained(std::uint64_t tokens) { trained_ += tokens; }
  void count_harvested(std::uint64_t tokens) { harvested_ += tokens; }
  // Of training: what it took, and how much of that was waiting for rows.
  void count_time(Duration training, Duration waiting);
  bool progress_is_due() const { return clock_.now() >= next_progress_; }
  // Sends it if one is due. `done` of `total` tokens; the rate is that of `done`.
  void progress(const std::string& stage, std::uint64_t done, std::uint64_t total,
                std::vector<protocol::MemberProgress> members = {});
  // The last counts and the end of the run.
  void finished();

 private:
  void send_counts();
  double waiting_share() const;
  void answered(const protocol::Control& control, const std::string& task, std::uint64_t fence,
                const std::string& outcome);

  const protocol::Run& run_;
  AgentLink& link_;
  Requests& requests_;
  const Clock& clock_;
  std::map<std::string, bool> answered_;  // by task
  bool ran_out_of_memory_ = false;
  std::uint64_t trained_ = 0, harvested_ = 0;
  Duration stepping_{}, waiting_{};                  // of the run
  std::uint64_t told_us_ = 0, told_waiting_us_ = 0;  // of these
  TimePoint next_progress_{};
  // Of the last progress message, for the rate.
  std::string last_stage_;
  std::uint64_t last_done_ = 0;
  TimePoint last_time_{};
  double rate_ = 0;
};

}  // namespace saesweep::worker
