#include "worker/agent/executor_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>
#include <thread>
#include <vector>

#include "core/files.h"
#include "core/log.h"

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr int kChannelDescriptor = 3;
constexpr std::uintmax_t kMaxLogBytes = 1 << 20;
constexpr std::size_t kLastWords = 300;

// What a child may inherit of the environment.
constexpr std::array kInherited = {"PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH"};

// How often the kernel has killed for memory in our control group; 0 where it does not say.
std::uint64_t out_of_memory_kills() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line, path;
  while (std::getline(groups, line))
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  std::ifstream events("/sys/fs/cgroup" + path + "/memory.events");
  std::string name;
  std::uint64_t count = 0;
  while (events >> name >> count)
    if (name == "oom_kill") return count;
  return 0;
}

std::string last_words(const fs::path& log, std::uintmax_t from) {
  std::ifstream in(log, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(from));
  std::string line, last;
  while (std::getline(in, line))
    if (!line.empty()) last = line;
  return last.size() > kLastWords ? last.substr(last.size() - kLastWords) : last;
}

}  // namespace

struct ExecutorProcess::State {
  explicit State(int socket) : channel(std::in_place, socket) {}
  std::optional<protocol::ExecutorChannel> channel;
  pid_t pid = -1;
  bool reaped = false;
  int status = 0;
  bool killed_by_us = false;
  fs::path log;
  std::uintmax_t log_begin = 0;
  std::uint64_t memory_kills_before = 0;

  bool reap(std::chrono::milliseconds patience) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!reaped) {
      const pid_t found = ::waitpid(pid, &status, WNOHANG);
      if (found == pid || (found < 0 && errno == ECHILD)) reaped = true;
      if (reaped || std::chrono::steady_clock::now() >= end) break;
      std::this_thread::sleep_for(2ms);
    }
    return reaped;
  }
  void kill() {
    if (reaped) return;
    killed_by_us = true;
    ::kill(pid, SIGKILL);
    reap(5s);
  }
};

ExecutorProcess::ExecutorProcess(std::unique_ptr<State> state) : state_(std::move(state)) {}
ExecutorProcess::ExecutorProcess(ExecutorProcess&&) noexcept = default;
ExecutorProcess& ExecutorProcess::operator=(ExecutorProcess&&) noexcept = default;
ExecutorProcess::~ExecutorProcess() {
  if (state_) state_->kill();
}

Result<ExecutorProcess> ExecutorProcess::start(const ExecutorOptions& options) {
  std::error_code ignored;
  if (!fs::exists(options.program, ignored))
    return fail(ErrorCode::kNotFound, "{} is not there", options.program.string());
  const fs::path logs = options.state_directory / "logs";
  SAE_TRY_VOID(make_directories(logs));
  const fs::path log = logs / ("executor-" + std::to_string(options.slot) + ".log");
  if (fs::exists(log, ignored) && fs::file_size(log, ignored) > kMaxLogBytes)
    fs::rename(log, log.string() + ".old", ignored);

  SAE_TRY(const auto ends, protocol::ExecutorChannel::make_pair());
  auto state = std::make_unique<State>(ends.first);
  state->log = log;
  state->log_begin = fs::exists(log, ignored) ? fs::file_size(log, ignored) : 0;
  state->memory_kills_before = out_of_memory_kills();

  std::vector<std::string> words = {options.program.string(), "--channel",
                                    std::to_string(kChannelDescriptor)};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<std::string> inherited;
  for (const char* name : kInherited)
    if (const char* value = std::getenv(name)) inherited.push_back(std::string(name) + "=" + value);
  std::vector<char*> environment;
  for (std::string& variable : inherited) environment.push_back(variable.data());
  environment.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  posix_spawn_file_actions_adddup2(&actions, ends.second, kChannelDescriptor);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const int failed = ::posix_spawn(&state->pid, arguments[0], &actions, &attributes,
                                   arguments.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  ::close(ends.second);
  if (failed != 0) {
    state->reaped = true;
    return fail(system_error(failed, "start " + options.program.string()));
  }
  ExecutorProcess process(std::move(state));
  protocol::Envelope first;
  first.mutable_start()->set_state_directory(options.state_directory.string());
  first.mutable_start()->set_slot(options.slot);
  first.mutable_start()->set_threads(options.threads);
  first.mutable_start()->set_log_level(options.log_level);
  // If it is dead already, the next read says so.
  if (const auto sent = process.channel().send(first); !sent)
    log::warn("executor.start slot={} error={}", options.slot, sent.error().message);
  return process;
}

protocol::ExecutorChannel& ExecutorProcess::channel() { return *state_->channel; }
pid_t ExecutorProcess::pid() const { return state_->pid; }

ExecutorDeath ExecutorProcess::bury() {
  // Its socket is closed, so it is ending; one that only closed its socket is of no use either.
  if (!state_->reap(2s)) state_->kill();
  state_->channel.reset();
  ExecutorDeath death;
  const int status = state_->status;
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    death.out_of_memory = number == SIGKILL && out_of_memory_kills() > state_->memory_kills_before;
    death.by_kill = number == SIGKILL && !death.out_of_memory && !state_->killed_by_us;
    death.reason = "signal " + std::to_string(number) + " (" + ::strsignal(number) + ")";
    if (death.out_of_memory) death.reason += ", out of memory";
  } else {
    death.reason = "exit code " + std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
  }
  if (const std::string words = last_words(state_->log, state_->log_begin); !words.empty())
    death.reason += "; last words: " + words;
  return death;
}

void ExecutorProcess::dismiss() {
  protocol::Envelope bye;
  bye.mutable_bye()->set_reason("the agent stops");
  if (!state_->channel->send(bye)) log::debug("executor.dismiss pid={} error=gone", state_->pid);
  state_->channel.reset();
  if (!state_->reap(2s)) state_->kill();
}

}  // namespace saesweep::agent
