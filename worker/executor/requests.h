// What the agent asks of a run while it goes on: pause or cancel, all of it or one member. The main
// thread puts requests in, the trial thread takes them between two steps.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/protocol/messages.pb.h"

namespace saesweep::worker {

class Requests {
 public:
  // Main thread, before the run is queued: from now on it can be asked for.
  void expect(std::uint64_t run_id);
  // Main thread. False if there is no such run, or no longer.
  bool put(const protocol::Control& control);
  // Main thread: every run that is expected is asked to pause.
  void pause_all();

  // Trial thread.
  bool any(std::uint64_t run_id) const;
  std::vector<protocol::Control> take(std::uint64_t run_id);
  // The run is over; what nobody took is returned.
  std::vector<protocol::Control> forget(std::uint64_t run_id);

 private:
  mutable std::mutex mutex_;
  std::map<std::uint64_t, std::vector<protocol::Control>> asked_;  // by run; under mutex_
  std::atomic<std::uint32_t> count_ = 0;                           // of all requests: a quick no
};

}  // namespace saesweep::worker
