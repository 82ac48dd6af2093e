#include "tests/e2e/program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

namespace saesweep::test {
namespace {

std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

Program::Program(std::vector<std::string> arguments, const std::filesystem::path& scratch) {
  static int number = 0;
  const std::string name = "program-" + std::to_string(::getpid()) + "-" + std::to_string(number++);
  out_ = scratch / (name + ".out");
  err_ = scratch / (name + ".err");
  std::vector<char*> words;
  for (std::string& argument : arguments) words.push_back(argument.data());
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (::posix_spawn(&pid_, words[0], &actions, nullptr, words.data(), environ) != 0) pid_ = -1;
  posix_spawn_file_actions_destroy(&actions);
}

Program::~Program() {
  if (pid_ > 0 && !reaped_) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, &status_, 0);
  }
}

void Program::signal(int number) const {
  if (pid_ > 0 && !reaped_) ::kill(pid_, number);
}

bool Program::running() {
  if (pid_ <= 0 || reaped_) return false;
  reaped_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
  return !reaped_;
}

Finished Program::wait(std::chrono::seconds patience) {
  eventually([&] { return !running(); }, patience);
  if (running()) {
    signal(SIGKILL);
    ::waitpid(pid_, &status_, 0);
    reaped_ = true;
  }
  Finished finished;
  if (WIFEXITED(status_)) finished.exit_code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) finished.signal = WTERMSIG(status_);
  finished.out = out();
  finished.err = err();
  return finished;
}

std::string Program::out() const { return contents(out_); }
std::string Program::err() const { return contents(err_); }

std::vector<pid_t> Program::children(const std::string& name) const {
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    if (entry.path().filename().string().find_first_not_of("0123456789") != std::string::npos)
      continue;
    std::istringstream stat(contents(entry.path() / "stat"));
    pid_t pid = 0, parent = 0;
    std::string command, state;
    if (!(stat >> pid >> command >> state >> parent)) continue;
    if (parent == pid_ && state != "Z" && command == "(" + name.substr(0, 15) + ")")
      found.push_back(pid);
  }
  return found;
}

bool eventually(const std::function<bool()>& question, std::chrono::seconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!question()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // between two looks, not for luck
  }
  return true;
}

}  // namespace saesweep::test
