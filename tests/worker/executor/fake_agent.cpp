#include "tests/worker/executor/fake_agent.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <utility>

namespace saesweep::test {
namespace {

using namespace std::chrono_literals;

constexpr agent::ConnectionId kConnection = 1;

pid_t spawn_executor(const std::filesystem::path& program, int socket) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, socket, 3);
  std::string name = "saesweep-task", flag = "--channel", value = "3";
  char* arguments[] = {name.data(), flag.data(), value.data(), nullptr};
  pid_t pid = -1;
  EXPECT_EQ(::posix_spawn(&pid, program.c_str(), &actions, nullptr, arguments, environ), 0)
      << program;
  ::posix_spawn_file_actions_destroy(&actions);
  return pid;
}

}  // namespace

FakeAgent::FakeAgent(std::filesystem::path state, const std::optional<std::filesystem::path>& cache,
                     const std::filesystem::path& program) {
  if (cache) {
    cache_ = storage::ActivationCache::open(*cache, storage::ActivationCache::kUnlimited,
                                            {.min_free_bytes = 0})
                 .value();
  }
  chunks_ = std::make_unique<agent::ChunkService>(cache_ ? &*cache_ : nullptr);
  const auto [ours, theirs] = protocol::ExecutorChannel::make_pair().value();
  pid_ = spawn_executor(program, theirs);
  ::close(theirs);
  channel_.emplace(ours);
  protocol::Envelope start;
  start.mutable_start()->set_state_directory(state.string());
  start.mutable_start()->set_threads(2);
  start.mutable_start()->set_log_level("error");
  send(start);
}

FakeAgent::~FakeAgent() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void FakeAgent::send(const protocol::Envelope& envelope) {
  const auto sent = channel_->send(envelope);
  EXPECT_TRUE(sent) << sent.error().message;
}

void FakeAgent::send_run(const protocol::Run& run) {
  left_ = {};
  protocol::Envelope envelope;
  *envelope.mutable_run() = run;
  send(envelope);
}

void FakeAgent::send_control(std::uint64_t run_id, const std::string& verb,
                             const std::string& task) {
  protocol::Envelope envelope;
  envelope.mutable_control()->set_run_id(run_id);
  envelope.mutable_control()->set_verb(verb);
  envelope.mutable_control()->set_task(task);
  send(envelope);
}

bool FakeAgent::serve_chunks(const protocol::Envelope& envelope) {
  protocol::Envelope answer;
  if (envelope.has_chunk_open()) {
    auto opened = chunks_->open(kConnection, envelope.chunk_open());
    *answer.mutable_chunk_opened() = opened.message;
    EXPECT_TRUE(channel_->send(answer, opened.memory.get()));
    return true;
  }
  if (!envelope.has_chunk_request()) return false;
  *answer.mutable_chunk_reply() =
      chunks_->handle(kConnection, envelope.chunk_request(), std::chrono::steady_clock::now());
  send(answer);
  return true;
}

std::optional<protocol::Envelope> FakeAgent::wait_for(const Wanted& wanted) {
  const auto deadline = std::chrono::steady_clock::now() + 60s;
  while (std::chrono::steady_clock::now() < deadline) {
    auto heard = channel_->receive(1000ms);
    if (!heard) {
      ADD_FAILURE() << "the executor is gone: " << heard.error().message;
      return std::nullopt;
    }
    if (!*heard) continue;
    const protocol::Envelope& envelope = (*heard)->envelope;
    if (serve_chunks(envelope)) continue;
    if (envelope.has_result()) {
      EXPECT_FALSE(left_.results.contains(envelope.result().task())) << "a second result";
      left_.results[envelope.result().task()] = envelope.result();
    }
    if (envelope.has_checkpointed())
      left_.checkpoints[envelope.checkpointed().task()] = envelope.checkpointed().checkpoint();
    if (envelope.has_control_done())
      left_.control[envelope.control_done().task()] = envelope.control_done().outcome();
    if (envelope.has_tokens_done()) {
      left_.trained += envelope.tokens_done().trained();
      left_.harvested += envelope.tokens_done().harvested();
    }
    if (wanted(envelope)) return envelope;
  }
  ADD_FAILURE() << "the executor said nothing of the kind for a minute";
  return std::nullopt;
}

FakeAgent::Left FakeAgent::run_to_end(const protocol::Run& run) {
  send_run(run);
  return wait_for_end(run.run_id());
}

FakeAgent::Left FakeAgent::wait_for_end(std::uint64_t run_id) {
  wait_for([run_id](const protocol::Envelope& envelope) {
    return envelope.has_run_finished() && envelope.run_finished().run_id() == run_id;
  });
  return left_;
}

void FakeAgent::kill() {
  ::kill(pid_, SIGKILL);
  wait_exit();
}

int FakeAgent::wait_exit() {
  int status = 0;
  EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace saesweep::test
