// A model of an agent and its executors: what worker/agent does with messages, with the real
// reliable layer, and executors that take virtual time, make checkpoints, and fail by nature.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "scheduler/protocol/conversation.h"
#include "scheduler/protocol/messages.pb.h"
#include "tests/sim/monitor.h"
#include "tests/sim/network.h"

namespace saesweep::sim {

// How a task behaves whenever it is tried; a function of seed and task.
enum class Nature { kPlain, kDiverges, kFails, kPoison, kHungry, kStarved, kFlaky, kDiesOnce };
struct Character {
  Nature nature = Nature::kPlain;
  double seconds = 30;    // of work
  double event_at = 0.5;  // what its nature does happens here, as a share
};
using CharacterOf = std::function<Character(const std::string& task)>;

class WorkerNode {
 public:
  struct Machine {
    std::string name;
    std::uint32_t slots = 1;
    std::uint64_t memory_bytes = 0;
    double speed = 1;
  };
  WorkerNode(Machine machine, Timeline& timeline, Network& network, const Faults& faults, Rng& rng,
             Monitor& monitor, std::set<std::string>& files, const CharacterOf& character)
      : machine_(std::move(machine)),
        timeline_(timeline),
        network_(network),
        faults_(faults),
        rng_(rng),
        monitor_(monitor),
        files_(files),
        character_(character) {}

  void start();  // a new process, a new session
  void crash();
  // Not by its own clock.
  void pause(Duration time) { paused_until_ = timeline_.now() + time; }
  void leave();  // checkpoints, BYE, the end
  void crash_executor();
  void hang_executor();

  bool is_alive() const { return alive_; }
  const std::string& session() const { return session_; }
  void hear_frame(const protocol::OutgoingFrame& frame);
  // (task, fence) of what runs.
  std::set<std::pair<std::string, std::uint64_t>> running() const;

 private:
  TimePoint clock() const { return clock_.at(timeline_.now()); }
  struct MemberOfRun {
    protocol::Member member;
    double done = 0;  // seconds of work
    double checkpointed = 0;
  };
  struct Slot {
    std::optional<protocol::Run> run;
    std::map<std::string, MemberOfRun> unfinished;
    std::optional<protocol::Run> next;
    bool hangs = false;
    double ending = 0;  // seconds that the executor winds down
    TimePoint heard;
    std::deque<protocol::Control> controls;
    bool is_free() const { return !next && unfinished.empty(); }
  };
  using Grant = std::pair<std::string, std::uint64_t>;

  void turn_later();
  void turn();
  void say(protocol::MessageType type, const google::protobuf::MessageLite& body);
  void mention(protocol::MessageType type, const google::protobuf::MessageLite& body);
  void flush();
  void say_result(protocol::TaskResult result);
  void say_hello();
  void say_heartbeat();
  void say_all_that_runs();
  std::vector<protocol::Resync::Lease> leases() const;
  void say_lost(const protocol::Run& run, const std::string& task, std::uint64_t fence, bool alone,
                const std::string& reason);

  void hear(const protocol::Welcome& welcome);
  void hear(const protocol::HeartbeatAck& ack);
  void take(const protocol::Run& run);
  void begin(Slot& slot, protocol::Run run);
  void control(const protocol::Control& wanted);
  void work(Slot& slot, double seconds);
  // False: its executor died.
  bool work_on(Slot& slot, MemberOfRun& member, double seconds);
  void answer_controls(Slot& slot);
  void checkpoint(const Slot& slot, MemberOfRun& member);
  void stop_at_rung(Slot& slot, MemberOfRun& member);
  void finish(Slot& slot, const std::string& task, protocol::Outcome outcome,
              const std::string& reason, bool out_of_memory = false);
  void die(Slot& slot, bool alone, const std::string& reason);
  void end_of_run(Slot& slot);

  Machine machine_;
  Timeline& timeline_;
  Network& network_;
  const Faults& faults_;
  Rng& rng_;
  Monitor& monitor_;
  std::set<std::string>& files_;
  const CharacterOf& character_;

  LocalClock clock_;
  bool alive_ = false;
  std::uint64_t life_ = 0;
  std::string session_;
  std::optional<protocol::WorkerConversation> conversation_;
  std::optional<protocol::ReliablePeer> peer_;
  std::deque<std::pair<protocol::MessageType, std::string>> waiting_;
  std::map<Grant, protocol::TaskResult> results_;
  std::vector<Slot> slots_;
  bool welcomed_ = false, leaving_ = false;
  std::uint64_t epoch_ = 0, told_epoch_ = 0;
  TimePoint next_hello_, last_heartbeat_, last_word_, last_turn_, paused_until_;
  TimePoint last_resend_, last_told_;
  std::map<std::string, std::uint64_t> fences_;
};

}  // namespace saesweep::sim
