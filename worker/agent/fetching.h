// Brings what runs begin with, checkpoints, artifacts of other tasks and files that the sweep
// names, from the scheduler's store into our own. One run after the other, in a courier's thread.
//
// A line that is cut is waited for. What is not over there, or cannot be read there, is left out:
// the executor then does without it, or says what it misses.
//
// One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/result.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/messages.pb.h"
#include "scheduler/protocol/security.h"
#include "worker/agent/courier.h"
#include "worker/agent/own_store.h"

namespace saesweep::agent {

class Fetching {
 public:
  explicit Fetching(const Clock& clock) : clock_(clock) {}
  // From here on objects come into `store`, which outlives this.
  void travel(OwnStore& store, const protocol::ClientSecurity& security,
              protocol::DataClient::Patience patience);
  void go_to(const std::string& data_endpoint);

  // False if everything is here already. Else the run is among fetched() later.
  bool begin(const protocol::Run& run);
  void forget(std::uint64_t run);

  struct Fetched {
    std::uint64_t run = 0;
    Result<void> outcome;  // kResourceExhausted: our disk is full
  };
  std::vector<Fetched> step();
  int signal() const;  // -1: there is none
  void add_in_use(std::set<std::string>& objects) const;

 private:
  struct Wanted {
    std::uint64_t run = 0;
    std::vector<std::string> objects;
    std::uint64_t errand = 0;  // under way; 0: none
    int tries = 0;
    TimePoint not_before{};
  };
  std::optional<Fetched> finish(Wanted& wanted, const Courier::Delivered& done);

  const Clock& clock_;
  OwnStore* store_ = nullptr;
  std::optional<Courier> courier_;
  std::deque<Wanted> wanted_;
  std::uint64_t last_errand_ = 0;
};

// The objects that a run begins with.
std::vector<std::string> objects_of(const protocol::Run& run);

}  // namespace saesweep::agent
