#include "worker/agent/executor_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/log.h"
#include "worker/agent/chunk_service.h"  // OwnedFd

namespace saesweep::agent {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr int kChannelDescriptor = 3;
constexpr int kCannotStart = 127;         // exit code of a child that could not become the program
constexpr auto kEndPatience = 2000ms;     // for one whose socket is closed
constexpr std::size_t kTailBytes = 4096;  // kept of what it printed last
constexpr std::size_t kLastWords = 300;

// What a child may inherit of the environment; the second line is for builds with sanitizers.
constexpr std::array kInherited = {
    "PATH",         "HOME",         "LANG",          "TMPDIR",      "LD_LIBRARY_PATH",
    "ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS"};

// How often the kernel has killed for memory.
std::uint64_t memory_kills(const fs::path& events) {
  std::ifstream in(events);
  std::string name;
  std::uint64_t count = 0;
  while (in >> name >> count)
    if (name == "oom_kill") return count;
  return 0;
}

// The counter of our control group (v2), else that of the whole system.
fs::path find_memory_events() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  std::error_code ignored;
  while (std::getline(groups, line)) {
    if (line.rfind("0::", 0) != 0) continue;
    fs::path events = "/sys/fs/cgroup" + line.substr(3) + "/memory.events";
    if (fs::exists(events, ignored)) return events;
  }
  return "/proc/vmstat";
}

// The last line with something in it, for a person to read.
std::string last_line(std::string_view text) {
  while (!text.empty() && static_cast<unsigned char>(text.back()) <= ' ') text.remove_suffix(1);
  if (const auto end = text.rfind('\n'); end != text.npos) text.remove_prefix(end + 1);
  if (text.size() > kLastWords) text.remove_prefix(text.size() - kLastWords);
  std::string line(text);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  return line;
}

std::string signal_name(int number) {
  const char* name = ::sigabbrev_np(number);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(number);
}

// Everything the child needs, made before the fork: after it only system calls are safe, since
// another thread may have held any lock.
struct Launch {
  std::vector<char*> arguments, environment;
  int socket = -1, output = -1;
  pid_t parent = -1;
};

[[noreturn]] void become_executor(const Launch& launch) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launch.parent) ::_exit(kCannotStart);  // it died before we asked
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);  // NOLINT(concurrency-mt-unsafe): one thread
  // First out of the way of 0 to 3, then to their places, where they survive the exec.
  const int socket = ::fcntl(launch.socket, F_DUPFD_CLOEXEC, 16);
  const int output = ::fcntl(launch.output, F_DUPFD_CLOEXEC, 16);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(nothing, 0);
  ::dup2(output, 1);
  ::dup2(output, 2);
  ::dup2(socket, kChannelDescriptor);
  if (::close_range(kChannelDescriptor + 1, ~0U, 0) != 0)
    for (int other = kChannelDescriptor + 1; other < 1024; ++other) ::close(other);
  ::execve(launch.arguments[0], launch.arguments.data(), launch.environment.data());
  constexpr std::string_view kProblem = "cannot be started: exec failed\n";
  if (::write(2, kProblem.data(), kProblem.size()) < 0) ::_exit(kCannotStart);
  ::_exit(kCannotStart);
}

}  // namespace

struct ExecutorProcess::State {
  explicit State(int socket) : channel(socket) {}
  ~State() {
    if (!reaped && pid > 0) ::kill(pid, SIGKILL);
    reap(5s);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  protocol::ExecutorChannel channel;
  pid_t pid = -1;
  bool reaped = true;  // there is no process to wait for
  int status = 0;
  std::string killed_because;
  OwnedFd output, log;
  fs::path log_path;  // where it goes now
  fs::path slot_log;  // where it goes between runs
  std::uintmax_t log_bytes = 0;
  bool is_log_full = false;  // of a run
  std::string tail;          // what it printed last
  fs::path memory_events;
  std::uint64_t memory_kills_before = 0;

  bool reap(std::chrono::milliseconds patience) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!reaped) {
      const pid_t found = ::waitpid(pid, &status, WNOHANG);
      if (found == pid || (found < 0 && errno == ECHILD)) reaped = true;
      if (reaped || std::chrono::steady_clock::now() >= end) break;
      std::this_thread::sleep_for(1ms);
    }
    return reaped;
  }
  void open_log() {
    log = OwnedFd(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    std::error_code failed;
    log_bytes = fs::file_size(log_path, failed);
    if (failed) log_bytes = 0;
    is_log_full = false;
  }
  void keep(std::string_view text) {
    tail.append(text);
    if (tail.size() > kTailBytes) tail.erase(0, tail.size() - kTailBytes);
    if (log.get() < 0) open_log();
    if (log_bytes + text.size() > kMaxLogBytes && log_path != slot_log) {
      constexpr std::string_view kEnd = "\n[the log is full; what follows is not kept]\n";
      if (!is_log_full && ::write(log.get(), kEnd.data(), kEnd.size()) < 0) return;
      is_log_full = true;
      return;
    }
    if (log_bytes + text.size() > kMaxLogBytes) {
      std::error_code ignored;
      fs::rename(log_path, log_path.string() + ".old", ignored);
      open_log();
    }
    // A log that cannot be written is worth no trouble: the last words are kept all the same.
    if (::write(log.get(), text.data(), text.size()) > 0) log_bytes += text.size();
  }
};

