// Following a sweep that a scheduler works on.
#pragma once

#include <string>

#include "scheduler/cli/ask.h"
#include "scheduler/cli/interrupts.h"
#include "scheduler/cli/screen.h"

namespace saesweep::cli {

struct WatchOptions {
  std::string verb;   // that complains
  std::string sweep;  // its name; empty: the one submitted last
  std::string out;    // results, once it has ended; empty: ./saesweep-out/NAME
  bool json = false, quiet = false;
};

// Shows progress until the sweep has ended, then writes its results. Ctrl-C leaves it running. The
// exit code.
int watch_sweep(const AskFlags& flags, Scheduler& scheduler, Interrupts& interrupts, Screen& screen,
                const WatchOptions& options);

}  // namespace saesweep::cli
