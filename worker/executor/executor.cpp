#include "worker/executor/executor.h"

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "core/bounded_queue.h"
#include "core/log.h"
#include "core/thread.h"
#include "worker/executor/agent_link.h"
#include "worker/executor/build.h"
#include "worker/executor/requests.h"
#include "worker/executor/run_report.h"
#include "worker/executor/run_tools.h"
#include "worker/thrown.h"

namespace saesweep::worker {
namespace {

using namespace std::chrono_literals;

log::Level level_of(std::string_view name) {
  if (name == "debug") return log::Level::kDebug;
  if (name == "info") return log::Level::kInfo;
  if (name == "error") return log::Level::kError;
  if (name == "off") return log::Level::kOff;
  return log::Level::kWarn;
}

}  // namespace

struct Executor::State {
  AgentLink link;
  const Clock& clock;
  Requests requests;
  BoundedQueue<protocol::Run> runs{1};  // the agent sends one when the one before is finished
  std::optional<protocol::ExecutorStart> start;
  std::atomic<bool> trials_ended = false;
  std::jthread trials;  // last: it uses all of the above

  State(protocol::ExecutorChannel channel, const Clock& time)
      : link(std::move(channel)), clock(time) {}

  // Main thread.
  void begin(const protocol::ExecutorStart& message);
  void accept(const protocol::Run& run);
  void control(const protocol::Control& control);
  // Returns true for Bye.
  bool handle(protocol::ExecutorChannel::Heard heard);

  // Trial thread.
  void work(const protocol::ExecutorStart& settings);
  static void perform(RunReport& report, const RunTools& tools);
};

Executor::Executor(protocol::ExecutorChannel channel, const Clock& clock)
    : state_(std::make_unique<State>(std::move(channel), clock)) {}

Executor::~Executor() {
  state_->requests.pause_all();
  state_->runs.close();
  state_->link.close();
}

Executor::End Executor::serve() {
  State& state = *state_;
  protocol::Envelope hello;
  hello.mutable_executor_hello()->set_build(build_text());
  hello.mutable_executor_hello()->set_pid(::getpid());
  state.link.send(hello);
  bool bye = false;
  for (;;) {
    if (bye && (!state.trials.joinable() || state.trials_ended)) return End::kBye;
    auto heard = state.link.receive(bye ? 20ms : 1000ms);
    if (!heard) {
      if (heard.error().code == ErrorCode::kCorrupted)
        log::error("executor.bad_message problem={}", heard.error().message);
      return End::kAgentGone;
    }
    if (!*heard) continue;
    if (state.handle(std::move(**heard))) {
      bye = true;
      state.requests.pause_all();
      state.runs.close();
    }
  }
}

bool Executor::State::handle(protocol::ExecutorChannel::Heard heard) {
  ReceivedFd descriptor(heard.descriptor);
  protocol::Envelope& envelope = heard.envelope;
  switch (envelope.body_case()) {
    case protocol::Envelope::kStart:
      begin(envelope.start());
      return false;
    case protocol::Envelope::kRun:
      accept(envelope.run());
      return false;
    case protocol::Envelope::kControl:
      control(envelope.control());
      return false;
    case protocol::Envelope::kChunkOpened:
      link.hand_over(std::move(*envelope.mutable_chunk_opened()), std::move(descriptor));
      return false;
    case protocol::Envelope::kChunkReply:
      link.hand_over(std::move(*envelope.mutable_chunk_reply()));
      return false;
    case protocol::Envelope::kBye:
      return true;
    default:
      log::warn("executor.unexpected_message kind={}", static_cast<int>(envelope.body_case()));
      return false;
  }
}

void Executor::State::begin(const protocol::ExecutorStart& message) {
  if (start) {
    log::warn("executor.started_twice");
    return;
  }
  start = message;
  log::set_name(fmt::format("task {}", message.slot()));
  log::set_level(level_of(message.log_level()));
  trials = run_thread("trials", [this, settings = message](const std::stop_token&) {
    work(settings);
    trials_ended = true;
  });
}

void Executor::State::accept(const protocol::Run& run) {
  requests.expect(run.run_id());
  if (start && runs.try_push(run)) return;
  RunReport report(run, link, requests, clock);
  report.give_up_all({ErrorCode::kUnavailable, "the executor is busy with another run"});
  report.finished();
}

void Executor::State::control(const protocol::Control& control) {
  if (requests.put(control)) return;
  protocol::Envelope envelope;
  auto& done = *envelope.mutable_control_done();
  done.set_run_id(control.run_id());
  done.set_task(control.task());
  done.set_fence(control.fence());
  done.set_verb(control.verb());
  done.set_outcome("finished");
  link.send(envelope);
}

void Executor::State::work(const protocol::ExecutorStart& settings) {
  const c10::AutoGradMode no_gradients(false);
  const std::filesystem::path state_directory = settings.state_directory();
  WarmCache warm;
  device::Gpu gpu(settings.slot());
  const ArtifactStore artifacts(state_directory);
  std::unique_ptr<ThreadPool> pool;
  while (auto run = runs.pop()) {
    const unsigned threads = std::max(1U, run->threads() > 0 ? run->threads() : settings.threads());
    if (pool == nullptr || pool->threads() != threads) {
      pool.reset();
      pool = std::make_unique<ThreadPool>(threads);
    }
    log::info("run.begin run={} members={} threads={}", run->run_id(), run->members_size(),
              threads);
    const RunTools tools{link, warm, artifacts, *pool, gpu, clock, state_directory};
    RunReport report(*run, link, requests, clock);
    try {
      perform(report, tools);
    } catch (const std::exception& thrown) {
      const Error error = error_of(thrown);
      log::error("run.threw run={} problem={}", run->run_id(), error.message);
      report.give_up_all(error);
    }
    report.give_up_all({ErrorCode::kUnavailable, "the run ended without an answer"});
    // What stays loaded may be what does not fit.
    if (report.ran_out_of_memory()) warm.clear();
    report.finished();
    log::info("run.end run={}", run->run_id());
    if (!gpu.is_broken()) continue;
    log::error("executor.gpu_broken");  // the next executor has a new context
    std::_Exit(1);
  }
}

void Executor::State::perform(RunReport& report, const RunTools& tools) {
  // All members are of one kind: what shares a run shares its work.
  const protocol::TaskKind kind = report.run().members_size() > 0 ? report.run().members(0).kind()
                                                                  : protocol::TASK_KIND_UNSPECIFIED;
  for (const protocol::Member* member : report.open_members())
    if (member->kind() != kind)
      report.give_up(*member, {ErrorCode::kUnavailable, "a run of several kinds of tasks"});
  switch (kind) {
    case protocol::TASK_KIND_TRAIN:
      return train(report, tools);
    case protocol::TASK_KIND_EVALUATE:
      return evaluate(report, tools);
    case protocol::TASK_KIND_TRAIN_LM:
      return train_lm(report, tools);
    default:
      report.give_up_all(
          {ErrorCode::kInvalidArgument,
           fmt::format("this executor knows no task of kind {}", static_cast<int>(kind))});
  }
}

}  // namespace saesweep::worker
