// A scheduler with agents that train nothing, as threads of one process that share nothing but
// sockets (tcp://127.0.0.1, CURVE): what bench programs measure.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/result.h"
#include "scheduler/decisions/decide.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/query.h"
#include "scheduler/service/scheduler_service.h"

namespace saesweep::scheduler {

// Of an unsorted list that is not empty.
double at_quantile(std::vector<double> values, double quantile);
double seconds_since(std::chrono::steady_clock::time_point from);

// A sweep of trials that are to be trained and not scored. Apart: no two may share a run.
Submission idle_submission(const std::string& name, std::uint64_t tasks, bool apart = false);
protocol::TaskResult idle_result(const protocol::Run& run, const protocol::Member& member);
protocol::AssignReply idle_acceptance(const protocol::Run& run);
protocol::Heartbeat idle_heartbeat(std::uint32_t free_slots);

// Answers to results, of all agents together.
class Answers {
 public:
  void add(std::uint64_t count);
  void expect(std::uint64_t more);
  bool wait(std::chrono::seconds patience);
  std::chrono::steady_clock::time_point last() const;

 private:
  mutable std::mutex mutex_;
  std::condition_variable reached_;
  std::uint64_t count_ = 0, awaited_ = 0;
  std::chrono::steady_clock::time_point last_;
};

// What all agents do, changed from outside while they serve.
struct Manners {
  std::atomic<std::int64_t> takes_ms = 0;      // a run does
  std::atomic<bool> holds = false;             // runs do not end
  std::atomic<bool> tells = false;             // of each run's progress, twice a second
  std::atomic<std::uint64_t> points_told = 0;  // members' progress
  std::atomic<std::uint64_t> runs_taken = 0;
};

// Accepts every run, and answers each of its members with done when it is time.
class IdleAgent {
 public:
  IdleAgent(std::string name, protocol::WorkerLink link, std::uint32_t slots, Answers& answers,
            Manners& manners);

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Owed {
    protocol::Run run;
    Time due;
    int answered = 0;  // of its members
  };
  void serve(const std::stop_token& stop);
  void hear(const protocol::HeardMessage& heard);
  void introduce();
  void take(const protocol::Assign& assign);
  void tell_all_that_runs(std::uint64_t epoch);
  bool pay();
  void tell_progress();
  void beat();

  std::string name_;
  std::uint32_t slots_;
  Answers& answers_;
  Manners& manners_;
  std::optional<protocol::WorkerLink> link_;
  std::deque<Owed> owed_;                        // by due
  std::deque<protocol::AssignReply> replies_;    // not sent yet
  std::map<std::uint64_t, std::uint64_t> hash_;  // of the leases of a run
  std::uint32_t running_ = 0;                    // members that are owed
  std::uint64_t running_hash_ = 0;
  std::uint64_t epoch_ = 0;
  bool has_credit_ = true;  // when it last wanted to send
  std::jthread thread_;     // last: it uses all of the above
};

class IdleCluster {
 public:
  // `directory`: scratch, for keys, state and sockets.
  Result<void> start(const std::filesystem::path& directory, std::uint32_t agents,
                     std::uint32_t slots);
  // The scheduler ends and begins anew at the same address; agents go on.
  Result<void> restart();
  void stop();
  ~IdleCluster() { stop(); }

  Manners manners;
  Answers answers;

  Result<Json> ask(const protocol::QueryClient::Question& question);
  // Until the scheduler has it for good. `payload`: of to_payload.
  Result<void> submit(const std::string& payload);
  struct Taken {
    double submit_s = 0;
    double all_s = 0;  // from then until the last answer
    double whole_s = 0;
  };
  Result<Taken> bring_through(Submission submission, std::chrono::seconds patience);
  // Processor time that the scheduler's thread takes a second, over so long.
  Result<double> scheduler_share(std::chrono::seconds time);
  std::filesystem::path journal() const { return directory_ / "state" / "journal"; }

 private:
  Result<void> begin(const std::string& endpoint);
  void end();

  std::filesystem::path directory_;
  std::optional<SchedulerService> service_;
  std::optional<protocol::QueryClient> client_;
  std::jthread thread_;
  std::list<IdleAgent> agents_;  // addresses stay
};

}  // namespace saesweep::scheduler