ExecutorProcess::ExecutorProcess(std::unique_ptr<State> state) : state_(std::move(state)) {}
ExecutorProcess::ExecutorProcess(ExecutorProcess&&) noexcept = default;
ExecutorProcess& ExecutorProcess::operator=(ExecutorProcess&&) noexcept = default;
ExecutorProcess::~ExecutorProcess() = default;

Result<ExecutorProcess> ExecutorProcess::start(const ExecutorOptions& options) {
  if (::access(options.program.c_str(), X_OK) != 0)
    return fail(system_error(errno, "start " + options.program.string()));
  const fs::path logs = options.state_directory / "logs";
  SAE_TRY_VOID(make_directories(logs));
  SAE_TRY(const auto ends, protocol::ExecutorChannel::make_pair());
  auto state = std::make_unique<State>(ends.first);
  const OwnedFd theirs(ends.second);
  std::array<int, 2> pipe_ends{};
  if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0) return fail(system_error(errno, "pipe"));
  state->output = OwnedFd(pipe_ends[0]);
  const OwnedFd their_output(pipe_ends[1]);
  ::fcntl(state->output.get(), F_SETFL, O_NONBLOCK);
  state->slot_log = logs / ("executor-" + std::to_string(options.slot) + ".log");
  state->log_path = state->slot_log;
  state->open_log();
  state->memory_events =
      options.memory_events.empty() ? find_memory_events() : options.memory_events;
  state->memory_kills_before = memory_kills(state->memory_events);

  std::vector<std::string> words = {options.program.string(), "--channel",
                                    std::to_string(kChannelDescriptor)};
  std::vector<std::string> inherited;
  for (const char* name : kInherited)
    if (const char* value = std::getenv(name))  // NOLINT(concurrency-mt-unsafe): nobody sets one
      inherited.push_back(std::string(name) + "=" + value);
  Launch launch;
  for (std::string& word : words) launch.arguments.push_back(word.data());
  launch.arguments.push_back(nullptr);
  for (std::string& variable : inherited) launch.environment.push_back(variable.data());
  launch.environment.push_back(nullptr);
  launch.socket = theirs.get();
  launch.output = their_output.get();
  launch.parent = ::getpid();

  const pid_t pid = ::fork();
  if (pid == 0) become_executor(launch);
  if (pid < 0) return fail(system_error(errno, "fork"));
  state->pid = pid;
  state->reaped = false;

  ExecutorProcess process(std::move(state));
  protocol::Envelope first;
  first.mutable_start()->set_state_directory(
      (options.store_directory.empty() ? options.state_directory : options.store_directory)
          .string());
  first.mutable_start()->set_slot(options.slot);
  first.mutable_start()->set_threads(options.threads);
  first.mutable_start()->set_log_level(options.log_level);
  // If it is dead already, the next read says so.
  if (const auto sent = process.channel().send(first); !sent)
    log::warn("executor.start slot={} error={}", options.slot, sent.error().message);
  return process;
}

protocol::ExecutorChannel& ExecutorProcess::channel() { return state_->channel; }
pid_t ExecutorProcess::pid() const { return state_->pid; }
int ExecutorProcess::output() const { return state_->output.get(); }

void ExecutorProcess::read_output() {
  std::array<char, 16384> buffer;
  // Not for ever: others wait, and a pipe that is full makes a talkative one wait.
  for (int i = 0; i < 16 && state_->output.get() >= 0; ++i) {
    const ssize_t count = ::read(state_->output.get(), buffer.data(), buffer.size());
    if (count > 0) {
      state_->keep({buffer.data(), static_cast<std::size_t>(count)});
    } else if (count == 0) {
      const OwnedFd ended = std::move(state_->output);
    } else if (errno != EINTR) {
      return;
    }
  }
}

void ExecutorProcess::log_to(const fs::path& file) {
  read_output();  // belongs to what was before
  state_->log_path = file.empty() ? state_->slot_log : file;
  state_->log = OwnedFd();  // opened with the first word
}

void ExecutorProcess::hang_up() { ::shutdown(state_->channel.socket(), SHUT_RDWR); }

void ExecutorProcess::kill(std::string why) {
  if (state_->reaped || !state_->killed_because.empty()) return;
  state_->killed_because = std::move(why);
  ::kill(state_->pid, SIGKILL);
}

ExecutorDeath ExecutorProcess::bury() {
  if (!state_->reap(kEndPatience)) {
    kill("it closed its socket and did not end");
    state_->reap(5s);
  }
  read_output();
  ExecutorDeath death;
  const int status = state_->status;
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    const bool ours = number == SIGKILL && !state_->killed_because.empty();
    death.out_of_memory = number == SIGKILL && !ours &&
                          memory_kills(state_->memory_events) > state_->memory_kills_before;
    death.by_kill = number == SIGKILL && !ours && !death.out_of_memory;
    death.reason = ours ? "killed by its agent: " + state_->killed_because
                        : "killed by " + signal_name(number);
    if (death.out_of_memory) death.reason += ", out of memory";
  } else {
    death.reason = "exit code " + std::to_string(WIFEXITED(status) ? WEXITSTATUS(status) : -1);
  }
  if (const std::string words = last_line(state_->tail); !words.empty())
    death.reason += "; last words: " + words;
  return death;
}

}  // namespace saesweep::agent
