// Carries objects over the data port in a thread of its own, one errand at a time, so that nobody
// who speaks to the scheduler waits for bytes. The thread owns the socket.
//
// An errand fails at the first object that cannot be carried; whoever sent it decides what follows.
// All calls from one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/data_port.h"

namespace saesweep::agent {

class Courier {
 public:
  // In the courier's thread. Errors: as push_object() and pull_object().
  using Carry = std::function<Result<void>(protocol::DataClient& client, const std::string& object,
                                           const std::stop_token& stop)>;
  Courier(std::string name, protocol::ClientSecurity security,
          protocol::DataClient::Patience patience, Carry carry);
  Courier(Courier&&) noexcept;
  ~Courier();  // what is under way is given up

  // Where the data port is now. What is under way to another place fails with kUnavailable.
  void go_to(const std::string& endpoint);

  bool is_idle() const;
  // Only when idle.
  void carry(std::uint64_t id, std::vector<std::string> objects);
  // What is under way fails with kUnavailable, soon.
  void give_up();

  struct Delivered {
    std::uint64_t id = 0;
    std::size_t carried = 0;  // objects from the first on, before the one that failed
    Result<void> outcome;
  };
  // The errand that has ended, if it has. Never waits.
  std::optional<Delivered> delivered();
  // A descriptor that can be read when there is something to take.
  int signal() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::agent
