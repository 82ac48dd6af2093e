// Links over TCP on loopback with keys of their own, for tests.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/protocol/key_files.h"
#include "scheduler/protocol/link.h"
#include "scheduler/protocol/messages.pb.h"
#include "tests/support/temp_dir.h"

namespace saesweep::protocol {

// True once `done` is; false after half a minute.
inline bool eventually(const std::function<bool()>& done) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!done())
    if (std::chrono::steady_clock::now() > end) return false;
  return true;
}

inline std::uint16_t port_of(const std::string& endpoint) {
  return static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
}

struct SecureLinks : testing::Test {
  test::TempDir dir;
  std::filesystem::path keys = dir.path() / "keys";
  bool are_made = init_key_directory(keys, {}).has_value();
  SchedulerLink scheduler =
      SchedulerLink::bind("tcp://127.0.0.1:*", read_server_security(keys).value()).value();
  std::string endpoint = scheduler.endpoint();
  std::vector<HeardMessage> heard;  // by the scheduler

  ClientSecurity security_of(const std::string& name) const {
    return client_security(read_access(keys / (name + ".access")).value());
  }
  WorkerLink connect(const ClientSecurity& security) const {
    return WorkerLink::connect(endpoint, security).value();
  }

  // One round of both ends.
  WorkerLink::Polled go_round(WorkerLink& worker) {
    auto polled = worker.poll(std::chrono::milliseconds(2));
    for (HeardMessage& message : scheduler.poll(std::chrono::milliseconds(2)))
      heard.push_back(std::move(message));
    return polled;
  }
  bool hears(WorkerLink& worker, std::size_t messages) {
    return eventually([&] {
      (void)go_round(worker);
      return heard.size() >= messages;
    });
  }
};

}  // namespace saesweep::protocol
