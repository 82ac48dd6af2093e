// What the agent says of tasks, in the order in which it heard it: checkpoints, results, answers.
// Where the scheduler's store is out of sight, a word waits until the objects that it names are in
// that store; the words of one run keep their order, other runs pass by, and nobody waits who has
// something to say that names nothing.
//
// A push is tried until it succeeds or the lease is lost. Of the checkpoints of a task that wait,
// the newest is kept; a result makes them needless.
//
// One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/clock.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"
#include "worker/agent/courier.h"
#include "worker/agent/outbox.h"
#include "worker/agent/own_store.h"

namespace saesweep::agent {

class Shipping {
 public:
  Shipping(Outbox& outbox, const Clock& clock) : outbox_(outbox), clock_(clock) {}

  // From here on objects travel, out of `store`.
  void travel(OwnStore store, const protocol::ClientSecurity& security,
              protocol::DataClient::Patience patience);
  bool travels() const { return store_.has_value(); }
  OwnStore& store() { return *store_; }  // once they do
  void go_to(const std::string& data_endpoint);

  void say(protocol::Checkpointed word);
  void say(protocol::ControlDone word);
  // `is_old`: an agent before us heard it, so that no lease of ours goes with it.
  void say(protocol::TaskResult word, bool is_old = false);
  // The scheduler has lost the artifacts of a result that was said: they are sent once more.
  void say_again(protocol::TaskResult word);
  void acknowledged(const std::string& task, std::uint64_t fence);

  // Whether a word of a lease waits. An empty task is all of the run.
  bool has(std::uint64_t run, const std::string& task, std::uint64_t fence) const;
  // The lease is lost: what waits of it is not said any more.
  void drop(std::uint64_t run, const std::string& task, std::uint64_t fence);
  // Nothing is carried any more: what names nothing is said, the rest is left to an agent that
  // comes after us.
  void abandon();

  struct Waiting {
    std::uint64_t run = 0;
    std::string task;
    std::uint64_t fence = 0;
    bool has_result = false;
    bool is_old = false;
  };
  // Leases of which a word waits; checkpoints alone are not told.
  std::vector<Waiting> waiting() const;
  bool is_empty() const { return queues_.empty(); }
  // Objects that are not to be removed.
  void add_in_use(std::set<std::string>& objects) const;

  // Takes what the courier brought and sends it on its way again. To be called when signal() can be
  // read and now and then.
  void step();
  int signal() const;  // -1: there is none

 private:
  using Body = std::variant<protocol::Checkpointed, protocol::TaskResult, protocol::ControlDone>;
  struct Word {
    Body body;
    std::vector<std::string> objects;  // that it waits for
    std::uint64_t errand = 0;          // under way; 0: none
    int tries = 0;
    TimePoint not_before{};
    bool is_old = false;
  };
  using Queue = std::deque<Word>;

  static bool is_of(const Word& word, const std::string& task, std::uint64_t fence);
  void pass(const Body& body);
  void enqueue(Word word);
  void flush(std::uint64_t run);
  bool finish(Word& word, const Courier::Delivered& done);
  void let_go(const Word& word) const;
  void send_next();

  Outbox& outbox_;
  const Clock& clock_;
  std::optional<OwnStore> store_;
  std::optional<Courier> courier_;                                   // after what it reads
  std::map<std::uint64_t, Queue> queues_;                            // by run; none is empty
  std::map<std::pair<std::string, std::uint64_t>, int> said_again_;  // by task and fence
  std::uint64_t last_errand_ = 0, last_run_ = 0;
};

}  // namespace saesweep::agent
