// How a verb finds the scheduler that it asks, and asks it.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "core/json.h"
#include "core/result.h"
#include "scheduler/protocol/query.h"
#include "scheduler/protocol/security.h"
#include "scheduler/service/scheduler_service.h"

namespace CLI {  // NOLINT(readability-identifier-naming): theirs
class App;
}

namespace saesweep::cli {

struct AskFlags {
  std::string connect, access;
  std::string state = "./saesweep-data";
};
// --connect, --access and --state.
void add_ask_flags(CLI::App& verb, AskFlags& flags);

// Where a client or worker connects, and with which keys: those of an access bundle, or none on
// loopback.
struct Way {
  std::string endpoint;
  protocol::ClientSecurity security;
};
// From --access FILE and --connect ADDRESS, of which one is not empty. An address beside a bundle
// overrides that of the bundle. Errors: kInvalidArgument, kNotFound.
Result<Way> way_to(const std::string& connect, const std::string& access);

class Scheduler {
 public:
  // The one that --access or --connect names, else the one that serves the state directory now.
  // Errors: kUnavailable if none lives there, saying how to start one; kInvalidArgument.
  static Result<Scheduler> find(const AskFlags& flags);

  // Errors: the scheduler's; kUnavailable if it does not answer in time.
  Result<Json> ask(const std::string& verb, Json body = Json::object(),
                   std::chrono::seconds patience = std::chrono::seconds(10));
  // The same of something that changes the state; durable when it returns.
  Result<Json> wish(const std::string& verb, Json body, std::string_view payload = {});

  // What it says when it cannot write its journal; the last answer tells.
  const std::string& trouble() const { return trouble_; }

 private:
  Scheduler(AskFlags flags, std::string endpoint, protocol::QueryClient client)
      : flags_(std::move(flags)), endpoint_(std::move(endpoint)), client_(std::move(client)) {}
  Result<Json> put(const protocol::QueryClient::Question& question, std::chrono::seconds patience);

  AskFlags flags_;
  std::string endpoint_;
  protocol::QueryClient client_;
  std::string trouble_;
};

// The result of a sweep from the living process, else from the journal of the state directory.
// Errors: as above; those of scheduler::read_sweep.
Result<scheduler::SweepResult> result_of(const AskFlags& flags, const std::string& sweep);

// What every verb that asks says on an error, with its exit code.
int complain(std::string_view verb, const Error& error);

}  // namespace saesweep::cli
