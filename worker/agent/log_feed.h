// Sends what executors print to the scheduler's store, where people read it:
// STATE/logs/run-<id>.log grows there as it grows here, a few moments later, and is removed here
// once all of it is sent. Logs are for people: what a dying agent had not sent is lost.
//
// One thread; bytes are carried in a courier's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/clock.h"
#include "scheduler/protocol/data_port.h"
#include "scheduler/protocol/security.h"
#include "worker/agent/courier.h"

namespace saesweep::agent {

class LogFeed {
 public:
  explicit LogFeed(const Clock& clock) : clock_(clock) {}
  // From here on what is followed is sent, out of `directory`.
  void travel(const std::filesystem::path& directory, const protocol::ClientSecurity& security,
              protocol::DataClient::Patience patience);
  void go_to(const std::string& data_endpoint);

  void follow(std::uint64_t run);
  void end(std::uint64_t run);  // nothing more is printed
  void step();
  int signal() const;  // -1: there is none

 private:
  const Clock& clock_;
  std::filesystem::path directory_;
  std::map<std::uint64_t, bool> runs_;  // that are followed -> whether they have ended
  std::vector<std::uint64_t> last_;     // that had ended when the courier left
  TimePoint next_{};
  std::optional<Courier> courier_;
};

}  // namespace saesweep::agent
