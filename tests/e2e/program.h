// A real process: started with arguments, watched, killed.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace saesweep::test {

struct Finished {
  int exit_code = -1;  // -1: by a signal
  int signal = 0;
  std::string out, err;
};

class Program {
 public:
  // Its output goes to files in `scratch`, which outlives this.
  Program(std::vector<std::string> arguments, const std::filesystem::path& scratch);
  ~Program();  // kills it and waits
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const;
  bool running();
  // Kills it (SIGKILL) when it takes longer.
  Finished wait(std::chrono::seconds patience = std::chrono::seconds(240));
  std::string out() const;
  std::string err() const;

  // Its direct children by the name of their program.
  std::vector<pid_t> children(const std::string& name) const;

 private:
  std::filesystem::path out_, err_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool reaped_ = false;
};

// Asks until it is true, at most `patience`; the last answer.
bool eventually(const std::function<bool()>& question,
                std::chrono::seconds patience = std::chrono::seconds(120));

}  // namespace saesweep::test
