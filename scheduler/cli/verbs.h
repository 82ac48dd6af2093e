// The verbs of `saesweep`, one file each. add_<verb>() declares its flags and gives back what it
// does once they are parsed: the exit code.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace saesweep::cli {

struct GlobalFlags {
  bool quiet = false;              // no progress, no hints: results and errors only
  std::string log_level = "warn";  // of this process and of the executors it starts
};

using Action = std::function<int()>;

// `globals` outlives the action and is filled when it is called.
Action add_run(CLI::App& program, const GlobalFlags& globals);
Action add_serve(CLI::App& program, const GlobalFlags& globals);
Action add_worker(CLI::App& program, const GlobalFlags& globals);
Action add_submit(CLI::App& program, const GlobalFlags& globals);
Action add_status(CLI::App& program, const GlobalFlags& globals);
Action add_watch(CLI::App& program, const GlobalFlags& globals);
Action add_top(CLI::App& program, const GlobalFlags& globals);
Action add_workers(CLI::App& program, const GlobalFlags& globals);
Action add_explain(CLI::App& program, const GlobalFlags& globals);
Action add_logs(CLI::App& program, const GlobalFlags& globals);
Action add_cancel(CLI::App& program, const GlobalFlags& globals);
Action add_pause(CLI::App& program, const GlobalFlags& globals);
Action add_resume(CLI::App& program, const GlobalFlags& globals);
Action add_retry(CLI::App& program, const GlobalFlags& globals);
Action add_priority(CLI::App& program, const GlobalFlags& globals);
Action add_drain(CLI::App& program, const GlobalFlags& globals);
Action add_journal(CLI::App& program, const GlobalFlags& globals);
Action add_completion(CLI::App& program, const GlobalFlags& globals);
Action add_validate(CLI::App& program, const GlobalFlags& globals);
Action add_leaderboard(CLI::App& program, const GlobalFlags& globals);
Action add_export(CLI::App& program, const GlobalFlags& globals);
Action add_keys(CLI::App& program, const GlobalFlags& globals);
Action add_bench(CLI::App& program, const GlobalFlags& globals);
Action add_doctor(CLI::App& program, const GlobalFlags& globals);
Action add_version(CLI::App& program, const GlobalFlags& globals);

}  // namespace saesweep::cli
