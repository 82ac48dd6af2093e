// The scheduler as a running thing: journal, worker link and `decide` in one thread. `saesweep run`
// hosts one over ipc://, `serve` the same over tcp://.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/json.h"
#include "core/result.h"
#include "scheduler/protocol/security.h"
#include "sweeps/sweep_plan.h"

namespace saesweep::metrics {
class Telemetry;
}

namespace saesweep::scheduler {

// What became of one trial or baseline of a sweep, as far as it is known. Files are names to
// absolute paths of artifacts that are there.
struct SubjectResult {
  bool baseline = false;
  std::uint32_t number = 0;  // trials: in the sweep
  std::string identity;      // 64 hex digits
  Json spec;                 // TrialSpec::to_json() or BaselineSpec::to_json()
  std::string state;         // done | diverged | failed | stopped | cancelled | unfinished
  std::string reason;        // of every state but done
  std::uint64_t tokens = 0;  // trained on
  Json train_summary = Json::object();                 // of the train task's result
  std::map<std::string, std::filesystem::path> files;  // sae.safetensors, config.json, curve.csv
  std::vector<Json> evaluations;  // one per finished evaluation: the summary of its result
                                  // ({"scores": {...}, "details": ..., "histogram": ...})
};

struct SweepResult {
  std::string name;
  bool finished = false;
  double started = 0;  // Unix seconds
  std::optional<double> ended;
  std::string effective_yaml;
  std::vector<SubjectResult> subjects;  // trials by number, then baselines
  // train_lm sweeps: the model's files and the quality it reached
  std::map<std::string, std::filesystem::path>
      model_files;  // config.json, model.safetensors, training.json
  Json model_summary = Json::object();
};

// Things a person or a program watching wants to know, as they happen. `event` is one of the words
// of events.schema.json, the fields are those of that schema ("time" is added by who prints it).
// Called on the service's thread; must be quick.
using Observer = std::function<void(const Json& event)>;

struct ServiceOptions {
  std::filesystem::path state_directory;  // absolute; created if missing
  std::string endpoint;                   // to bind: "ipc:///tmp/x/workers", "tcp://127.0.0.1:7077"
  std::string client_endpoint = {};       // the same for those who ask; empty: nobody can
  std::string remote_client_endpoint = {};  // one more, for clients elsewhere
  // The data port, for agents that do not see the store; may end in port "*". Empty: there is none.
  std::string data_endpoint = {};
  protocol::ServerSecurity security = {};  // of tcp:// addresses
  // Holds checkpoints and artifacts; absolute. Empty: where they are already, at first the state
  // directory itself.
  std::filesystem::path store_directory = {};
  // `serve`: sweeps come over the client endpoint, their end is no reason to end, and agents go on
  // while nobody serves. A disk that fails makes it read-only until it works again.
  bool stays = false;
  std::string build;        // version and commit
  std::uint32_t slots = 1;  // of the agent that will come; cohorts are cut by it
  Observer observer;
  metrics::Telemetry* telemetry = nullptr;  // outlives the service
};

class SchedulerService {
 public:
  // Opens STATE/journal and binds. Writes STATE/endpoint.json.
  // Errors: kUnavailable if another process holds the state directory (who); kInvalidArgument if it
  // is of another version or on a network file system; kResourceExhausted on a full disk.
  static Result<SchedulerService> open(ServiceOptions options);
  SchedulerService(SchedulerService&&) noexcept;
  ~SchedulerService();

  // Durable when it returns. Submitting a plan again is the same sweep; a changed plan of the same
  // name replaces it: what is already trained or scored under the same identity is kept.
  Result<void> submit(const sweeps::SweepPlan& plan);

  // Serves until every submitted sweep is finished (true) or `stop` was asked and all agents have
  // checkpointed and said BYE, or did not within 40 s (false). One that stays ends when `stop` was
  // asked, at once: true if every sweep is finished.
  // Errors: kResourceExhausted when the journal's disk is full, kUnavailable when it fails: what
  // ran was told to checkpoint.
  Result<bool> run(const std::stop_token& stop);

  std::string endpoint() const;         // as bound: with the port that was given for port 0
  std::string client_endpoint() const;  // empty: none
  std::string data_endpoint() const;    // as agents are told; empty: none

  // Of the sweep as the journal has it. Any thread, after run() has returned.
  Result<SweepResult> result(const std::string& sweep) const;

 private:
  struct State;
  explicit SchedulerService(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The same from a state directory that another process may be serving: what was committed by now.
// An empty name means the sweep submitted last. Errors: kNotFound (with the names there are);
// kInvalidArgument for another version.
Result<SweepResult> read_sweep(const std::filesystem::path& state_directory,
                               const std::string& sweep);
// Names of the sweeps in a state directory, newest first.
Result<std::vector<std::string>> list_sweeps(const std::filesystem::path& state_directory);

}  // namespace saesweep::scheduler
