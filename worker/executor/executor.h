// The executor: runs that the agent hands over the socket, one at a time, models and documents kept
// warm between them.
//
// The calling thread owns the socket's reading end; one trial thread does all tensor work. At the
// end of the file the agent is dead: nothing that could still be written has a reader, and what is
// durable is enough to go on from.
#pragma once

#include <memory>

#include "core/clock.h"
#include "scheduler/protocol/executor_channel.h"

namespace saesweep::worker {

class Executor {
 public:
  explicit Executor(protocol::ExecutorChannel channel, const Clock& clock);
  ~Executor();  // ends the trial thread after the step it is in

  enum class End {
    kBye,        // the agent said so; what ran was paused
    kAgentGone,  // end of file, or bytes that are no message: the caller exits at once
  };
  End serve();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace saesweep::worker
