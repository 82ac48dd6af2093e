// What people and programs see while a sweep is worked on: progress on stderr, and with --json one
// event a line on stdout.
#pragma once

#include <string>

#include "core/json.h"
#include "scheduler/cli/progress.h"

namespace saesweep::cli {

class Screen {
 public:
  Screen(bool json, bool quiet);

  // False once nobody reads our output any more.
  bool hear(Json event);
  void tick();
  void say(const std::string& line);
  void finish();

 private:
  bool json_;
  Progress progress_;
};

// Of the terminal that stderr is, or 80.
std::size_t terminal_width();

}  // namespace saesweep::cli
