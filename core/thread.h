// Every thread body runs inside run_thread: named, and an escape is logged and ends the program in
// order instead of vanishing.
#pragma once

#include <pthread.h>

#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <thread>

#include "core/log.h"

namespace saesweep {

template <class Body>
std::jthread run_thread(std::string name, Body body) {
  return std::jthread([name = std::move(name), body = std::move(body)](std::stop_token stop) {
    pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
    try {
      body(stop);
    } catch (const std::exception& error) {
      log::error("thread.escaped name={} error={}", name, error.what());
      std::abort();
    }
  });
}

}  // namespace saesweep
