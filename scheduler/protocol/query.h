// The sockets between the scheduler and the people who ask it: ROUTER and DEALER, the frames of
// frame.h with QUERY and REPLY in them.
//
// A client repeats a question under its id until it is answered, so a restart of the scheduler in
// between costs patience only; a wish that changes something also carries a key, under which it
// happens once. Payloads and answers beyond a message's size travel in pieces.
//
// Like the links of agents: made, used and closed in one thread, sends never wait.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/security.h"

namespace saesweep::protocol {

class QueryReply;

// Whom an answer is for.
struct Asker {
  std::string peer;        // routing id
  std::uint64_t id = 0;    // of the question
  bool at_link = false;    // it asked at the socket of the agents
  std::size_t server = 0;  // for who has several: which
};

struct HeardQuery {
  Asker asker;
  std::string verb;
  Json body = Json::object();
  std::string key;      // empty: nothing changes
  std::string payload;  // whole
};

// The word of an error on the wire, and back; "ok" is none of them.
std::string_view code_word(ErrorCode code);
ErrorCode code_of(std::string_view word);  // kUnavailable for a word of a later version

class QueryServer {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{2} << 20;
  static constexpr std::size_t kMostPayloadBytes = std::size_t{1} << 30;
  static constexpr std::size_t kMostUploads = 16;  // payloads under way at a time

  // Errors: kUnavailable if the endpoint is taken; kInvalidArgument if it is none or needs keys.
  static Result<QueryServer> bind(const std::string& endpoint, const ServerSecurity& security = {});
  QueryServer(QueryServer&&) noexcept;
  QueryServer& operator=(QueryServer&&) noexcept;
  ~QueryServer();

  std::string endpoint() const;  // with the port that was given for port 0
  void* handle() const;          // for SchedulerLink::poll

  // Whole questions that are here by now; what is none gets an answer that says so, or none.
  std::vector<HeardQuery> take();
  // The same of a QUERY that came to the agents' socket, whose answers go out over `send`.
  std::vector<HeardQuery> take(const HeardMessage& message);
  using Send = std::function<void(const std::string& peer, const QueryReply& piece)>;
  void answer_at_link(Send send);
  void answer(const Asker& asker, const Json& body);
  void refuse(const Asker& asker, const Error& error);

 private:
  struct State;
  explicit QueryServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class QueryClient {
 public:
  // Errors: kInvalidArgument for an endpoint that is none or needs keys.
  static Result<QueryClient> connect(const std::string& endpoint,
                                     const ClientSecurity& security = {});
  QueryClient(QueryClient&&) noexcept;
  QueryClient& operator=(QueryClient&&) noexcept;
  ~QueryClient();

  struct Question {
    std::string verb;
    Json body = Json::object();
    std::string key = {};  // for a wish that changes something: new_key(), the same when repeated
    std::string_view payload = {};
  };
  // Errors: what the scheduler says; kUnavailable if nothing is heard within `patience`.
  Result<Json> ask(const Question& question, std::chrono::milliseconds patience);

  static std::string new_key();

 private:
  struct State;
  explicit QueryClient(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::protocol
