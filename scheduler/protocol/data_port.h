// Data ports: objects and chunks travel between machines beside the control plane, so that a large
// checkpoint delays no heartbeat. One ROUTER in a thread of its own answers requests one after the
// other; clients keep a window of pieces in flight.
//
// Nothing is assumed to arrive: every request may be repeated and means the same, so what is not
// answered in time is sent again, and what a peer knows is only what a reply said. Each message is
// [header 40 bytes][body], as in frame.h, unreliable, with a CRC; bodies are data.proto.
//
// Over TCP both ends need keys (security.h); only workers may ask, as long as their key counts.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "core/result.h"
#include "scheduler/protocol/data.pb.h"
#include "scheduler/protocol/security.h"

namespace saesweep::protocol {

inline constexpr std::uint32_t kPieceBytes = std::uint32_t{1} << 20;
inline constexpr std::size_t kPiecesInFlight = 8;  // of one client

DataStatus to_status(ErrorCode code);
ErrorCode to_error_code(DataStatus status);

class DataServer {
 public:
  // Called on the server's thread.
  using Answer = std::function<DataReply(const DataRequest&)>;
  // Binds and starts the thread. `endpoint` may end in port "*": endpoint() says which it is.
  // Errors: kUnavailable if the endpoint is taken; kInvalidArgument as secure_server_socket().
  static Result<DataServer> start(const std::string& endpoint, const ServerSecurity& security,
                                  Answer answer);
  DataServer(DataServer&&) noexcept;
  ~DataServer();

  const std::string& endpoint() const;
  // As others are told: "tcp://*:PORT" where it listens at every address of this machine.
  std::string announced() const;
  std::uint64_t dropped() const;  // messages that were no requests, or not by a worker

 private:
  struct State;
  explicit DataServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// One thread at a time.
class DataClient {
 public:
  struct Patience {
    std::chrono::milliseconds again{5'000};      // until an unanswered request is sent again
    std::chrono::milliseconds give_up{120'000};  // without any answer
  };
  // Errors: kInvalidArgument as secure_client_socket().
  static Result<DataClient> connect(const std::string& endpoint, const ClientSecurity& security,
                                    Patience patience);
  static Result<DataClient> connect(const std::string& endpoint, const ClientSecurity& security) {
    return connect(endpoint, security, Patience());
  }
  DataClient(DataClient&&) noexcept;
  ~DataClient();

  // Takes the next request, or nothing at the end; gets each reply, in no certain order, with the
  // request it belongs to. Errors of `take` and `hear` end the exchange.
  using Next = std::function<Result<bool>(DataRequest&)>;
  using Hear = std::function<Result<void>(const DataRequest&, const DataReply&)>;
  // Sends requests until `next` has no more and all are answered.
  // Errors: kUnavailable when nobody answers or `stop` was asked; what a reply says; those of the
  // two functions.
  Result<void> exchange(const Next& next, const Hear& hear, const std::stop_token& stop);
  // One request. Errors: as exchange().
  Result<DataReply> ask(DataRequest request, const std::stop_token& stop);

 private:
  struct State;
  explicit DataClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
