#include "scheduler/cli/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>

#include "core/files.h"
#include "scheduler/cli/machine.h"

namespace saesweep::cli {
namespace {

namespace fs = std::filesystem;

// Reads until end of file; false if `deadline` came first.
bool read_all(int fd, std::string& out,
              std::optional<std::chrono::steady_clock::time_point> deadline) {
  std::array<char, 1 << 14> block{};
  while (true) {
    int wait_ms = -1;
    if (deadline) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          *deadline - std::chrono::steady_clock::now());
      if (left.count() <= 0) return false;
      wait_ms = static_cast<int>(left.count());
    }
    pollfd waiting{fd, POLLIN, 0};
    const int ready = ::poll(&waiting, 1, wait_ms);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    const ssize_t got = ::read(fd, block.data(), block.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return true;
    out.append(block.data(), static_cast<std::size_t>(got));
  }
}

}  // namespace

Result<ChildOutcome> run_child(const fs::path& program, const std::vector<std::string>& arguments,
                               const ChildOptions& options) {
  std::array<int, 2> pipe_ends{};
  if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0) return fail(system_error(errno, "pipe"));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], 1);
  if (options.silence_errors)
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  // Signals that this program blocks or ignores mean to the child what they mean to everybody.
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, usual;
  sigemptyset(&none);
  sigemptyset(&usual);
  for (const int signal_number : {SIGINT, SIGTERM, SIGPIPE}) sigaddset(&usual, signal_number);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &usual);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<std::string> words{program.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int problem =
      ::posix_spawn(&pid, program.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  ::close(pipe_ends[1]);
  if (problem != 0) {
    ::close(pipe_ends[0]);
    return fail(system_error(problem, fmt::format("start {}", program.string())));
  }

  ChildOutcome outcome;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  if (options.patience) deadline = std::chrono::steady_clock::now() + *options.patience;
  const bool ended = read_all(pipe_ends[0], outcome.output, deadline);
  ::close(pipe_ends[0]);
  if (!ended) ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!ended)
    return fail(ErrorCode::kUnavailable, "{} did not end within {} ms", program.string(),
                options.patience ? options.patience->count() : 0);
  outcome.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return outcome;
}

fs::path this_program() {
  std::error_code error;
  const fs::path path = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path("saesweep") : path;
}

fs::path default_task_program() { return this_program().parent_path() / "saesweep-task"; }

Result<fs::path> find_task_program(const std::string& given) {
  const fs::path path = given.empty() ? default_task_program() : fs::absolute(given);
  if (::access(path.c_str(), X_OK) == 0 && !fs::is_directory(path)) return path;
  if (!given.empty())
    return fail(ErrorCode::kNotFound, "--task {}: there is no such program", path.string());
  return fail(ErrorCode::kNotFound,
              "the executor saesweep-task is not there ({}). Build it with `cmake --build --preset "
              "release --target saesweep-task` (deploy/setup.sh installs the LibTorch it needs), "
              "install the package saesweep-task, or say where it is with --task PATH",
              path.string());
}

Result<Json> probe_executor(const std::filesystem::path& task) {
  const auto probe = run_child(task, {"probe", "--json"}, {.patience = std::chrono::minutes(2)});
  if (!probe) return fail(probe.error());
  if (probe->exit_code != 0)
    return fail(ErrorCode::kNotFound,
                "the executor {} does not start (exit code {}); deploy/setup.sh installs the "
                "LibTorch it needs, and saesweep doctor says what is missing",
                task.string(), probe->exit_code);
  return parse_json(probe->output);
}

std::uint32_t gpus_of(const Json& probe) {
  const Json cuda = probe.value("cuda", Json::object());
  return static_cast<std::uint32_t>(cuda.value("devices", Json::array()).size());
}

std::uint64_t gpu_memory_of_slot(const Json& probe, std::uint32_t slots) {
  const std::uint32_t gpus = gpus_of(probe);
  if (gpus == 0) return 0;
  std::uint64_t smallest = std::numeric_limits<std::uint64_t>::max();
  for (const Json& device : probe["cuda"]["devices"])
    smallest = std::min(smallest, device.value("memory_bytes", std::uint64_t{0}));
  const std::uint32_t slots_of_gpu = std::max(1U, (slots + gpus - 1) / gpus);
  return smallest / slots_of_gpu;
}

std::string missing_gpu_text(const Json& probe) {
  std::string text;
  for (const Json& each : probe.value("cuda", Json::object()).value("missing", Json::array()))
    if (each.is_string())
      text += fmt::format("{}{}", text.empty() ? "" : "; ", each.get<std::string>());
  return text.empty() ? "a GPU" : text;
}

std::string auto_device(const std::string& given_task) {
  if (describe_gpus().empty()) return "cpu";
  const auto task = find_task_program(given_task);
  if (!task) return "cpu";
  const auto probe = probe_executor(*task);
  return probe && gpus_of(*probe) > 0 ? "cuda" : "cpu";
}

}  // namespace saesweep::cli
