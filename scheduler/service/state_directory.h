// Files of a state directory besides the journal, and what they tell others.
//
//   STATE/endpoint.json  who serves it now, and where: written at start, removed at the end
//   STATE/store.json     {"directory"}: where checkpoints and artifacts are, if not in STATE
//   STORE/store-token    random; an agent that reads the same token there sees the same files
//
// The store holds trials/, artifacts/ and logs/.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "core/json.h"
#include "core/result.h"

namespace saesweep::scheduler {

// Where the state directory's checkpoints and artifacts are. Errors: kCorrupted.
Result<std::filesystem::path> recorded_store(const std::filesystem::path& state_directory);

struct Store {
  std::filesystem::path directory;  // absolute
  std::string token;
};
// Makes the store, or opens the one that was made before. `wanted` is empty for the recorded one.
// Errors: kInvalidArgument if there is another one already; kUnavailable, kResourceExhausted.
Result<Store> open_store(const std::filesystem::path& state_directory,
                         const std::filesystem::path& wanted);

struct Endpoint {
  std::string workers;  // "tcp://127.0.0.1:7077"
  std::string clients;  // empty: nobody can ask
  std::string data;     // the data port; empty: there is none
  int pid = 0;
  std::string host;
  std::string build;
  std::uint64_t epoch = 0;
};
Result<void> write_endpoint(const std::filesystem::path& state_directory, const Endpoint& endpoint);
void remove_endpoint(const std::filesystem::path& state_directory);
// Of the process that serves the directory now; nothing if none lives: a file that a killed process
// left says nothing. Of a process on another host nobody can know, so its word is taken.
std::optional<Endpoint> living_endpoint(const std::filesystem::path& state_directory);

std::string this_host();

}  // namespace saesweep::scheduler
