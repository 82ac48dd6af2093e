#include "scheduler/cli/ask.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "scheduler/cli/people.h"
#include "scheduler/cli/program.h"
#include "scheduler/protocol/key_files.h"
#include "scheduler/service/result_json.h"
#include "scheduler/service/state_directory.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::chrono::seconds kWishPatience = 60s;  // for a disk to take a large sweep

fs::path state_directory(const AskFlags& flags) {
  return fs::absolute(flags.state).lexically_normal();
}

bool names_one(const AskFlags& flags) { return !flags.connect.empty() || !flags.access.empty(); }

Result<Way> find_way(const AskFlags& flags) {
  if (names_one(flags)) return way_to(flags.connect, flags.access);
  const fs::path state = state_directory(flags);
  const auto living = scheduler::living_endpoint(state);
  if (!living)
    return fail(ErrorCode::kUnavailable,
                "no scheduler serves {}; start one with: saesweep serve --state {}, or name "
                "another with --state DIR, --access FILE or --connect tcp://127.0.0.1:7077",
                state.string(), flags.state);
  if (living->clients.empty())
    return fail(ErrorCode::kUnavailable, "process {} on {} serves {}, but answers no questions",
                living->pid, living->host, state.string());
  return Way{living->clients, {}};
}

}  // namespace

void add_ask_flags(CLI::App& verb, AskFlags& flags) {
  verb.add_option("--state", flags.state,
                  "Of the scheduler, on this machine (default ./saesweep-data)")
      ->type_name("DIR");
  verb.add_option("--access", flags.access, "Of another machine's: the bundle of a client")
      ->type_name("FILE");
  verb.add_option("--connect", flags.connect, "Its address: tcp://127.0.0.1:7077")
      ->type_name("ADDRESS");
}

Result<Way> way_to(const std::string& connect, const std::string& access) {
  Way way{connect, {}};
  if (access.empty()) {
    way.security.insecure_loopback = true;
    return way;
  }
  SAE_TRY(protocol::Access bundle, protocol::read_access(access));
  if (way.endpoint.empty()) way.endpoint = bundle.endpoint();
  way.security = protocol::client_security(std::move(bundle));
  return way;
}

Result<Scheduler> Scheduler::find(const AskFlags& flags) {
  SAE_TRY(const Way way, find_way(flags));
  SAE_TRY(protocol::QueryClient client, protocol::QueryClient::connect(way.endpoint, way.security));
  return Scheduler(flags, way.endpoint, std::move(client));
}

Result<Json> Scheduler::put(const protocol::QueryClient::Question& question,
                            std::chrono::seconds patience) {
  auto answer = client_.ask(question, patience);
  if (!answer && answer.error().code == ErrorCode::kUnavailable) {
    // It may have come back at another address.
    const auto now = find_way(flags_);
    if (now && now->endpoint != endpoint_) {
      SAE_TRY(client_, protocol::QueryClient::connect(now->endpoint, now->security));
      endpoint_ = now->endpoint;
      answer = client_.ask(question, patience);
    }
  }
  if (!answer) return fail(answer.error().code, "{}: {}", endpoint_, answer.error().message);
  const auto trouble = answer->find("trouble");
  trouble_ = trouble != answer->end() && trouble->is_string() ? trouble->get<std::string>() : "";
  return answer;
}

Result<Json> Scheduler::ask(const std::string& verb, Json body, std::chrono::seconds patience) {
  return put({.verb = verb, .body = std::move(body)}, patience);
}

Result<Json> Scheduler::wish(const std::string& verb, Json body, std::string_view payload) {
  return put({.verb = verb,
              .body = std::move(body),
              .key = protocol::QueryClient::new_key(),
              .payload = payload},
             kWishPatience);
}

Result<scheduler::SweepResult> result_of(const AskFlags& flags, const std::string& sweep) {
  const fs::path state = state_directory(flags);
  const auto living = scheduler::living_endpoint(state);
  // A process that answers nobody leaves its journal to read.
  if (!names_one(flags) && (!living || living->clients.empty()))
    return scheduler::read_sweep(state, sweep);
  SAE_TRY(Scheduler asked, Scheduler::find(flags));
  auto answer = asked.ask("result", {{"sweep", sweep}});
  // One that has just gone leaves its journal too.
  if (!answer && answer.error().code == ErrorCode::kUnavailable && !names_one(flags))
    return scheduler::read_sweep(state, sweep);
  if (!answer) return fail(answer.error());
  return scheduler::result_from_json(*answer);
}

int complain(std::string_view verb, const Error& error) {
  fmt::print(stderr, "saesweep {}: {}\n", verb, printable(error.message));
  return exit_code_of(error.code);
}

}  // namespace saesweep::cli
