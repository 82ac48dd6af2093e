// saesweep keys init|add|revoke|list: who may speak to a scheduler over TCP.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "scheduler/cli/program.h"
#include "scheduler/cli/verbs.h"
#include "scheduler/protocol/key_files.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

struct KeysFlags {
  std::string directory = "./saesweep-keys";
  std::string name, role, expires;
  protocol::Address address;
  bool json = false;
};

int complain(const Error& error) {
  fmt::print(stderr, "saesweep keys: {}\n", error.message);
  return exit_code_of(error.code);
}

fs::path directory_of(const KeysFlags& flags) {
  return fs::absolute(flags.directory).lexically_normal();
}

int init(const KeysFlags& flags, const GlobalFlags& globals) {
  const fs::path directory = directory_of(flags);
  if (const auto made = protocol::init_key_directory(directory, flags.address); !made)
    return complain(made.error());
  for (const char* bundle : {"worker.access", "client.access"})
    fmt::print("{}\n", (directory / bundle).string());
  if (!globals.quiet)
    fmt::print(stderr,
               "Copy worker.access to the machines of workers, client.access to people, over a "
               "private way (scp), mode 0600.\n");
  return kExitDone;
}

int add(const KeysFlags& flags) {
  protocol::NewKey key;
  key.name = flags.name;
  const auto role = protocol::parse_role(flags.role);
  if (!role)
    return complain({ErrorCode::kInvalidArgument,
                     fmt::format("--role {}: {}", flags.role, role.error().message)});
  key.role = *role;
  if (!flags.expires.empty()) {
    const auto expires = protocol::parse_expiry(flags.expires);
    if (!expires)
      return complain({ErrorCode::kInvalidArgument,
                       fmt::format("--expires {}: {}", flags.expires, expires.error().message)});
    key.expires = *expires;
  }
  const auto bundle = protocol::add_key(directory_of(flags), key);
  if (!bundle) return complain(bundle.error());
  fmt::print("{}\n", bundle->string());
  return kExitDone;
}

int revoke(const KeysFlags& flags, const GlobalFlags& globals) {
  if (const auto revoked = protocol::revoke_key(directory_of(flags), flags.name); !revoked)
    return complain(revoked.error());
  if (!globals.quiet)
    fmt::print(stderr, "{} is revoked; a running scheduler notices within a second.\n", flags.name);
  return kExitDone;
}

int list(const KeysFlags& flags) {
  const auto keys = protocol::read_authorized(directory_of(flags));
  if (!keys) return complain(keys.error());
  const std::int64_t now = std::chrono::duration_cast<std::chrono::seconds>(
                               std::chrono::system_clock::now().time_since_epoch())
                               .count();
  const auto state = [&](const protocol::AuthorizedKey& key) {
    return key.expires && *key.expires <= now ? "expired" : "valid";
  };
  if (flags.json) {
    Json rows = Json::array();
    for (const protocol::AuthorizedKey& key : *keys)
      rows.push_back({{"name", key.name},
                      {"role", std::string(protocol::to_string(key.role))},
                      {"state", state(key)},
                      {"expires", key.expires ? Json(protocol::expiry_text(*key.expires)) : Json()},
                      {"public", protocol::z85(key.public_key)}});
    fmt::print("{}\n", Json{{"schema", 1}, {"keys", std::move(rows)}}.dump());
    return kExitDone;
  }
  fmt::print("{:<24} {:<8} {:<8} {:<20} {}\n", "NAME", "ROLE", "STATE", "EXPIRES", "PUBLIC KEY");
  for (const protocol::AuthorizedKey& key : *keys)
    fmt::print("{:<24} {:<8} {:<8} {:<20} {}\n", key.name, protocol::to_string(key.role),
               state(key), key.expires ? protocol::expiry_text(*key.expires) : "never",
               protocol::z85(key.public_key));
  return kExitDone;
}

void add_directory(CLI::App& verb, KeysFlags& flags) {
  verb.add_option("--keys", flags.directory,
                  "As saesweep keys init made it "
                  "(default ./saesweep-keys)")
      ->type_name("DIR");
}

}  // namespace

Action add_keys(CLI::App& program, const GlobalFlags& globals) {
  CLI::App* verb =
      program.add_subcommand("keys", "Make and revoke the keys of workers and clients");
  const auto flags = std::make_shared<KeysFlags>();
  verb->require_subcommand(1);

  CLI::App* make = verb->add_subcommand("init", "A directory with keys and access bundles");
  make->add_option("DIR", flags->directory, "Must not exist or be empty (default ./saesweep-keys)");
  make->add_option("--host", flags->address.host,
                   "Name or address at which workers reach the scheduler (default 127.0.0.1)")
      ->type_name("HOST");
  make->add_option("--port", flags->address.worker_port,
                   fmt::format("For workers (default {})", protocol::kDefaultWorkerPort))
      ->type_name("N");
  make->add_option("--client-port", flags->address.client_port,
                   fmt::format("For clients (default {})", protocol::kDefaultClientPort))
      ->type_name("N");

  CLI::App* more = verb->add_subcommand("add", "A key of its own for one worker or person");
  more->add_option("NAME", flags->name, "Up to 128 of A-Z a-z 0-9 . _ -")->required();
  more->add_option("--role", flags->role, "worker, client or admin")->required()->type_name("ROLE");
  more->add_option("--expires", flags->expires,
                   "2027-01-31 or 2027-01-31T12:00:00Z; not valid from then on")
      ->type_name("TIME");
  add_directory(*more, *flags);

  CLI::App* less = verb->add_subcommand("revoke", "Shut a key out, also of a running scheduler");
  less->add_option("NAME", flags->name, "As saesweep keys list shows it")->required();
  add_directory(*less, *flags);

  CLI::App* show = verb->add_subcommand("list", "The keys that are authorised");
  add_directory(*show, *flags);
  show->add_flag("--json", flags->json, "For machines");

  for (CLI::App* part : {make, more, less, show}) part->fallthrough();
  verb->footer(R"(Examples:
  saesweep keys init keys --host login.example.org
  saesweep keys add gpu-7 --role worker --expires 2027-01-31 --keys keys
  saesweep keys list --keys keys
  saesweep keys revoke gpu-7 --keys keys
)");
  return [flags, make, more, less, &globals] {
    if (make->parsed()) return init(*flags, globals);
    if (more->parsed()) return add(*flags);
    if (less->parsed()) return revoke(*flags, globals);
    return list(*flags);
  };
}

}  // namespace saesweep::cli
